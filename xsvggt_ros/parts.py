# SPDX-License-Identifier: Apache-2.0
"""Work in parts, between which other things may be done: a generator that yields at their ends."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
Parts = Generator[None, None, T]


LEAST = 0.1  # of a step with each image, whatever the time: or else the camera is out of sight before a step is done


def pace(count: int, work: float, until: float) -> Iterator[None]:
    """Once for each part that may be done now of a step of so many: a share of them, and after LEAST only until a time.

    until: seconds of `time.monotonic`.
    """
    least, most = (max(1, round(share * count)) for share in (LEAST, work))
    for done in range(most):
        if done >= least and time.monotonic() >= until:
            return
        yield


def whole(parts: Parts[T]) -> T:
    """All of it at once; returns its result."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            return end.value
