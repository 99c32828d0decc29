# SPDX-License-Identifier: Apache-2.0
"""Diagrams of a recording, as PNG: the map from above, and errors, memory and time over the images."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from xsvggt_ros.demo.errors import Errors
from xsvggt_ros.demo.recording import Recording
from xsvggt_ros.geometry import Array, transform, unproject
from xsvggt_ros.memory import MIB

STAGES = {  # part of a step -> its colour
    "preprocess": "#98a2b3",
    "encoder": "#3b82c4",
    "aggregator": "#e08a2e",
    "camera": "#8e6cc0",
    "dense": "#3fa36c",
    "tracks": "#c2557f",
    "refine": "#4fb3bf",
}
BLUE, RED, GREEN, ORANGE, GREY = "#3b82c4", "#d1495b", "#2f9e62", "#e08a2e", "#98a2b3"
SCHEMES = {"light": ("#3b4351", "#e1e5eb"), "dark": ("#c3cad6", "#3a4250")}  # ink, grid
WIDTH, PIXELS_PER_INCH = 9.2, 160  # inches; together the width of a page

ERRORS: dict[str, Callable[[Errors], Array]] = {  # by the name of their axis, [N]
    "depth: AbsRel": lambda errors: np.array([depth.abs_rel for depth in errors.depth]),
    "rotation off [deg]": lambda errors: errors.rotation,
    "position off [m]": lambda errors: errors.centre,
}

CLOUD_FRAMES = 150  # at most, that a map is made of
DOT_AREA = 3e5, (1.0, 6.0)  # square points of all dots of a cloud together; and least and most of one
TRUE_STRIDE = 4  # every n-th row and column of the true depth
HEADROOM = 0.3  # model units; what is higher above the first camera would hide the room
MAP_PERCENTILES = (0.1, 99.9)  # of the cloud, that the map shows
MAP_MARGIN = 0.04  # of its longer side


# --- map ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cloud:
    """Points [N, 3] in the node's world, in the order in which to draw them, and their colours [N, 3]."""

    points: NDArray[np.float32]
    colours: NDArray[np.uint8]


def map_png(recording: Recording, scheme: str) -> bytes:
    """From above: what there is and how the camera truly went, where it is known; and both as the node says."""
    r = recording
    path, path_true = r.poses()[:, :3, 3], r.true_poses()[:, :3, 3]
    maps = [("by the node", _cloud(r, r.poses(), [r.unit * answer.points for answer in r.answers]), path)]
    if r.truth:
        points = [unproject(t.depth, t.intrinsics, TRUE_STRIDE) for t in r.true_answers]
        maps.insert(0, ("true", _cloud(r, r.true_poses(), points), path_true))
    limits = _limits(maps[0][1], [path, path_true])
    unit = "m" if r.truth else "model units"

    def draw(figure: Figure) -> None:
        for axes, (title, cloud, way) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps, strict=True):
            _draw_cloud(axes, cloud)
            if r.truth:
                _draw_path(axes, "true", path_true, GREEN)
            if way is path:
                _draw_path(axes, "estimated", path, BLUE)
            _draw_change(axes, r, way)
            axes.set(title=title, xlabel=f"y, left [{unit}]", ylabel=f"x, forward [{unit}]", aspect="equal", **limits)
        lines, labels = figure.axes[-1].get_legend_handles_labels()
        figure.legend(lines, labels, frameon=False, ncols=len(lines), loc="outside lower center")

    return _figure(draw, (WIDTH, 4.9), scheme)


def _cloud(r: Recording, poses: Array, points: list[NDArray[np.float32]]) -> Cloud:
    """Points [h, w, 3] of some frames, optical, as one cloud without all that is high above the camera."""
    chosen = np.linspace(0, len(points) - 1, min(len(points), CLOUD_FRAMES)).round().astype(int)
    size = points[0].shape[1::-1]
    images = [cv2.resize(r.images[r.answers[i].image].image, size, interpolation=cv2.INTER_AREA) for i in chosen]
    placed = np.concatenate([transform(poses[i], points[i]).reshape(-1, 3) for i in chosen])
    colours = np.concatenate([image.reshape(-1, 3) for image in images])
    low = np.flatnonzero(placed[:, 2] < HEADROOM * r.unit)  # NaN is not
    upwards = low[np.argsort(placed[low, 2])]
    return Cloud(placed[upwards], colours[upwards])


