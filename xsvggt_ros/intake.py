# SPDX-License-Identifier: Apache-2.0
"""Which images the cache takes in: all, or those whose view is new."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.config import CacheConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array


class Intake:
    """Tells by the poses so far, before anything of an image is computed: on a GPU the host need not wait for it.

    The camera is taken to go on as it did between its last two frames, so that one that moves fast is not a frame late.
    """

    def __init__(self) -> None:
        self._taken: Array | None = None  # T_first_cam [4, 4] of the newest frame that was taken in, and
        self._depth: NDArray[np.floating] = np.array(np.nan)  # the median depth there, or what that is of
        self._before: Array | None = None  # T_first_cam of the newest frames
        self._now: Array | None = None

    def due(self, config: CacheConfig) -> bool:
        """Whether the next image is to be taken in; it is as long as no motion is known."""
        if config.intake == "every" or self._taken is None or self._now is None or self._before is None:
            return True
        ahead = self._apart(self._taken, self._now) + self._apart(self._before, self._now)
        return ahead >= config.intake_degrees

    def add(self, frame: Frame, taken_in: bool) -> None:
        """The next frame of the same world. Where it has no depth, that of the last one that had is taken for it."""
        self._before, self._now = self._now, frame.T_first_cam
        if taken_in:
            self._taken = frame.T_first_cam
            self._depth = frame.depth if frame.status.dense else self._depth

    def _apart(self, a: Array, b: Array) -> float:
        """Degrees by which the view turns, and by which what lies at that median depth shifts, both together."""
        cosine = (np.sum(a[:3, :3] * b[:3, :3]) - 1) / 2  # of the angle between, from the trace
        self._depth = np.median(self._depth, keepdims=True)  # takes milliseconds: not before it is asked for
        shift = np.arctan2(np.linalg.norm(a[:3, 3] - b[:3, 3]), self._depth.item())
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1)) + shift))
