# SPDX-License-Identifier: Apache-2.0
"""What a stream says about a sequence, collected beside the truth."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.evaluation.datasets import Depth, EvaluationFrame, EvaluationSequence
from xsvggt_ros.evaluation.metrics import scene_scale
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array, inverse, transform, unproject
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.stream import GeometryStream, NotFinite

log = logging.getLogger(__name__)

POINT_CROP = 224  # pixels; the side of the field's centre crop


class Incomparable(ValueError):
    """What is predicted cannot be compared with the truth."""


class Observer(Protocol):
    """Collects something of every frame. Raises Incomparable where it cannot be compared with the truth."""

    def add(self, frame: Frame, truth: EvaluationFrame) -> None: ...


def follow(stream: GeometryStream, name: str, frames: Iterable[EvaluationFrame], *observers: Observer) -> None:
    """Runs the stream, from a new start, over the frames of a sequence of that name.

    The log names those that it does not take, and where the sequence ends early, as a new world starts: its poses and
    scale are others. Raises Incomparable as the observers do.
    """
    stream.reset()
    started = False
    for frame, truth in _taken_in(stream, name, frames):
        if started and frame.index == 0:
            event = frame.status.event
            log.warning("%s ends before its frame of %.3f s, a new world: %s", name, truth.stamp_ns * 1e-9, event)
            return
        for observer in observers:
            observer.add(frame, truth)
        if not started:
            _tell_cropping(stream, name, truth.image)
        started = True


def _taken_in(
    stream: GeometryStream, name: str, truths: Iterable[EvaluationFrame]
) -> Iterator[tuple[Frame, EvaluationFrame]]:
    """The frames of a sequence, in chunks or not, each beside the truth; the log names those that are not taken."""
    waiting: list[EvaluationFrame] = []

    def leave_out(lost: list[EvaluationFrame], error: ValueError) -> None:
        for truth in lost:
            log.warning("%s: frame of %.3f s is left out: %s", name, truth.stamp_ns * 1e-9, error)

    for truth in chain(truths, [None]):
        frames: list[Frame] = []
        try:
            waiting += [truth] if truth else []
            frames = stream.take(truth.image) if truth else stream.flush()
        except NotFinite as error:
            leave_out(waiting[: len(waiting) - stream.waiting], error)
        except ValueError as error:
            leave_out([waiting.pop()], error)
        done = len(waiting) - stream.waiting
        yield from zip(frames, waiting[:done], strict=False)  # none of a chunk that failed
        del waiting[:done]


def _tell_cropping(stream: GeometryStream, name: str, image: NDArray[np.uint8]) -> None:
    if unseen := stream.resize(image).unseen:
        text = "%s: of the rows of its images, which are %dx%d, %.0f%% are not seen, at top and bottom; turn them"
        log.warning(text + " by 90 degrees, and their poses", name, *image.shape[1::-1], 100 * unseen)


@dataclass
class Trace:
    """Depth and poses of a sequence's frames. Depth is kept where the truth is valid."""

    sequence: EvaluationSequence
    depth: list[Depth] = field(default_factory=list)  # of each frame [n], model units
    depth_true: list[Depth] = field(default_factory=list)  # of each frame [n], metres
    T_first_cam: list[Array] = field(default_factory=list)  # of a stream of segments as the map has them
    T_world_cam_true: list[Array | None] = field(default_factory=list)
    scale_true: float | None = None  # metres per model unit: the `scene_scale` of the first frame, where it is known
    seconds: list[float] = field(default_factory=list)  # of each step
    cache_bytes: int = 0  # after the last step

    def add(self, frame: Frame, truth: EvaluationFrame) -> None:
        depth, depth_true = self._valid(frame, truth)
        if not self.seconds and depth_true.size and truth.depth is not None and truth.intrinsics is not None:
            self.scale_true = scene_scale(truth.depth, truth.intrinsics)
        self.depth.append(depth)
        self.depth_true.append(depth_true)
        self.T_first_cam.append(frame.segment.T_map_cam if frame.segment else frame.T_first_cam)
        self.T_world_cam_true.append(truth.T_world_cam)
        self.seconds.append(frame.status.seconds["step"])
        self.cache_bytes = frame.status.cache_bytes

    def _valid(self, frame: Frame, truth: EvaluationFrame) -> tuple[Depth, Depth]:
        if truth.depth is None:
            return np.zeros(0, np.float32), np.zeros(0, np.float32)
        (height, width), (image_height, image_width) = truth.depth.shape, truth.image.shape[:2]
        if height > width or image_height > image_width:
            raise Incomparable(
                f"images of {image_width}x{image_height} with depth of {width}x{height} cannot be compared, as the "
                "network cuts high ones: turn both, the longer side across"
            )
        valid = valid_depth(truth.depth, self.sequence)
        return resize_depth(frame.depth, width, height, cv2.INTER_CUBIC)[valid], truth.depth[valid]

    def poses(self) -> tuple[Array, Array]:
        """Predicted and true poses [N, 4, 4] of the frames whose true one is known."""
        pairs = zip(self.T_first_cam, self.T_world_cam_true, strict=True)
        known = [pair for pair in pairs if pair[1] is not None]
        return np.reshape([p for p, _ in known], (-1, 4, 4)), np.reshape([t for _, t in known], (-1, 4, 4))


