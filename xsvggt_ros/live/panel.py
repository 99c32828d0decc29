# SPDX-License-Identifier: Apache-2.0
"""What stands beside the scene: figures, images, buttons and settings."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.live.controls import Controls, table
from xsvggt_ros.live.owner import Owner
from xsvggt_ros.live.scene import Scene, small
from xsvggt_ros.memory import MIB
from xsvggt_ros.pictures import CONFIDENCE_COLOURS, DEPTH_COLOURS, false_colour, shown_range
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.ply import vertices
from xsvggt_ros.status import Status

STEPS_SHOWN = 200  # steps in the chart
MOST_WANTED = 4  # views and downloads that wait
VIEWS = {"Fit": None, "From above": (0.0, 0.0, 1.0)}  # from which side; None: from where a browser is
FRAME = "frame of this world"
CAPTION = "image; depth (blue near, red far); confidence (bright = sure)"
GREY = 128  # of images that have not come yet


class Panel:
    """The panel of a viser page. Its methods belong to one thread.

    passed_over: how many frames came that were not drawn.
    """

    def __init__(self, server: Any, owner: Owner, scene: Scene, passed_over: Callable[[], int]) -> None:
        self._gui, self._server, self._owner, self._scene = server.gui, server, owner, scene
        self._passed_over = passed_over
        self._drawn = 0
        self._asked: list[tuple[str, Future[str]]] = []  # what was pressed, and what comes of it
        self._wanted: deque[tuple[Any, str]] = deque(maxlen=MOST_WANTED)  # by which browser, and what
        self._steps: deque[tuple[int, float, float]] = deque(maxlen=STEPS_SHOWN)
        control = owner.config().page.control
        self._gui.configure_theme(show_logo=False, show_share_button=False, control_width="large")
        self._said = self._gui.add_html("")
        self._buttons = self._gui.add_button_group("stream", owner.buttons()) if control else None
        if self._buttons:
            self._buttons.on_click(lambda event: self._ask(event.target.value))
        for title, buttons in (("view", VIEWS), ("download", DOWNLOADS)):
            group = self._gui.add_button_group(title, tuple(buttons))
            group.on_click(lambda event: self._wanted.append((event.client, event.target.value)))
        tabs = self._gui.add_tab_group()
        with tabs.add_tab("Now"):
            self._add_figures()
        with tabs.add_tab("Settings"):
            self._controls = Controls(self._gui, owner) if control else None
            self._table = None if control else self._gui.add_html(table(owner))

    def _add_figures(self) -> None:
        self._figures = self._gui.add_html("")
        none = np.full((100, 400, 3), GREY, np.uint8)
        self._images = self._gui.add_image(none, label=CAPTION, format="jpeg")
        self._chart = self._gui.add_uplot(
            tuple(np.zeros(1) for _ in range(3)),
            (
                {"label": FRAME},
                {"label": "step [ms]", "stroke": "#2858d8", "scale": "ms"},
                {"label": "cache [MiB]", "stroke": "#d85818", "scale": "MiB"},
            ),
            scales={"x": {"time": False}, "ms": {"auto": True}, "MiB": {"auto": True}},
            axes=(
                {"label": FRAME},
                {"scale": "ms", "label": "ms"},
                {"scale": "MiB", "label": "MiB", "side": 1, "grid": {"show": False}},
            ),
            aspect=2.0,
        )

    def _ask(self, action: str) -> None:
        if action in self._owner.actions:  # what comes from a browser may be anything
            self._asked.append((action, self._owner.run(self._owner.actions[action])))

    def _give(self) -> None:
        """Views and downloads that browsers want, each to its own."""
        while self._wanted:
            browser, what = self._wanted.popleft()
            try:
                if what in DOWNLOADS and self._scene.way:
                    name, data = DOWNLOADS[what](self._scene, self._owner)
                    browser.send_file_download(name, data, save_immediately=True)
                elif what in VIEWS:
                    self._scene.fit(browser.camera, VIEWS[what])
            except (OSError, TypeError, ValueError) as error:  # no space for it, or a browser's camera that is none
                self._say(f"refused: {what}: {error}")

    def draw(self, placed: Placed | None) -> None:
        """Sends what there is to say now; placed: a frame that is new."""
        if placed:
            self._drawn += 1
            self._show_images(placed)
            step = placed.frame.status
            if placed.starts:
                self._steps.clear()
            self._steps.append((placed.frame.index, 1000 * step.seconds["step"], step.cache_bytes / MIB))
            self._chart.data = tuple(np.array(self._steps, float).T)
        page = f"{self._drawn} drawn, {self._passed_over()} passed over"
        browsers = len(self._server.get_clients())
        page += f"; {len(self._scene.cloud.points)} points; {browsers} browser{'s' * (browsers != 1)}"
        self._figures.content = figures(self._owner, page)
        if self._table:
            self._table.content = table(self._owner)

    def _show_images(self, placed: Placed) -> None:
        frame = placed.frame
        images = [small(frame.image)]
        if frame.status.dense:
            images += [coloured(frame.depth, DEPTH_COLOURS), coloured(frame.confidence, CONFIDENCE_COLOURS)]
        self._images.image = np.hstack(images)

    def serve(self) -> None:
        """Asks the owner for what users want, and says what came of it."""
        if self._controls:
            self._controls.update()
            if self._controls.said:
                self._say(self._controls.said)
                self._controls.said = ""
        if self._buttons and self._buttons.options != (now := self._owner.buttons()):
            self._buttons.options = now
        self._give()
        for action, answer in [asked for asked in self._asked if asked[1].done()]:
            self._asked.remove((action, answer))
            error = answer.exception()
            self._say(f"refused: {action}: {error}" if error else f"{action}: {answer.result()}")

    def _say(self, text: str) -> None:
        color = "#c02020" if text.startswith("refused") else "#207020"
        self._said.content = f"<div style='color:{color};padding:0 1em;font-size:0.85em'>{escape(text)}</div>"


def figures(owner: Owner, page: str) -> str:
    """The status as an HTML table."""
    status = owner.status()
    step, images, scale = status.step, status.images, status.scale
    budget = f"of {step.budget_tokens}" if step.budget_tokens else "without limit"
    rows = {
        "recording": owner.recording(),
        "paused": owner.paused(),
        "step": f"{1000 * step.seconds.get('step', 0):.0f} ms" + _rate(status),
        "cache": f"{step.cache_bytes / MIB:.2f} MiB, {step.tokens} tokens a layer {budget}",
        "policy": f"{step.policy}, {step.key_bits} and {step.value_bits} bits",
        "images": f"{images.frames_received} received, {images.resets} resets",
        "not used": ", ".join(f"{n} {cause}" for cause, n in images.not_used().items()) or "none",
        "scale": "" if scale.scale_source == "none" else f"{scale.scale:.3g} m a unit, by {scale.scale_source}",
        "page": page,
        "event": step.event,
        "not placed": status.missing,
        "memory": status.shortage,
        "camera": "no image comes" if status.silent else status.calibration,
    }
    lines = (f"<tr><td>{name}</td><td>{escape(text)}</td></tr>" for name, text in rows.items() if text)
    return f"<table style='width:100%;font-size:0.85em'>{''.join(lines)}</table>"


def _rate(status: Status) -> str:
    rate = status.performance.input_rate
    return f", {rate:.1f} images a second" if rate else ""


def coloured(values: NDArray[np.floating], colours: str) -> NDArray[np.uint8]:
    """Values [h, w] in false colours, RGB and small; the colours are those of reports and notebooks."""
    return false_colour(small(values), *shown_range(values), colours)[..., :3]


def cloud_file(scene: Scene, owner: Owner) -> tuple[str, bytes]:
    """The cloud as PLY."""
    from xsvggt_ros.replay.files import CloudFile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cloud.ply")
        with closing(CloudFile(path, owner.config(), owner.config().world_frame)) as file:
            file.append(vertices(scene.cloud.points, scene.cloud.colors))
        return path.name, path.read_bytes()


def way_file(scene: Scene, owner: Owner) -> tuple[str, bytes]:
    """The poses that are drawn, as TUM writes them."""
    from xsvggt_ros.replay.files import TrajectoryFile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trajectory.txt")
        with closing(TrajectoryFile(path, owner.config(), owner.config().world_frame)) as file:
            for pose in scene.way:
                file.write_pose(pose.stamp_ns, pose.T_odom_child)
        return path.name, path.read_bytes()


DOWNLOADS = {"Cloud": cloud_file, "Path": way_file}
