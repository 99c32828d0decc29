# SPDX-License-Identifier: Apache-2.0
"""How well points are followed through sequences whose depth and poses are known, beside optical flow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.evaluation.datasets import EvaluationFrame, EvaluationSequence
from xsvggt_ros.evaluation.metrics import OCCLUDED, TrackErrors, track_errors
from xsvggt_ros.geometry import inverse, transform, unproject
from xsvggt_ros.stream import GeometryStream

QUERIES = 64
BACK = 1.0  # pixel: flow that does not lead back to where it came from so closely has lost its point


class Followed(NamedTuple):
    """N points in S frames, in pixels of the camera's image."""

    pixels: NDArray[np.float32]  # [S, N, 2]
    visible: NDArray[np.bool_]  # [S, N]


def compare(stream: GeometryStream, sequence: EvaluationSequence) -> dict[str, TrackErrors]:
    """Errors of the stream, of flow from frame to frame (Lucas and Kanade), and of points that do not move.

    The points are QUERIES pixels of the first frame, at random. Raises ValueError where depth, poses or camera are not
    known.
    """
    frames = list(sequence.frames)
    queries = _queries(frames[0])
    truth = true_tracks(frames, queries)
    images = [frame.image for frame in frames]
    still = Followed(np.broadcast_to(queries, truth.pixels.shape), np.ones_like(truth.visible))
    said = {"stream": follow_stream(stream, images, queries), "flow": follow_flow(images, queries), "still": still}
    size = images[0].shape[:2]
    return {name: track_errors(*found, *truth, size) for name, found in said.items()}


def _queries(frame: EvaluationFrame) -> NDArray[np.float32]:
    height, width = frame.image.shape[:2]
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, width, QUERIES), rng.integers(0, height, QUERIES)], -1).astype(np.float32)


def true_tracks(frames: Sequence[EvaluationFrame], queries: NDArray[np.float32]) -> Followed:
    """Of whole pixels [N, 2] (x, y) of the first frame."""
    column, row = queries.astype(int).T
    depth, T_world_cam, K = _known(frames[0])
    points = transform(T_world_cam, unproject(depth, K)[row, column].astype(np.float64))
    each = [_seen(frame, points) for frame in frames]
    return Followed(np.stack([pixels for pixels, _ in each]), np.stack([visible for _, visible in each]))


def _seen(frame: EvaluationFrame, points: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """World points [N, 3] in one frame: pixels [N, 2], and whether they are seen there [N]."""
    depth, T_world_cam, K = _known(frame)
    in_camera = transform(inverse(T_world_cam), points)
    pixels = (in_camera / np.maximum(in_camera[:, 2:], 1e-6) @ K.T)[:, :2]
    height, width = depth.shape
    column, row = np.rint(pixels).clip(-1, [width, height]).astype(int).T
    inside = (in_camera[:, 2] > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    shown = depth[row.clip(0, height - 1), column.clip(0, width - 1)]
    return pixels.astype(np.float32), inside & (np.abs(shown - in_camera[:, 2]) < OCCLUDED * shown)


def _known(
    frame: EvaluationFrame,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    if frame.depth is None or frame.T_world_cam is None or frame.intrinsics is None:
        raise ValueError("tracks are compared with the truth: depth, poses and the camera must be known")
    if frame.depth.shape != frame.image.shape[:2]:
        raise ValueError("tracks are compared with the truth: depth must be of the image's size")
    return frame.depth.astype(np.float64), frame.T_world_cam, frame.intrinsics


def follow_stream(
    stream: GeometryStream, images: Sequence[NDArray[np.uint8]], queries: NDArray[np.float32]
) -> Followed:
    """Points of the first image, followed by a stream that starts anew. One that is given up stays where it was."""
    stream.reset()
    first = stream.step(images[0])
    assert first.resize
    ids = stream.track(first.resize.to_input(queries))
    found = [Followed(queries, np.ones(len(queries), bool))]
    for image in images[1:]:
        frame = stream.step(image)
        assert frame.tracks and frame.resize
        at, row = np.nonzero(ids[:, None] == frame.tracks.ids)
        pixels, visible = found[-1].pixels.copy(), np.zeros(len(ids), bool)
        pixels[at], visible[at] = frame.resize.to_image(frame.tracks.pixels)[row], frame.tracks.visible[row]
        found.append(Followed(pixels, visible))
    return Followed(np.stack([f.pixels for f in found]), np.stack([f.visible for f in found]))


def follow_flow(images: Sequence[NDArray[np.uint8]], queries: NDArray[np.float32]) -> Followed:
    """OpenCV's pyramidal Lucas-Kanade flow, chained; a point is lost once flow does not lead back."""
    found = [Followed(queries, np.ones(len(queries), bool))]
    for before, now in pairwise(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images):
        last = found[-1]
        there, ok = _flow(before, now, last.pixels)
        back, ok_back = _flow(now, before, there)
        close = np.linalg.norm(back - last.pixels, axis=-1) < BACK
        height, width = now.shape
        inside = ((there >= -0.5) & (there < [width - 0.5, height - 0.5])).all(-1)
        found.append(Followed(there, last.visible & close & inside & ok & ok_back))
    return Followed(np.stack([f.pixels for f in found]), np.stack([f.visible for f in found]))


def _flow(before: Any, now: Any, pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where points [N, 2] of a grey image are in the next, and whether they were found."""
    there, found, _ = cv2.calcOpticalFlowPyrLK(before, now, pixels, pixels.copy())
    return np.asarray(there, np.float32), np.asarray(found)[:, 0] > 0
