# SPDX-License-Identifier: Apache-2.0
"""What holds the unit: a stream of some of the images, beside the segments.

A segment knows its unit by its first images, to a few hundredths, and errors add up from join to join. One long stream
loses its way, but hardly its unit, and it need not see every image for that.
"""

from __future__ import annotations

import numpy as np
import torch

from xsvggt_ros.frame import Frame
from xsvggt_ros.memory import memory_for
from xsvggt_ros.parts import Parts, pace
from xsvggt_ros.stream import GeometryStream


class Ruler:
    """Measures units of segments in that of the one it began with."""

    def __init__(self, stream: GeometryStream, key: int, first: Frame) -> None:
        self.key = key  # of the keyframe that it began with, at the frame `first` of the segment that begins there
        self.stream = stream
        self.looks = 0  # how many images it was given
        self._parts = stream.model.part_count
        self._step: Parts[Frame] | None = None
        self._depth = first.depth  # as the segment that serves has the image of that step
        stream.reset()
        stream.allocate(*first.depth.shape)
        self.look(first)

    @property
    def busy(self) -> bool:
        return self._step is not None

    def look(self, frame: Frame) -> None:
        """Takes a frame of the segment that serves; not while it is busy."""
        assert not self.busy
        self.looks += 1
        self._depth, self._step = frame.depth, self.stream.step_parts(frame.image, frame.intrinsics)

    def goes_on(self, units: float) -> None:
        """The next segment serves from now on: its unit is so many of the one's before."""
        self._depth = self._depth / np.float32(units)

    @torch.inference_mode()
    def advance(self, work: float, until: float) -> float | None:
        """What `pace` allows; how many of its units the segment's is, once it is known. Raises as a step does."""
        with memory_for("no memory to compare units"):
            for _ in pace(self._parts, work, until):
                if self._step is None:
                    return None
                try:
                    next(self._step)
                except StopIteration as end:
                    self._step = None
                    return float(np.median(end.value.depth / self._depth))
        return None
