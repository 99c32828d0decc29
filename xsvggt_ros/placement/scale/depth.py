# SPDX-License-Identifier: Apache-2.0
"""The scale from depth: what a depth camera measures, over what the stream says of the same pixels."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.config import PATCH_SIZE, ScaleConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array
from xsvggt_ros.placement.scale.ratio import KEPT, RunningRatio
from xsvggt_ros.placement.timeline import Timeline
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.status import ScaleStatus

NEAR_NS = 50_000_000  # between a frame's stamp and its depth image's
SAMPLES = 10_000  # of a depth image kept, at most; a median needs no more, and many images can then wait
LEAST_SAMPLES = 100  # valid ones that make a measurement
IMAGES = 300  # kept, 10 s at 30 Hz
FRAMES = 10  # that wait for their depth image

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DepthSamples:
    """Every `stride`-th row and column of a depth image that covers the camera image's field of view."""

    depth: NDArray[np.float32]  # [n, m], metres along the optical axis
    stride: int
    height: int  # of the whole image
    width: int

    @classmethod
    def of(cls, depth: NDArray[np.float32]) -> DepthSamples:
        """Of an image [H, W] of any resolution, metres along the optical axis; 0 or NaN: no depth there."""
        stride = max(1, int(np.ceil(np.sqrt(depth.size / SAMPLES))))
        return cls(depth[::stride, ::stride].copy(), stride, *depth.shape)

    def over(self, frame: Frame) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """The samples [N] that the frame sees too, and its depth and confidence at the pixels nearest to them.

        Raises ValueError if the images' fields of view cannot be the same.
        """
        height, width = frame.depth.shape
        resize = Resize.of(self.height, self.width, width, PATCH_SIZE)
        if resize.height != height:
            raise ValueError(
                f"a reference depth image of {self.width}x{self.height} does not show what the camera image does: "
                "send depth that is registered to the camera"
            )
        rows, columns = self.stride * np.indices(self.depth.shape) + 0.5  # [n, m] each, from the image's corner
        row = (rows * resize.scale_y).astype(int) - resize.top
        column = (columns * resize.scale_x).astype(int)
        seen = (row >= 0) & (row < height)
        at = row[seen], column[seen]
        return self.depth[seen], frame.depth[at], frame.confidence[at]


class ReferenceDepth:
    """The scale from depth images in metres, registered to the camera (source depth).

    A measurement is the median ratio over one image's pixels that have a depth there and, here, at least the frame's
    median confidence. Frames wait for the first depth image of their time or later; of those around it the nearer one
    counts.
    """

    def __init__(self) -> None:
        self._images: Timeline[DepthSamples] = Timeline(IMAGES)
        self._warned = False
        self.reset()

    def reset(self) -> None:
        """Forgets what was measured; depth images, whose unit does not change, are kept."""
        self._ratios = RunningRatio()
        self._waiting: list[tuple[int, Frame, float]] = []  # and what the unit has grown by since

    def rescale(self, factor: float) -> None:
        """As ScaleSource."""
        self._ratios.rescale(factor, keep=KEPT)
        self._waiting = [(stamp, frame, before * factor) for stamp, frame, before in self._waiting]

    def add_depth(self, stamp_ns: int, samples: DepthSamples) -> None:
        """Takes a depth image."""
        self._images.add(stamp_ns, samples)

    def update(self, frame: Frame, stamp_ns: int, T_base_cam: Array | None, config: ScaleConfig) -> ScaleStatus:
        """Takes a frame in the model's unit."""
        if len(self._waiting) < FRAMES:  # else this one is left out: were it the oldest, late depth would never do
            self._waiting.append((stamp_ns, frame, 1.0))
        while self._waiting and self._images.reaches(self._waiting[0][0]):
            self._measure(*self._waiting.pop(0))
        return self._ratios.status(config)

    def _measure(self, stamp_ns: int, frame: Frame, grown: float) -> None:
        self._images.forget_before(stamp_ns)
        stamp, samples = min(self._images.around(stamp_ns), key=lambda image: abs(image[0] - stamp_ns))
        if abs(stamp - stamp_ns) > NEAR_NS:
            return
        try:
            metres, units, confidence = samples.over(frame)
        except ValueError as error:
            if not self._warned:
                logger.warning("%s", error)
            self._warned = True
            return
        valid = np.isfinite(metres) & (metres > 0) & (confidence >= np.median(frame.confidence))
        if valid.sum() >= LEAST_SAMPLES:
            self._ratios.add(grown * float(np.median(metres[valid] / units[valid])))
