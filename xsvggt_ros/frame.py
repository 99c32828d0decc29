# SPDX-License-Identifier: Apache-2.0
"""What goes into a step of the stream, and what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xsvggt_ros import geometry, pictures, ply
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.similarity import Similarity
from xsvggt_ros.status import StepStatus
from xsvggt_ros.whole_file import write_whole


@dataclass(frozen=True)
class InputImage:
    """One image of a camera."""

    stamp_ns: int
    image: NDArray[np.uint8]  # [H, W, 3], RGB
    intrinsics: NDArray[np.float64] | None  # [3, 3] of that image, where they are known
    frame_id: str


@dataclass(frozen=True)
class Tracks:
    """Where the points that are followed are in one frame, in the order in which they were given."""

    ids: NDArray[np.int64]  # [N]
    pixels: NDArray[np.float32]  # [N, 2], x y in `Frame.image`, see `Resize.to_image`; anywhere where not visible
    visible: NDArray[np.bool_]  # [N]
    confidence: NDArray[np.float32]  # [N] in [0, 1]: how likely the place is right


@dataclass(frozen=True)
class InSegment:
    """Where the map has a frame of a stream of segments, whose `Frame.T_first_cam` goes on without jumps."""

    T_map_cam: NDArray[np.float64]  # [4, 4], in the unit of T_first_cam; places seen again have corrected it
    key: int  # of the keyframe that its segment began at; -1: that is none
    T_key_cam: NDArray[np.float64]  # [4, 4], in the segment's own unit
    keyframes: Mapping[int, Similarity]  # S_map_key of each that is remembered, the oldest first
    variance: tuple[float, float]  # of T_first_cam's rotation, rad^2, and position, unit^2, by joins so far
    rescaled: float  # metres per unit over those at the frame before: 1 but after a join; NaN: unknown, after a pause
    located: bool = True  # whether the map says where it is; T_map_cam is a guess if not


@dataclass(frozen=True)
class Frame:
    """What the stream says about one image, at the network's resolution (h, w). Units are the model's.

    The arrays are the frame's own: no later step changes them, and they share no memory with what came in. `image` is
    read-only: draw into a copy of it. `depth` need not be contiguous in memory. Where depth was not asked for
    (`status.dense` is false, which only a node does, by its setting `dense`), depth and confidence are NaN everywhere.
    """

    index: int  # from 0 at the start of the stream or its last reset
    T_first_cam: NDArray[np.float64]  # [4, 4], optical axes; first: the camera at index 0
    intrinsics: NDArray[np.float64]  # [3, 3], the given ones or else the predicted
    depth: NDArray[np.float32]  # [h, w], along the optical axis, finite and positive
    confidence: NDArray[np.float32]  # [h, w], at least 1
    image: NDArray[np.uint8]  # [h, w, 3], RGB, read-only
    status: StepStatus
    predicted_points: NDArray[np.float32] | None = None  # [h, w, 3], first camera's frame; by the point head if it runs
    tracks: Tracks | None = None  # where the stream follows points
    resize: Resize | None = None  # how the camera's image became `image`; None: it is as it was
    descriptor: NDArray[np.float16] | None = None  # [cells, 64], what the encoder says of it, see `descriptor.py`
    segment: InSegment | None = None  # in a stream of segments

    def points_cam(self, stride: int = 1) -> NDArray[np.float32]:
        """Points [h, w, 3] in the camera's optical frame; stride: only those of every n-th row and column.

        Raises ValueError where depth was not asked for.
        """
        self._check_dense()
        if self.predicted_points is None:
            return geometry.unproject(self.depth, self.intrinsics, stride)
        return geometry.transform(geometry.inverse(self.T_first_cam), self.predicted_points[::stride, ::stride])

    def points_world(self) -> NDArray[np.float32]:
        """Points [h, w, 3] in the first camera's frame, which is the stream's world; raises as `points_cam`."""
        if self.predicted_points is None:
            return geometry.transform(self.T_first_cam, self.points_cam())
        return self.predicted_points

    def depth_image(self) -> Image.Image:
        """The depth in false colours, RGB [h, w]: blue is near, red is far; raises as `points_cam`.

        Near and far are the frame's own, without outliers (`pictures.SHOWN_PERCENTILES`).
        """
        self._check_dense()
        ends = pictures.shown_range(self.depth)
        return Image.fromarray(pictures.false_colour(self.depth, *ends, pictures.DEPTH_COLOURS)[..., :3])

    def cloud_image(self) -> Image.Image:
        """The points as seen from beside and above the camera, RGB [h, w], on white; raises as `points_cam`."""
        return Image.fromarray(pictures.cloud(self.points_cam(), self.image, self.intrinsics))

    def save_ply(self, path: str | Path, least_confidence: float = 0.0) -> None:
        """Writes the points into a file, binary PLY with colours, in the first camera's frame; raises as `points_cam`.

        least_confidence: points below it are left out. Raises OSError if the file cannot be written; an earlier one of
        that name stays then.
        """
        chosen = self.confidence >= least_confidence
        vertices = ply.vertices(self.points_world()[chosen], self.image[chosen])
        axes = "first camera (x right, y down, z forward); unit: the model's"
        write_whole(Path(path), ply.header(len(vertices), axes) + vertices.tobytes())

    def _repr_png_(self) -> bytes:
        """For notebooks: image, depth and cloud side by side, small ones enlarged."""
        shown = [self.image] + ([self.depth_image(), self.cloud_image()] if self.status.dense else [])
        times = max(1, pictures.LEAST_HEIGHT // len(self.image))
        return pictures.png(np.hstack([np.asarray(picture) for picture in shown]).repeat(times, 0).repeat(times, 1))

    def _check_dense(self) -> None:
        if not self.status.dense:
            raise ValueError("the frame has no points, since its depth was not computed: set dense to always")

    def tracked_points(self) -> NDArray[np.float32]:
        """Where the tracks' points are in the first camera's frame, [N, 3]; not a number where they are not visible.

        Raises ValueError where no points are followed, and as `points_cam`.
        """
        tracks = self.tracks
        if tracks is None:
            raise ValueError("the stream follows no points: set track_groups above 0 at its start")
        column, row = np.rint(tracks.pixels).astype(int).T
        height, width = self.depth.shape
        inside = tracks.visible & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        points = np.full((len(tracks.ids), 3), np.nan, np.float32)
        points[inside] = self.points_world()[row[inside], column[inside]]
        return points
