# SPDX-License-Identifier: Apache-2.0
"""Memory: its unit, how much of it is in reach, and the one error that says there was not enough."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import clear_frames
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MIB = 2**20
# What torch, its allocators and CUDA's libraries say in a RuntimeError.
NO_MEMORY = ("out of memory", "DefaultCPUAllocator", "bad_alloc", "ALLOC_FAILED")

M_ARENA_MAX = -8  # of glibc's malloc.h
MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


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


def memory_in_reach(device: torch.device, held: int = 0) -> int:
    """Bytes that what holds `held` bytes now may come to.

    Of a CPU's memory what is free, and that, since a system kills who takes more; of a GPU's all, whoever uses it now,
    since it refuses what is not there.
    """
    if device.type == "cuda":
        import torch  # which those that only need a unit do not wait for

        return torch.cuda.mem_get_info(device)[1]
    return held + min([_free(), *_cgroups_leave()])


def _free() -> int:
    """Of the machine; where it does not tell (it is no Linux), all."""
    try:
        (line,) = (line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroups_leave() -> Iterator[int]:
    """Of the control groups (v2) that this process is in, as containers and systemd set them."""
    try:
        own = next(line for line in OWN_CGROUP.read_text().splitlines() if line.startswith("0::/"))
    except (OSError, StopIteration):  # another system, or v1
        return
    group = CGROUPS / own.removeprefix("0::/")
    for folder in (group, *group.parents):
        try:
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            cached = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield limit - used + next(int(size) for name, size in cached if name == "inactive_file")
        except (OSError, ValueError, StopIteration):  # none is set: "max"
            continue


def keep_one_heap() -> None:
    """Keeps threads from having heaps of their own, which `give_back` cannot empty. Call it before any is started.

    Of those glibc's malloc_trim leaves what is free at the end: up to 50 MiB after a few rounds of the demo model, 0
    where all share the main one. A heap that a library's thread has by then is used by later threads as well.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_ARENA_MAX, 1)


def give_back() -> None:
    """Returns to the system what allocators keep of freed memory, for its next use."""
    gc.collect()
    trim_heap()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        torch.cuda.empty_cache()


def trim_heap() -> None:
    """Of give_back what glibc keeps: pieces below some 32 MiB stay in its heaps, and holes between others with them."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
