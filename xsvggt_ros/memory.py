# SPDX-License-Identifier: Apache-2.0
"""Memory: its unit, and the one error that says there was not enough of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import clear_frames

MIB = 2**20
# What torch, its allocators and CUDA's libraries say in a RuntimeError.
NO_MEMORY = ("out of memory", "DefaultCPUAllocator", "bad_alloc", "ALLOC_FAILED")


class OutOfMemory(MemoryError):
    """There was no memory. Says what was given up for it, or what to lower."""


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that there was no memory, on the device or on the host."""
    if isinstance(error, RuntimeError):
        return any(phrase in str(error) for phrase in NO_MEMORY)
    return isinstance(error, MemoryError)


@contextmanager
def memory_for(say: str | Callable[[BaseException], str]) -> Iterator[None]:
    """Turns a shortage inside into an OutOfMemory, and lets every other error pass as it is.

    `say` is what it says, or gives that for the shortage: it is called once all that the failed work held is let
    go, and may itself need memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        _let_go(error)
        raise OutOfMemory(say if isinstance(say, str) else say(error)) from None


def _let_go(error: BaseException | None) -> None:
    """Frees what the failed calls held: an error's traceback keeps their local variables alive."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__context__
