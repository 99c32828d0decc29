# SPDX-License-Identifier: Apache-2.0
"""A segment to come: it takes images in beside the one that serves, a part of a step at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from numpy.typing import NDArray

from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array
from xsvggt_ros.memory import memory_for
from xsvggt_ros.parts import Parts, pace
from xsvggt_ros.segments.join import Shared
from xsvggt_ros.segments.refine import Refiner

Begin = Callable[[NDArray, Array], Parts[Frame]]


class Builder:
    """Fills a fresh cache: with a keyframe, if it begins at one, then with images that the serving segment has too.

    begin: starts the step of an image with its intrinsics, to be done in so many parts. wanted: how many images both
    segments are to share. refines: whether poses and depth are, by what images show.
    """

    def __init__(
        self,
        begin: Begin,
        key: int | None,
        image: tuple[NDArray, Array] | None,
        parts: int,
        wanted: int,
        refines: bool,
    ) -> None:
        self.key = key  # of the keyframe that the segment begins at; None: at the first image that it shares
        self.first: Frame | None = None  # of the segment
        self.shared: Shared = []
        self.refiner: Refiner | None = None  # of the segment's frames
        self._begin = begin
        self._image = image
        self._step: Parts[Frame] | None = None
        self._serving: Frame | None = None  # as the serving segment has the image of the step at hand
        self._taken = -1  # index of that
        self._parts = parts  # of a step
        self._wanted = wanted
        self._refines = refines

    @property
    def ready(self) -> bool:
        """Whether both segments have what they are to share. Nothing is begun then that would be cut short."""
        return len(self.shared) >= self._wanted

    @torch.inference_mode()
    def advance(self, frame: Frame, work: float, until: float) -> None:
        """What `pace` allows, while the serving segment is at this frame. Raises as a step does."""
        with memory_for("no memory for a new segment"):
            for _ in pace(self._parts, work, until):
                if self._step is None and not self._take(frame):
                    return
                self._go_on()

    def _take(self, frame: Frame) -> bool:
        """The next image; whether there is one."""
        if self._image is not None:
            self._step, self._serving, self._image = self._begin(*self._image), None, None
        elif frame.index > self._taken and not self.ready:
            self._step, self._serving, self._taken = self._begin(frame.image, frame.intrinsics), frame, frame.index
        return self._step is not None

    def _go_on(self) -> None:
        assert self._step is not None
        try:
            next(self._step)
        except StopIteration as end:
            self._step = None
            frame = self._refined(end.value)
            if self._serving is not None:
                self.shared.append((self._serving, frame))

    def _refined(self, frame: Frame) -> Frame:
        if self.first is None:
            self.first, self.refiner = frame, Refiner(frame) if self._refines else None
            return frame
        return self.refiner(frame) if self.refiner else frame
