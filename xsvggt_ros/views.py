# SPDX-License-Identifier: Apache-2.0
"""How many distinct views of its scene a stream has had: what a cache may need room for."""

from __future__ import annotations

import numpy as np

from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array

TURN = np.radians(15.0)  # beyond which another part of the scene is seen
MOTION = 0.15  # of a view's median depth, beyond which the same part is seen from elsewhere
MOST = 1000  # that are counted: more than a cache will hold frames


class Views:
    """Counts the frames whose camera has turned by more than TURN, or moved by more than MOTION, since every other."""

    def __init__(self) -> None:
        self._T_first_cam = np.empty((0, 4, 4))
        self._depth = np.empty(0)  # medians

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._depth)

    def add(self, frame: Frame) -> None:
        """Takes a frame of the same world, and counts it if it is a new view; without a depth, as deep as the last."""
        if self.count == MOST or self._seen(frame.T_first_cam).any():
            return
        self._T_first_cam = np.concatenate([self._T_first_cam, frame.T_first_cam[None]])
        self._depth = np.append(self._depth, np.median(frame.depth) if frame.status.dense else self._depth[-1])

    def _seen(self, T_first_cam: Array) -> Array:
        """Of each view, bool [N], whether a camera there sees what it saw."""
        R, t = self._T_first_cam[:, :3, :3], self._T_first_cam[:, :3, 3]
        cosine = (np.einsum("nij,ij->n", R, T_first_cam[:3, :3]) - 1) / 2  # of the angle between, from the trace
        moved = np.linalg.norm(t - T_first_cam[:3, 3], axis=-1)
        return (cosine >= np.cos(TURN)) & (moved <= MOTION * self._depth)