@dataclass
class Clouds:
    """Predicted and true points of the middle of each frame, in the first camera's frame, at the network's pixels."""

    sequence: EvaluationSequence
    predicted: list[NDArray] = field(default_factory=list)  # of each frame [n, 3], model units
    true: list[NDArray] = field(default_factory=list)  # of each frame [n, 3], metres
    _T_first_room: Array | None = None

    def add(self, frame: Frame, truth: EvaluationFrame) -> None:
        if frame.index == 0 and truth.T_world_cam is not None:
            self._T_first_room = inverse(truth.T_world_cam)
        T_first_room = self._T_first_room
        if T_first_room is None or truth.depth is None or truth.intrinsics is None or truth.T_world_cam is None:
            return
        height, width = frame.depth.shape
        depth = resize_depth(truth.depth, width, height, cv2.INTER_NEAREST_EXACT)
        shape = truth.image.shape
        intrinsics = Resize(width / shape[1], height / shape[0], width, height, height, 0).intrinsics(truth.intrinsics)
        middle = _middle(height), _middle(width)
        valid = valid_depth(depth[middle], self.sequence)
        points = transform(T_first_room @ truth.T_world_cam, unproject(depth, intrinsics))
        predicted = frame.points_world()
        if frame.segment:
            predicted = transform(frame.segment.T_map_cam, frame.points_cam())
        self.predicted.append(predicted[middle][valid])
        self.true.append(points[middle][valid])


@dataclass
class Gallery:
    """Some frames of a sequence, evenly spread, to be looked at."""

    chosen: set[int]
    frames: list[tuple[Frame, EvaluationFrame]] = field(default_factory=list)

    @classmethod
    def of(cls, length: int, count: int) -> Gallery:
        return cls(set(np.linspace(0, length - 1, count).round().astype(int).tolist()))

    def add(self, frame: Frame, truth: EvaluationFrame) -> None:
        if frame.index in self.chosen:
            self.frames.append((frame, truth))


def valid_depth(depth: Depth, sequence: EvaluationSequence) -> NDArray[np.bool_]:
    """Where true depth [h, w] counts."""
    return (depth > 0) & (depth < sequence.max_depth)


def resize_depth(depth: Depth, width: int, height: int, interpolation: int) -> Depth:
    """Depth [h, w] at another size."""
    return cv2.resize(depth, (width, height), interpolation=interpolation).astype(np.float32, copy=False)


def _middle(size: int) -> slice:
    start = max(0, (size - POINT_CROP) // 2)
    return slice(start, start + POINT_CROP)
