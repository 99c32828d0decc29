# SPDX-License-Identifier: Apache-2.0
"""Work in parts, between which other things may be done: a generator that yields at their ends."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Parts = Generator[None, None, T]


def whole(parts: Parts[T]) -> T:
    """All of it at once; returns its result."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            return end.value
