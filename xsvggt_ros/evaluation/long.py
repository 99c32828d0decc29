# SPDX-License-Identifier: Apache-2.0
"""Long streams of synthetic rooms: in segments and without, at the same bytes, on the same images."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from xsvggt_ros.config import LoopConfig, SegmentConfig, StreamConfig
from xsvggt_ros.evaluation.metrics import first_frame_errors, scene_scale
from xsvggt_ros.evaluation.sweep import IMAGE_SIZE, check_settings
from xsvggt_ros.evaluation.table import Estimate
from xsvggt_ros.evaluation.trace import resize_depth
from xsvggt_ros.evaluation.workers import in_processes
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array
from xsvggt_ros.memory import MIB
from xsvggt_ros.model import StreamVGGT
from xsvggt_ros.rooms.motion import lap_seconds, trajectory
from xsvggt_ros.rooms.render import render
from xsvggt_ros.rooms.room import make_room
from xsvggt_ros.rooms.scene import furnish
from xsvggt_ros.rooms.sequence import RoomFrame, pinhole, stream
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.settings import values

KINDS = {"drift": 300, "lap": 400, "alike": 200, "endless": 10_000}  # usual number of frames
LAPS = 1.05  # of a lap: so far beyond its end that the start is in view again
END = 10  # frames at the end of a stream
LEAST_FRAMES = 20
SETTLED = 6  # frames; longer than a join takes from its newest image on
OTHER = 500_000  # seeds between a room and the one that looks like it
WARM = 4  # a stream's first part, 1 / WARM of it, whose times do not count

Series = dict[str, NDArray[np.float64]]  # name -> number of each frame


@dataclass(frozen=True)
class Long:
    """What is the same for all streams."""

    config: StreamConfig
    kind: str  # of KINDS
    frames: int
    rate: float  # images per second; of a lap what follows from its length
    motion: str
    shape: str = "room"  # of room.SHAPES

    def __post_init__(self) -> None:
        check_length(self.frames)


def check_length(frames: int) -> None:
    """Raises ValueError for a number of frames that no long stream has."""
    if frames < LEAST_FRAMES or frames % 2:
        raise ValueError(f"long streams have at least {LEAST_FRAMES} frames, an even number, got {frames}")


def ways(long: Long, model: StreamVGGT) -> dict[str, SegmentedStream]:
    """The streams that are compared, by name. Policy `full` is not for segments: it is a stream by itself."""
    on, off = replace(long.config.segment, enabled=True), replace(long.config.segment, enabled=False)

    def make(segment: SegmentConfig, loop: LoopConfig, budget_mib: float = 0.0) -> SegmentedStream:
        cache = long.config.cache
        if budget_mib:
            cache = replace(cache, budget_tokens=0, budget_mib=budget_mib)
        return SegmentedStream(replace(long.config, segment=segment, loop=loop, cache=cache), model)

    if long.kind == "drift" and long.config.cache.policy == "full":
        return {"full cache": make(off, long.config.loop)}
    segments = make(on, replace(long.config.loop, enabled=True))
    if long.kind in ("alike", "endless"):
        return {"segments": segments}
    if long.kind == "lap":
        return {"segments": segments, "segments, no loops": make(on, replace(long.config.loop, enabled=False))}
    same_bytes = make(off, long.config.loop, segments.most_nbytes() / MIB)
    return {"segments": segments, "one cache of their bytes": same_bytes, "one cache": make(off, long.config.loop)}


def run_long(long: Long, seeds: range, folder: Path, workers: int | None) -> dict[int, dict[str, Series]]:
    """{seed: {way: series}}; what `folder` has is not made again, where it is as long or longer.

    Raises ValueError where the folder has streams of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("*.npz")):
        (folder / "settings.json").unlink(missing_ok=True)  # of a run that was refused
    check_settings(folder / "settings.json", _facts(long))
    there = {seed: _read(folder / f"{seed}.npz") for seed in seeds if (folder / f"{seed}.npz").exists()}
    found = {seed: _cut(series, long.frames) for seed, series in there.items() if _length(series) >= long.frames}
    left = [seed for seed in seeds if seed not in found]
    work = partial(follow_room, long)
    with tqdm(total=len(seeds), initial=len(found), unit="stream") as progress:
        for seed, series in in_processes(work, left, long.config, workers):
            found[seed] = series
            _write(folder / f"{seed}.npz", series)
            progress.update()
    return {seed: found[seed] for seed in seeds}