def _limits(cloud: Cloud, paths: list[Array]) -> dict[str, tuple[float, float]]:
    """Of the axes, so that the cloud's bulk and all of the paths are seen; left is left."""
    ends = np.percentile(cloud.points[:, :2], MAP_PERCENTILES, axis=0) if len(cloud.points) else np.zeros((0, 2))
    corners = np.concatenate([ends, *(path[:, :2] for path in paths)])
    low, high = corners.min(0), corners.max(0)
    margin = MAP_MARGIN * max(*(high - low), 1e-3)
    return {"xlim": (high[1] + margin, low[1] - margin), "ylim": (low[0] - margin, high[0] + margin)}


def _draw_cloud(axes: Axes, cloud: Cloud) -> None:
    x, y = cloud.points[:, 1], cloud.points[:, 0]
    area, limits = DOT_AREA
    axes.scatter(x, y, s=np.clip(area / max(len(x), 1), *limits), c=cloud.colours / 255, linewidths=0)


def _draw_path(axes: Axes, label: str, path: Array, colour: str) -> None:
    halo = [patheffects.withStroke(linewidth=4, foreground="white")]
    axes.plot(path[:, 1], path[:, 0], color=colour, linewidth=2, label=label, path_effects=halo)
    axes.plot(*path[-1:, 1::-1].T, "s", color=colour, markersize=6, markeredgecolor="white")


def _draw_change(axes: Axes, r: Recording, path: Array) -> None:
    axes.plot(*path[:1, 1::-1].T, "o", color="white", markersize=8, markeredgecolor="black", label="start")
    if r.change is not None:
        at = path[r.change, 1::-1]
        axes.plot(*at, "D", color=RED, markersize=7, markeredgecolor="white", label="less memory")


# --- over time ------------------------------------------------------------------------------------


def timeline_png(recording: Recording, scheme: str) -> bytes:
    """Errors where there is truth, cache bytes and step time over the images, with the moment of the change."""
    r = recording
    panels = [_draw_bytes, _draw_times]
    if r.comparison:
        panels = [*(partial(_draw_error, name) for name in ERRORS), *panels]

    def draw(figure: Figure) -> None:
        for axes, panel in zip(figure.subplots(len(panels), 1, sharex=True), panels, strict=True):
            panel(axes, r)
            axes.set_ylim(bottom=0)
            if r.change is not None:
                axes.axvline(r.answers[r.change].image, color=RED, linestyle="--", linewidth=1.2)
        if r.comparison:
            _legend(figure.axes[0])
        figure.axes[-1].set(xlabel="image", xlim=(0, len(r.images) - 1))
        figure.axes[-1].xaxis.set_major_locator(MaxNLocator(10, integer=True))
        figure.align_ylabels()

    return _figure(draw, (WIDTH, 1.9 * len(panels)), scheme)


def _images(r: Recording) -> list[int]:
    return [answer.image for answer in r.answers]


def _draw_error(label: str, axes: Axes, r: Recording) -> None:
    assert r.comparison is not None
    node, unchanged, trivial = (
        ERRORS[label](errors) for errors in (r.comparison.node, r.comparison.unchanged, r.comparison.trivial)
    )
    axes.plot(_images(r), trivial, ":", color=GREY, linewidth=1.4, label="standing still, constant depth")
    axes.plot(_images(r), unchanged, color=ORANGE, linewidth=1.4, label="had nothing changed")
    axes.plot(_images(r), node, color=BLUE, linewidth=1.8, label="the node")
    axes.set_ylabel(label)
    axes.set_ylim(0, 1.3 * max(*node, *unchanged, 1e-6))  # the trivial error may leave the picture


def _draw_bytes(axes: Axes, r: Recording) -> None:
    held = np.array([a.status.cache_bytes for a in r.answers]) / MIB
    axes.fill_between(_images(r), held, step="post", color=STAGES["camera"], alpha=0.45, linewidth=0)
    axes.step(_images(r), held, where="post", color=STAGES["camera"], linewidth=1.6)
    axes.set_ylabel("cache [MiB]")
    axes.set_ylim(0, 1.15 * max(held))
    if r.change is not None:
        cache = r.later.stream.cache
        text = f"{cache.budget_tokens} tokens, {cache.key_bits} bits"
        at = (r.answers[r.change].image, axes.get_ylim()[1])
        axes.annotate(text, at, xytext=(6, -4), textcoords="offset points", color=RED, va="top")


def _draw_times(axes: Axes, r: Recording) -> None:
    times = [[a.status.seconds.get(stage, 0.0) * 1000 for a in r.answers] for stage in STAGES]
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
