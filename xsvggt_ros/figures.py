# SPDX-License-Identifier: Apache-2.0
"""Pictures of a recording, as PNG: camera images in false colours, and diagrams."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from xsvggt_ros.recording import Recording

MIB = 2**20
STAGES = {  # part of a step -> its colour
    "preprocess": "#98a2b3",
    "encoder": "#3b82c4",
    "aggregator": "#e08a2e",
    "camera": "#8e6cc0",
    "dense": "#3fa36c",
}
BLUE, RED = "#3b82c4", "#d1495b"
SCHEMES = {"light": ("#3b4351", "#e1e5eb"), "dark": ("#c3cad6", "#3a4250")}  # ink, grid
WIDTH, PIXELS_PER_INCH = 9.2, 160  # inches; together the width of a page


def rgb_png(image: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, 3]."""
    return _png(image)


def false_colour_png(values: NDArray[np.floating], low: float, high: float, colours: str) -> bytes:
    """[H, W] between two values; what is not finite is transparent."""
    scaled = (values - low) / max(high - low, 1e-9)
    return _png(matplotlib.colormaps[colours](np.ma.masked_invalid(scaled), bytes=True))


def colour_stops(colours: str, count: int = 12) -> list[str]:
    """The colours of a scale from its low to its high end, as #rrggbb."""
    return [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps[colours](np.linspace(0, 1, count))]


def path_png(recording: Recording, scheme: str) -> bytes:
    """Camera positions from above: as the node says, and, where it is known, as it truly was."""
    predicted = np.array([answer.T_tf[:3, 3] for answer in recording.answers])
    paths = [("by the node [model units]", predicted, BLUE)]
    if recording.truth:
        paths.append(("true [m]", recording.true_path(), STAGES["dense"]))

    def draw(figure: Figure) -> None:
        for axes, (title, path, colour) in zip(figure.subplots(1, len(paths), squeeze=False)[0], paths, strict=True):
            _draw_path(axes, title, path, colour)

    return _figure(draw, (WIDTH, 3.8), scheme)


def _draw_path(axes: Axes, title: str, path: NDArray[np.float64], colour: str) -> None:
    left, forward = path[:, 1], path[:, 0]
    axes.plot(left, forward, color=colour, linewidth=1.6)
    axes.plot(left[0], forward[0], "o", color=colour, markersize=7)
    axes.plot(left[-1], forward[-1], "s", color=colour, markersize=6)
    for x, y, text in ((left[0], forward[0], "start"), (left[-1], forward[-1], "end")):
        axes.annotate(text, (x, y), xytext=(7, 5), textcoords="offset points")
    axes.set(title=title, xlabel="y (left)", ylabel="x (forward)", aspect="equal")
    axes.set_adjustable("datalim")
    axes.invert_xaxis()  # left is left
    axes.locator_params(nbins=6)


def memory_png(recording: Recording, scheme: str) -> bytes:
    """Tokens, cache bytes and step time over the images, with the moment of the change."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1.5))
        for axes, panel in zip(panels, (_draw_tokens, _draw_bytes, _draw_times), strict=True):
            panel(axes, recording)
            if recording.change is not None:
                axes.axvline(recording.answers[recording.change].image, color=RED, linestyle="--", linewidth=1.2)
            axes.set_ylim(bottom=0)
        _name_change(panels[0], recording)
        panels[-1].set(xlabel="image", xlim=(0, len(recording.images) - 1))
        panels[-1].xaxis.set_major_locator(MaxNLocator(10, integer=True))

    return _figure(draw, (WIDTH, 7.0), scheme)


def _images(r: Recording) -> list[int]:
    return [answer.image for answer in r.answers]


def _draw_tokens(axes: Axes, r: Recording) -> None:
    tokens, budget = ([getattr(a.status, name) for a in r.answers] for name in ("tokens", "budget_tokens"))
    axes.fill_between(_images(r), tokens, step="post", color=BLUE, alpha=0.35, linewidth=0, label="cached")
    axes.step(_images(r), budget, where="post", color=BLUE, linewidth=1.6, label="budget")
    axes.set_ylabel("tokens a layer")
    axes.set_ylim(0, 1.15 * max(budget))
    _legend(axes)


def _draw_bytes(axes: Axes, r: Recording) -> None:
    held = np.array([a.status.cache_bytes for a in r.answers]) / MIB
    axes.fill_between(_images(r), held, step="post", color=STAGES["camera"], alpha=0.45, linewidth=0)
    axes.step(_images(r), held, where="post", color=STAGES["camera"], linewidth=1.6)
    axes.set_ylabel("cache [MiB]")
    axes.set_ylim(0, 1.15 * max(held))


def _draw_times(axes: Axes, r: Recording) -> None:
    times = [[a.status.seconds[stage] * 1000 for a in r.answers] for stage in STAGES]
    colours = list(STAGES.values())
    axes.stackplot(_images(r), times, labels=list(STAGES), colors=colours, step="post", alpha=0.85, linewidth=0)
    whole = [a.status.seconds["step"] * 1000 for a in r.answers]
    ink = matplotlib.rcParams["text.color"]
    axes.step(_images(r), whole, where="post", color=ink, linewidth=0.9, label="whole step")
    axes.set_ylabel("step [ms]")
    axes.set_ylim(0, 1.15 * max(whole))
    _legend(axes)


def _legend(axes: Axes) -> None:
    style: dict[str, Any] = {"frameon": False, "columnspacing": 1.2, "handlelength": 1.2, "borderaxespad": 0.2}
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(STAGES) + 1, **style)


def _name_change(axes: Axes, r: Recording) -> None:
    if r.change is None:
        return
    cache = r.later.stream.cache
    text = f"{cache.budget_tokens} tokens, {cache.key_bits} bits"
    at = (r.answers[r.change].image, axes.get_ylim()[1])
    axes.annotate(text, at, xytext=(6, -4), textcoords="offset points", color=RED, va="top")


def _figure(draw: Callable[[Figure], None], size: tuple[float, float], scheme: str) -> bytes:
    ink, grid = SCHEMES[scheme]
    style: dict[Any, Any] = {name: ink for name in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")}
    style |= {"axes.edgecolor": grid, "grid.color": grid, "axes.grid": True, "axes.axisbelow": True}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none", "axes.titlesize": 11}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=PIXELS_PER_INCH, transparent=True)
    return buffer.getvalue()


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
