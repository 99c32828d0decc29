# SPDX-License-Identifier: Apache-2.0
"""Messages in order of their stamps, in which frames look up their own time."""

from __future__ import annotations

from bisect import bisect_left
from operator import itemgetter
from typing import Generic, TypeVar

T = TypeVar("T")

LATE_NS = 1_000_000_000  # a stamp further behind the newest is of a clock that went back, not of a late message


class Timeline(Generic[T]):
    """The newest `length` values by stamp, nanoseconds. They may come late and in any order."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._values: list[tuple[int, T]] = []

    def add(self, stamp_ns: int, value: T) -> None:
        """Puts a value in its place, or in that of the same stamp. One from long ago starts the timeline anew."""
        if self._values and stamp_ns < self._values[-1][0] - LATE_NS:
            self._values.clear()
        self._values[self._first(stamp_ns) : self._first(stamp_ns + 1)] = [(stamp_ns, value)]
        del self._values[: -self._length]

    def reaches(self, stamp_ns: int) -> bool:
        """Whether a value of that time or a later one has come."""
        return bool(self._values) and self._values[-1][0] >= stamp_ns

    def around(self, stamp_ns: int) -> list[tuple[int, T]]:
        """The last value before that time and the first at it or after it, those that there are, with their stamps."""
        after = self._first(stamp_ns)
        return self._values[max(after - 1, 0) : after + 1]

    def forget_before(self, stamp_ns: int) -> None:
        """Forgets what is `around` no time from this one on."""
        del self._values[: max(self._first(stamp_ns) - 1, 0)]

    def _first(self, stamp_ns: int) -> int:
        """Index of the first value at that time or after it."""
        return bisect_left(self._values, stamp_ns, key=itemgetter(0))