def follow_room(long: Long, seed: int, model: StreamVGGT) -> dict[str, Series]:
    """All ways on the images of one room, in turns, so that their times can be compared."""
    streams = ways(long, model)
    notes: dict[str, list[tuple[float, ...]]] = {way: [] for way in streams}
    poses: dict[str, list[Array]] = {way: [] for way in streams}
    true: list[Array] = []
    scale = 0.0
    for truth in _images(long, seed):
        scale = scale or scene_scale(truth.depth, truth.intrinsics)
        true.append(truth.T_room_cam)
        for way, each in streams.items():
            frame = each.step(truth.rgb, stamp_ns=truth.stamp_ns)
            poses[way].append(frame.segment.T_map_cam if frame.segment else frame.T_first_cam)
            notes[way].append(_note(frame, truth, scale))
    return {way: _series(np.stack(poses[way]), np.stack(true), scale, np.array(notes[way])) for way in streams}


NOTED = ("abs_rel", "ms", "bytes", "closures", "refused", "key")


def _note(frame: Frame, truth: RoomFrame, scale: float) -> tuple[float, ...]:
    """NOTED, of one frame."""
    status = frame.status
    height, width = truth.depth.shape
    depth = scale * resize_depth(frame.depth, width, height, cv2.INTER_CUBIC)
    error = np.abs(depth - truth.depth) / truth.depth
    held = status.cache_bytes + status.segments.keyframe_bytes
    key = frame.segment.key if frame.segment else -1
    seconds = status.seconds["step"]
    closures = status.segments.closures, status.segments.closures_refused
    return float(error.mean()), seconds * 1000, held, *closures, key


def _series(T: Array, T_true: Array, scale: float, notes: NDArray) -> Series:
    rotation, distance = first_frame_errors(T, T_true, scale)
    centres = T_true[:, :3, 3] / scale
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    return dict(zip(NOTED, notes.T, strict=True)) | {
        "rotation": rotation,
        "distance": distance,
        "travelled": np.concatenate([[0.0], np.cumsum(steps)]),
        "away": np.linalg.norm(centres - centres[0], axis=1),
    }


# --- images ---------------------------------------------------------------------------------------


def _images(long: Long, seed: int) -> Iterator[RoomFrame]:
    if long.kind == "alike":
        yield from _two_rooms(long, seed)
        return
    rate = long.rate
    if long.kind == "lap":
        rate = long.frames / LAPS / lap_seconds(make_room(seed, long.shape), long.motion)
    yield from stream(seed, long.frames, *IMAGE_SIZE, long.motion, rate, shape=long.shape)


