# SPDX-License-Identifier: Apache-2.0
"""A frame at the size of its camera's image: edges of depth where the image has edges, and no points in between.

Joint bilateral upsampling (Kopf et al., SIGGRAPH 2007), done where it matters. Inverse depth is linear on planes, so
where it bends little it is interpolated linearly, which is exact and takes little time. Where it bends, a pixel goes by
those of its 9 nearest of the network's pixels that lie on one surface with the one most like it in place and colour, if
others of them do not: an average over two surfaces would be a point in the air.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.frame import Frame
from xsvggt_ros.preprocess import Resize

BEND = 0.03  # of the inverse depth: a second difference above that is an edge
ONE_SURFACE = 0.05  # by which inverse depths may differ that are averaged
COLOUR = 15.0  # standard deviation over the three channels together, of 255
REACH = np.array([(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)], np.int32)  # the 9 nearest

Floats = NDArray[np.float32]


def upsampled(frame: Frame, image: NDArray[np.uint8]) -> Frame:
    """The frame with depth, confidence and points at the size of the image [H, W, 3] that it was made of, rectified.

    What the network did not see of the image is NaN. Confidence is that of the nearest of the network's pixels, so that
    a threshold leaves out the same as before, and what was sure weighs more in depth. Tracks are in the image's pixels.
    """
    resize = frame.resize
    if resize is None or image.shape == frame.image.shape:
        return frame
    grid = _Grid.of(resize, *image.shape[:2])
    inverse = np.reciprocal(np.ascontiguousarray(frame.depth))
    edges = _Edges.of(grid, inverse, frame, image)
    points, tracks = frame.predicted_points, frame.tracks
    return replace(
        frame,
        intrinsics=resize.image_intrinsics(frame.intrinsics),
        depth=np.reciprocal(_enlarged(inverse, grid, edges)),
        confidence=grid.nearest(np.ascontiguousarray(frame.confidence)),
        image=image,
        predicted_points=None if points is None else _enlarged(points, grid, edges),
        tracks=tracks and replace(tracks, pixels=resize.to_image(tracks.pixels)),
        resize=None,
    )


@dataclass(frozen=True)
class _Grid:
    """Where the pixels of an image lie among the network's."""

    resize: Resize
    rows: Floats  # [H], in the network's pixels
    columns: Floats  # [W]

    @classmethod
    def of(cls, resize: Resize, height: int, width: int) -> _Grid:
        rows = resize.to_input(np.stack([np.zeros(height, np.float32), np.arange(height, dtype=np.float32)], -1))
        columns = resize.to_input(np.stack([np.arange(width, dtype=np.float32), np.zeros(width, np.float32)], -1))
        return cls(resize, rows[:, 1], columns[:, 0])

    @property
    def unseen(self) -> NDArray[np.bool_]:
        """Which rows of the image were cropped, [H]."""
        return (self.rows < -0.5) | (self.rows >= self.resize.height - 0.5)

    def whole(self, values: NDArray) -> NDArray:
        """Values [h, w, ...] with the rows that were cropped, as their neighbours."""
        below = self.resize.scaled_height - self.resize.height - self.resize.top
        return cv2.copyMakeBorder(values, self.resize.top, below, 0, 0, cv2.BORDER_REPLICATE)

    def resized(self, values: NDArray, how: int) -> NDArray:
        """Values [h, w, ...] at the size of the image, by one of OpenCV's interpolations."""
        return cv2.resize(self.whole(values), (len(self.columns), len(self.rows)), interpolation=how)

    def nearest(self, values: Floats) -> Floats:
        """Those of the nearest pixels, [H, W]; NaN where there is none."""
        found = self.resized(values, cv2.INTER_NEAREST_EXACT)
        found[self.unseen] = np.nan
        return found


@dataclass(frozen=True)
class _Edges:
    """The pixels of an image at which depth is not interpolated, and what they go by."""

    at: NDArray[np.intp]  # [N], in the image, row by row
    sources: NDArray[np.int32]  # [9, N], in the network's
    weights: Floats  # [9, N], of sum 1

    @classmethod
    def of(cls, grid: _Grid, inverse: Floats, frame: Frame, image: NDArray[np.uint8]) -> _Edges:
        """inverse: of the depth, [h, w]; image: [H, W, 3]."""
        bent = cv2.dilate(_bends(inverse).view(np.uint8), np.ones((3, 3), np.uint8))
        at = np.flatnonzero(grid.resized(bent, cv2.INTER_NEAREST_EXACT))
        row, column = np.divmod(at, image.shape[1])
        y, x = grid.rows[row], grid.columns[column]
        rows = np.clip(np.rint(y).astype(np.int32) + REACH[:, :1], 0, inverse.shape[0] - 1)  # [9, N]
        columns = np.clip(np.rint(x).astype(np.int32) + REACH[:, 1:], 0, inverse.shape[1] - 1)
        sources = rows * inverse.shape[1] + columns
        off = frame.image.reshape(-1, 3)[sources].astype(np.float32) - image.reshape(-1, 3)[at]  # [9, N, 3]
        unlike = np.einsum("knc,knc->kn", off, off) / np.float32(COLOUR**2) + (rows - y) ** 2 + (columns - x) ** 2
        weights = np.exp((unlike.min(0, initial=np.inf) - unlike) / 2) * frame.confidence.ravel()[sources]
        near = inverse.ravel()[sources]
        surface = np.take_along_axis(near, weights.argmax(0)[None], 0)
        same = np.abs(near - surface) <= ONE_SURFACE * surface
        apart = ~same.all(0)  # elsewhere a surface has a crease, and no edge
        weights = (weights * same)[:, apart]
        return cls(at[apart], sources[:, apart], weights / weights.sum(0))


def _bends(inverse: Floats) -> NDArray[np.bool_]:
    """Where inverse depth [h, w] is not linear along its row or column."""
    bends = np.zeros(inverse.shape, np.bool_)
    for along, values in ((bends, inverse), (bends.T, inverse.T)):
        middle = values[1:-1]
        along[1:-1] |= np.abs(values[:-2] + values[2:] - 2 * middle) > BEND * middle
    return bends


def _enlarged(values: Floats, grid: _Grid, edges: _Edges) -> Floats:
    """Values [h, w] or [h, w, C] at the size of the image, NaN where the network did not see it."""
    large = grid.resized(values, cv2.INTER_LINEAR)
    channels = values.shape[2:]
    near = values.reshape(-1, *channels)[edges.sources]  # [9, N] or [9, N, C]
    large.reshape(-1, *channels)[edges.at] = np.einsum("kn,kn...->n...", edges.weights, near)
    large[grid.unseen] = np.nan
    return large
