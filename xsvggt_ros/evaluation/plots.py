# SPDX-License-Identifier: Apache-2.0
"""Pictures of an evaluation: what a sequence looked like, and accuracy against memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from xsvggt_ros.evaluation.evaluate import UNALIGNED
from xsvggt_ros.evaluation.long import Series
from xsvggt_ros.evaluation.metrics import can_align, depth_scale, umeyama
from xsvggt_ros.evaluation.sweep import FULL, PRUNING
from xsvggt_ros.evaluation.table import Line, Table
from xsvggt_ros.evaluation.trace import Gallery, Trace
from xsvggt_ros.geometry import Array
from xsvggt_ros.memory import MIB

BLUE, RED, GREEN, GREY = "#3b82c4", "#d1495b", "#3fa36c", "#98a2b3"
MARKERS = {16: "o", 8: "v", 4: "s", 3: "P", 2: "D", 1: "X"}  # by the bits of keys
DPI = 110


def draw_sequence(path: Path, trace: Trace, gallery: Gallery, alignment: str) -> None:
    """Writes some images with their true and predicted depth, and the trajectory as seen from above the path."""
    figure = Figure(figsize=(3.0 * len(gallery.frames) + 4.2, 6.6), layout="constrained")
    figure.suptitle(trace.sequence.name)
    grid = figure.add_gridspec(3, len(gallery.frames) + 2)
    _draw_frames(figure, grid, trace, gallery, alignment)
    T, T_true = trace.poses()
    if len(T) and (alignment == UNALIGNED or can_align(T_true)):
        _draw_trajectory(figure.add_subplot(grid[:, -2:]), _in_metres(trace, T, T_true, alignment), _seen_first(T_true))
    figure.savefig(path, dpi=DPI)


def draw_long(path: Path, found: dict[int, dict[str, Series]]) -> None:
    """Writes errors of rotation and position against the distance travelled: of each way the mean over streams."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    shown = {"rotation": "rotation [degrees]", "distance": "position [units]"}
    ways = list(next(iter(found.values())))
    for axes, (name, label) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        for way, colour in zip(ways, (GREEN, BLUE, GREY, RED), strict=False):
            travelled = np.mean([series[way]["travelled"] for series in found.values()], axis=0)
            errors = np.stack([series[way][name] for series in found.values()])
            mean, spread = errors.mean(0), errors.std(0) / np.sqrt(len(errors))
            axes.plot(travelled, mean, color=colour, label=way)
            axes.fill_between(travelled, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel="travelled [units]", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=DPI)


def _draw_frames(figure: Figure, grid: GridSpec, trace: Trace, gallery: Gallery, alignment: str) -> None:
    metres = _metres(trace, alignment)
    depths = [frame.depth * metres for frame, _ in gallery.frames]
    truths = [np.where(t.depth > 0, t.depth, np.nan) for _, t in gallery.frames if t.depth is not None]
    low, high = np.nanpercentile(np.concatenate([d.ravel() for d in truths or depths]), (2, 98))
    for column, (frame, truth) in enumerate(gallery.frames):
        pictures = {"image": frame.image, "predicted depth": depths[column]}
        if truth.depth is not None:
            pictures["true depth"] = np.where(truth.depth > 0, truth.depth, np.nan)
        for line, (title, picture) in enumerate(pictures.items()):
            axes = figure.add_subplot(grid[line, column])
            shown = axes.imshow(picture, vmin=low, vmax=high, cmap="turbo_r")
            axes.set_axis_off()
            axes.set_title(f"frame {frame.index}" if line == 0 else title, fontsize=9)
    figure.colorbar(shown, ax=figure.axes, location="bottom", shrink=0.4, label="depth [m]" if truths else "depth")


def _metres(trace: Trace, alignment: str) -> float:
    """Metres per model unit, as the alignment has it; 1 where nothing is known."""
    if alignment == UNALIGNED:
        return trace.scale_true or 1.0
    truth = np.concatenate(trace.depth_true)
    return depth_scale(np.concatenate(trace.depth), truth) if truth.size else 1.0


def _seen_first(T_true: Array) -> Array:
    """Camera centres [N, 3] in the first camera's frame."""
    return (np.linalg.inv(T_true[0]) @ T_true)[:, :3, 3]


def _in_metres(trace: Trace, T: Array, T_true: Array, alignment: str) -> Array:
    """Predicted camera centres [N, 3] in the first true camera's frame, aligned like the errors."""
    centres = (np.linalg.inv(T[0]) @ T)[:, :3, 3]
    if alignment == UNALIGNED:
        return centres * (trace.scale_true or 1.0)
    s, R, t = umeyama(centres, _seen_first(T_true))
    return s * centres @ R.T + t


def _draw_trajectory(axes: Axes, centres: Array, centres_true: Array) -> None:
    for path, colour, label in ((centres_true, GREEN, "true"), (centres, BLUE, "predicted")):
        axes.plot(path[:, 0], path[:, 2], color=colour, label=label)
        axes.plot(*path[0, [0, 2]], "o", color=colour)
    axes.set(xlabel="right [m]", ylabel="forward [m]", aspect="equal", title="camera from above")
    axes.set_adjustable("datalim")
    axes.grid(alpha=0.3)
    axes.legend()


def draw_accuracy(path: Path, table: Table) -> None:
    """Writes error against the memory of the global layers' cache: every row, a colour a policy, and the frontier."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (name, label) in zip(panels, {"abs_rel": "AbsRel", "ate": "ATE [model units]"}.items(), strict=True):
        _draw_error(axes, table, name)
        axes.set(xscale="log", xlabel="cache of the global layers [MiB]", ylabel=label)
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside right upper")
    figure.suptitle(
        f"{len(table.seeds)} held-out streams, unaligned; bars: standard error of the difference to the full cache, "
        "band: standard error of the full cache's mean",
        fontsize=9,
    )
    figure.savefig(path, dpi=DPI)


def _draw_error(axes: Axes, table: Table, name: str) -> None:
    full, lines = table.lines[0].mean[name], [line for line in table.lines if line.mean["global_bytes"].mean]
    axes.axhline(full.mean, color=GREY, linewidth=1, label="full, 16 bits")
    axes.axhspan(full.mean - (full.error or 0.0), full.mean + (full.error or 0.0), color=GREY, alpha=0.2, linewidth=0)
    colours = dict(zip((FULL.policy, *PRUNING), ["black", *(f"C{i}" for i in range(10))], strict=False))
    for policy, colour in colours.items():
        if not (of_policy := [line for line in lines if line.row.policy == policy]):
            continue
        axes.plot([], [], "o", color=colour, label=policy)
        for line in of_policy:
            _draw_point(axes, line, name, color=colour, marker=MARKERS[line.row.bits[0]])
    for bits in sorted({line.row.bits[0] for line in lines}, reverse=True):
        axes.plot([], [], MARKERS[bits], color=GREY, label=f"keys of {bits} bits")
    best = [line for line in table.frontier(name) if line in lines]
    axes.plot(_mib(best), [line.mean[name].mean for line in best], ":", color=RED, label="frontier")
    axes.set_ylim(top=min(axes.get_ylim()[1], 3 * full.mean))  # what sees next to nothing is far above


def _draw_point(axes: Axes, line: Line, name: str, **style: Any) -> None:
    axes.errorbar(
        _mib([line]), [line.mean[name].mean], [line.difference[name].error or 0.0], capsize=2, markersize=5, **style
    )


def _mib(lines: list[Line]) -> list[float]:
    return [line.mean["global_bytes"].mean / MIB for line in lines]
