# SPDX-License-Identifier: Apache-2.0
"""Whether the camera was carried elsewhere from one image to the next, without a pause."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.descriptor import centre, shifted_likeness
from xsvggt_ros.frame import Frame

BY = 0.2  # by which images before and after are more alike than those between which the camera was carried
# Pairs of the last four images: on either side of the change, and across it. That all of these are unlike tells it from
# one image that is spoiled, and that those are alike from a camera that moves fast.
BESIDES, ACROSS = ((0, 1), (2, 3)), ((1, 2), (1, 3), (0, 2))


class Watch:
    """Looks at frames one after the other; knows of a change of place when the second image of the new one has come."""

    def __init__(self) -> None:
        self._seen: deque[NDArray[np.float16]] = deque(maxlen=4)  # descriptors of the newest frames
        self._newest = -1  # index of the last one

    def forget(self) -> None:
        """The next frame is not to be compared with those before."""
        self._seen.clear()

    def carried(self, frame: Frame, most: float) -> bool:
        """Takes the next frame in; whether the camera was carried elsewhere between the two before the last.

        most: likeness of images across the change; 0: never.
        """
        assert frame.descriptor is not None
        if frame.index != self._newest + 1:
            self.forget()
        self._newest = frame.index
        self._seen.append(frame.descriptor)
        if not most or len(self._seen) < 4:
            return False
        described = np.stack(self._seen)
        seen = centre(described, described.mean((0, 1), dtype=np.float64))
        first, second = np.transpose(BESIDES + ACROSS)
        likeness = shifted_likeness(seen[first], seen[second])
        across = likeness[len(BESIDES) :].max()
        return bool(across < min(most, likeness[: len(BESIDES)].min() - BY))
