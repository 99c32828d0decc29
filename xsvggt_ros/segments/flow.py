# SPDX-License-Identifier: Apache-2.0
"""What an image shows of another: points found by optical flow, where depth and pose have them about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array, transform
from xsvggt_ros.preprocess import Resize

SIDE = 128  # pixels that an image's longer side has at most: a tenth of one is a twentieth of a degree
STRIDE = 7  # from one point that is looked for to the next
MARGIN = 2  # that has none
WINDOW = 13  # pixels across that are compared, with the point in their middle
MOST_FLOW = 6.0  # pixels from where a point should be to where it is found, and
RETURNS = 1.0  # from where it was to where it is found on the way back
STOP = cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.01  # of the search
TEXTURE = 1e-3  # least eigenvalue of a window, of white 1: grey values that differ by two or three
HIDDEN = 0.25  # logarithm of depths by which a point lies behind, or before, what the other camera sees there
NEAR = 1e-3  # of a stream's unit

Found = tuple[Array, Array]  # pixels [N, 2], x y, of one view, and where another shows the same


@dataclass(frozen=True)
class View:
    """What a camera shows, small."""

    grey: NDArray[np.uint8]  # [h, w]
    depth: NDArray[np.float32]  # [h, w]
    intrinsics: Array  # [3, 3]

    @classmethod
    def of(cls, frame: Frame) -> View:
        height, width = frame.depth.shape
        grey = np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), np.uint8)
        share = SIDE / max(height, width)
        if share >= 1:
            return cls(grey, np.array(frame.depth, np.float32), frame.intrinsics)
        size = round(width * share), round(height * share)
        small = Resize(size[0] / width, size[1] / height, *size, height=size[1], top=0)
        return cls(
            np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8),
            np.asarray(cv2.resize(frame.depth, size, interpolation=cv2.INTER_AREA), np.float32),
            small.intrinsics(frame.intrinsics),
        )

    def deeper(self, factor: NDArray[np.float32] | np.float32) -> View:
        """So many times, [h, w] or all over."""
        return replace(self, depth=self.depth * factor)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        height, width = self.grey.shape
        return width, height

    def points(self, pixels: Array) -> Array:
        """Of pixels [N, 2] -> [N, 3] in the camera's frame."""
        depth = sampled(self.depth, pixels)[:, None]
        return np.hstack([(pixels - self.intrinsics[:2, 2]) / self.intrinsics[[0, 1], [0, 1]] * depth, depth])

    def pixels(self, points: NDArray) -> NDArray:
        """Of points [..., 3] in the camera's frame -> [..., 2]; anywhere for those behind it."""
        K = self.intrinsics.astype(points.dtype)
        return points[..., :2] / np.maximum(points[..., 2:], NEAR) * K[[0, 1], [0, 1]] + K[:2, 2]


def found(a: View, b: View, T_b_a: Array, halved: int = 0) -> Found:
    """Points of a, and where b shows them: from where it should, by a's depth and that pose, to where it does.

    halved: how many times the images are, at first; each doubles how far off the pose may be.
    """
    x, y, z = _shown_by(b, a, T_b_a)
    wanted = _grid(*a.size)
    seen = _rows_columns(wanted)
    wanted = wanted[_visible(b, np.stack([x[seen], y[seen]], -1), z[seen])]
    if not len(wanted):
        return np.zeros((0, 2)), np.zeros((0, 2))
    drawn = cv2.remap(b.grey, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # as a would see it
    seen = _rows_columns(wanted)
    exposure = a.grey[seen].mean() / max(drawn[seen].mean(), 1.0)
    drawn = np.asarray(cv2.convertScaleAbs(drawn, alpha=exposure), np.uint8)
    moved, ok = _flow(a.grey, drawn, wanted, halved)
    back, ok_too = _flow(drawn, a.grey, moved, halved)
    ok &= ok_too & (np.linalg.norm(moved - wanted, axis=-1) < MOST_FLOW * 2**halved)
    ok &= np.linalg.norm(back - wanted, axis=-1) < RETURNS
    return wanted[ok].astype(float), np.stack([sampled(at, moved[ok]) for at in (x, y)], -1)


def share_seen(a: View, b: View, T_b_a: Array) -> float:
    """Of a's points, those that b shows."""
    points = transform(T_b_a, a.points(_grid(*a.size).astype(float)))
    return float(_visible(b, b.pixels(points), points[:, 2]).mean())


def sampled(table: NDArray, pixels: NDArray) -> NDArray:
    """Table [h, w] at pixels [..., 2], x y, those outside at its edge -> [...], in the table's dtype; bilinear."""
    if not pixels.size:
        return np.zeros(pixels.shape[:-1], table.dtype)
    at = np.moveaxis(np.asarray(pixels, np.float32), -1, 0).reshape(2, -1, pixels.shape[-2])
    values = cv2.remap(table, at[0], at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(values, table.dtype).reshape(pixels.shape[:-1])


def _grid(width: int, height: int) -> NDArray[np.float32]:
    """Pixels [N, 2], x y, all over an image."""
    columns, rows = (np.arange(MARGIN, side - MARGIN, STRIDE, dtype=np.float32) for side in (width, height))
    return np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)


def _rows_columns(pixels: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where whole pixels [N, 2], x y, are in an array."""
    column, row = pixels.astype(np.intp).T
    return row, column


def _shown_by(b: View, a: View, T_b_a: Array) -> NDArray:
    """Where b has what each pixel of a shows: x, y and how deep, float32 [3, h, w]."""
    R, t = T_b_a[:3, :3], T_b_a[:3, 3:]
    height, width = a.depth.shape
    by_depth = (b.intrinsics @ R @ np.linalg.inv(a.intrinsics)).astype(np.float32)
    shift = (b.intrinsics @ t).astype(np.float32)
    shown = by_depth @ _homogeneous(width, height) * a.depth.ravel() + shift
    shown[:2] /= np.maximum(shown[2], NEAR)
    return shown.reshape(3, height, width)


@cache
def _homogeneous(width: int, height: int) -> NDArray[np.float32]:
    """All pixels of an image, row by row: x, y, 1; [3, h * w]."""
    rows, columns = np.indices((height, width), np.float32).reshape(2, -1)
    return np.stack([columns, rows, np.ones_like(rows)])


def _visible(view: View, at: NDArray, depth: NDArray) -> NDArray[np.bool_]:
    """Whether a view shows what is so deep [N] at its pixels [N, 2], x y, and nothing else there."""
    inside = (depth > NEAR) & (at >= 1).all(-1) & (at <= np.subtract(view.size, 2)).all(-1)
    return inside & (np.abs(np.log(np.maximum(depth, NEAR) / sampled(view.depth, at))) < HIDDEN)


def _flow(
    a: NDArray, b: NDArray, pixels: NDArray[np.float32], halved: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where b has what a has at pixels [N, 2], and whether that is known: Lucas and Kanade's."""
    window = WINDOW, WINDOW
    moved, ok, _ = cv2.calcOpticalFlowPyrLK(
        a, b, pixels, np.empty_like(pixels), winSize=window, maxLevel=halved, criteria=STOP, minEigThreshold=TEXTURE
    )
    return np.asarray(moved, np.float32).reshape(-1, 2), np.asarray(ok).ravel() > 0
