# SPDX-License-Identifier: Apache-2.0
"""Frames in metres."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import rigid


class MetricTrack:
    """Frames of one world after the other in metres, on a path that does not jump when the scale changes.

    Every step is scaled by the scale of its time, and a position is the sum of the steps up to it: what has been
    published stays true. Depth and points have the frame's own scale.
    """

    def __init__(self) -> None:
        self._units = np.zeros(3)  # where the last frame was, in the stream's world
        self._metres = np.zeros(3)  # and where it was put

    def metric(self, frame: Frame, scale: float) -> Frame:
        """The frame, which is in the model's unit, in metres; scale: metres per unit.

        The first step is that from the origin of the world, which a frame of index 0 starts. Frames may be left out.
        """
        if frame.index == 0:
            self._units = self._metres = np.zeros(3)
        units = frame.T_first_cam[:3, 3]
        metres = self._metres + scale * (units - self._units)
        self._units, self._metres = units, metres
        points = frame.predicted_points
        if points is not None:
            points = (scale * (points - units) + metres).astype(points.dtype)
        T_first_cam = rigid(frame.T_first_cam[:3, :3], metres)
        return replace(frame, T_first_cam=T_first_cam, depth=frame.depth * np.float32(scale), predicted_points=points)