def _two_rooms(long: Long, seed: int) -> Iterator[RoomFrame]:
    """Half of the frames in a room, then half in another, whose walls and pieces have the same textures and colours.

    The second begins without a pause: nothing tells that the camera was carried there.
    """
    half = long.frames // 2
    yield from stream(seed, half, *IMAGE_SIZE, long.motion, long.rate, shape=long.shape)
    other = make_room(seed + OTHER, long.shape)
    scene = replace(furnish(other), surface=furnish(make_room(seed, long.shape)).surface)
    intrinsics = pinhole(*IMAGE_SIZE)
    poses = trajectory(other, half, long.motion, long.rate)
    width, height = IMAGE_SIZE
    for i, T_room_cam in enumerate(poses):
        colour, depth = render(scene, poses[i : i + 1], intrinsics, height, width)
        rgb = (colour[0] * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
        stamp = round((half + i) * 1e9 / long.rate)
        yield RoomFrame(rgb, depth[0].cpu().numpy(), T_room_cam, intrinsics, stamp)


# --- what comes of it -----------------------------------------------------------------------------

Column = Callable[[Series], float]
COLUMNS: dict[str, tuple[Column, str]] = {
    "rotation [°]": (lambda s: s["rotation"].mean(), ".1f"),
    "rotation, 2nd half": (lambda s: _half(s["rotation"]).mean(), ".1f"),
    "centre": (lambda s: s["distance"].mean() / s["away"].mean(), ".3f"),
    "centre, 2nd half": (lambda s: _half(s["distance"]).mean() / _half(s["away"]).mean(), ".3f"),
    "AbsRel": (lambda s: s["abs_rel"].mean(), ".3f"),
    "AbsRel, 2nd half": (lambda s: _half(s["abs_rel"]).mean(), ".3f"),
    "rotation at the end": (lambda s: s["rotation"][-END:].mean(), ".1f"),
    "position at the end": (lambda s: s["distance"][-END:].mean(), ".3f"),
    "closures": (lambda s: s["closures"][-1], ".1f"),
    "MiB": (lambda s: s["bytes"].max() / MIB, ".2f"),
    "step [ms]": (lambda s: float(np.median(_warm(s["ms"]))), ".0f"),
    "99 % / median": (lambda s: float(np.quantile(_warm(s["ms"]), 0.99) / np.median(_warm(s["ms"]))), ".2f"),
}


def _half(x: NDArray) -> NDArray:
    return x[len(x) // 2 :]


def _warm(x: NDArray) -> NDArray:
    return x[len(x) // WARM :]


def table(found: dict[int, dict[str, Series]]) -> str:
    """Means over streams with their standard errors, a line for each way, and what the first is of the others."""
    names = list(next(iter(found.values())))
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    means = {way: {c: np.array([f(s[way]) for s in found.values()]) for c, (f, _) in COLUMNS.items()} for way in names}
    for way in names:
        estimates = (Estimate.of(means[way][c]).text(form) for c, (_, form) in COLUMNS.items())
        lines.append(f"| {way} | {' | '.join(estimates)} |")
    for other in names[1:]:
        shares = (_share(means[names[0]][c], means[other][c]).text(".2f") for c in COLUMNS)
        lines.append(f"| {names[0]} / {other} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def _share(a: NDArray, b: NDArray) -> Estimate:
    """Of the means, on the same streams; the standard error to first order."""
    mean = a.mean() / b.mean() if b.mean() else np.nan
    spread = (a - mean * b).std(ddof=1) / np.sqrt(len(a)) / abs(b.mean()) if len(a) > 1 and b.mean() else None
    return Estimate(float(mean), None if spread is None else float(spread))


def false_closures(found: dict[int, dict[str, Series]], frames: int) -> int:
    """How many streams of two rooms had a frame of the second in a segment that begins at a keyframe of the first.

    Until the first segment that begins in the second room, frames are in the last one of the first; and one that joins
    in its first SETTLED frames is of images of the first room.
    """
    keys, half = [ways_["segments"]["key"] for ways_ in found.values()], frames // 2
    return sum(_mixed(key[:half], key[half + SETTLED :]) for key in keys)


def _mixed(first: NDArray, second: NDArray) -> bool:
    begun = np.flatnonzero(second != second[0])
    return bool(len(begun)) and not set(first).isdisjoint(second[begun[0] :])


def _facts(long: Long) -> dict[str, Any]:
    """All that streams which share a folder have in common."""
    length = {} if long.kind == "drift" else {"frames": long.frames}  # the first frames do not depend on it
    return {
        **values(long.config),
        "kind": long.kind,
        "rate": long.rate,
        "motion": long.motion,
        "shape": long.shape,
        **length,
    }


def _length(series: dict[str, Series]) -> int:
    return len(next(iter(series.values()))["rotation"])


def _cut(series: dict[str, Series], frames: int) -> dict[str, Series]:
    return {way: {name: x[:frames] for name, x in columns.items()} for way, columns in series.items()}


def _write(path: Path, series: dict[str, Series]) -> None:
    with zipfile.ZipFile(path.with_suffix(".part"), "w", zipfile.ZIP_DEFLATED) as file:
        for way, columns in series.items():
            for name, x in columns.items():
                with file.open(f"{way}/{name}.npy", "w") as array:
                    np.save(array, x)
    path.with_suffix(".part").replace(path)


def _read(path: Path) -> dict[str, Series]:
    found: dict[str, Series] = {}
    with np.load(path) as file:
        for name in file.files:
            way, column = name.split("/")
            found.setdefault(way, {})[column] = file[name]
    return found
