# SPDX-License-Identifier: Apache-2.0
"""The points of all frames so far, thinned so that there are never more than there may be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BITS = 21  # of a voxel's number along each axis
REACH = 2 ** (BITS - 1)  # voxels from the origin, beyond which points are left out


class GrowingCloud:
    """One point at most in each voxel, the first that came. Where points are too many voxels get twice as large.

    `points` [N, 3] float32 and `colors` [N, 3] uint8 are replaced by others when points come, never written to.
    side: of a voxel; 0 before the first point.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """The next points are the first of another world."""
        self.points = np.empty((0, 3), np.float32)
        self.colors = np.empty((0, 3), np.uint8)
        self._taken = np.empty(0, np.int64)  # voxels that have a point, sorted
        self.side = 0.0

    def add(self, points: NDArray[np.float32], colors: NDArray[np.uint8], side: float, most: int) -> int:
        """Adds points [N, 3], and keeps no more than `most` of all; the index from which on `points` has changed.

        side: of a voxel, for the first points of a world. Points that are no numbers are left out.
        """
        self.side = self.side or side
        before = len(self.points)
        reachable = np.abs(points).max(1, initial=0) < REACH * self.side  # which no NaN is
        points, colors = points[reachable], colors[reachable]
        voxels, first = np.unique(self._voxels(points), return_index=True)
        place = np.searchsorted(self._taken, voxels)
        new = np.append(self._taken, -1)[place] != voxels
        self._taken = np.insert(self._taken, place[new], voxels[new])
        self.points = np.concatenate([self.points, points[first[new]]])
        self.colors = np.concatenate([self.colors, colors[first[new]]])
        while len(self.points) > most:
            self._thin()
            before = 0
        return before

    def _thin(self) -> None:
        self.side *= 2
        self._taken, first = np.unique(self._voxels(self.points), return_index=True)
        kept = np.sort(first)
        self.points, self.colors = self.points[kept], self.colors[kept]

    def _voxels(self, points: NDArray[np.float32]) -> NDArray[np.int64]:
        """The number of the voxel that each point is in, [N], not negative."""
        x, y, z = (np.floor(points / self.side).astype(np.int64) + REACH).T
        return (x << 2 * BITS) | (y << BITS) | z
