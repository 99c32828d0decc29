# SPDX-License-Identifier: Apache-2.0
"""The camera head's cache: whole frames, the first and most often the newest, one key per refinement pass."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Protocol

import torch
from torch import Tensor

from xsvggt_ros.cache.shape import CacheShape, Layout
from xsvggt_ros.config import CacheConfig


class Kernel(Protocol):
    """softmax(q k^T / sqrt(d) + bias) v of q [B, T, heads, d], k and v [B, N, heads, d], bias [heads, N]."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor: ...


Keeps = Callable[[list[int], int], list[int]]
"""Of the numbers of frames, ascending, those that stay, at most so many."""


def first_and_newest(frames: list[int], count: int) -> list[int]:
    """As Keeps."""
    return frames if len(frames) <= count else [frames[0], *frames[len(frames) - count + 1 :]]


def camera_frames(config: CacheConfig) -> int:
    """Frames there is room for: first, window, and those being computed."""
    return 1 + config.camera_window + config.chunk


def camera_layout(shape: CacheShape, frames: int) -> Layout:
    """Of the keys and values of a number of frames, one entry per pass."""
    entry = (shape.camera_heads, shape.camera_head_dim)
    return {"camera": ((shape.camera_blocks, 2, frames, shape.camera_iterations, *entry), shape.camera_dtype)}


class CameraCache:
    """Frame slots lie one after the other; the frames being computed always use those after the last.

    Once the window is full, a finished frame moves from there over one that leaves, so that what a query may
    see is always a prefix of the buffer.
    """

    def __init__(self, shape: CacheShape, config: CacheConfig, device: torch.device, kernel: Kernel):
        self.shape = shape
        self.window = config.camera_window
        self.passes = config.camera_passes
        self.chunk = config.chunk
        self.device = device
        self.kernel = kernel
        self.numbers: list[int] = []  # which frame each slot holds, of those finished and kept
        self._seen = 0  # frames, so far
        self._done = [0] * shape.camera_blocks  # passes of the frames being computed, per block
        self.buffer = self._allocate(camera_frames(config))  # [blocks, 2, frames, passes, heads, d]

    @property
    def frames(self) -> int:
        """Finished and kept."""
        return len(self.numbers)

    @property
    def full(self) -> bool:
        """Whether a frame leaves for each that comes."""
        return 0 < self.window < self.frames

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One trunk block's queries in one pass, of all frames being computed, [1, S, heads, d].

        They see each other. Of earlier frames they see all passes and of their own those so far, as published,
        or everywhere the same pass only, as in a whole sequence (`passes`: shared, apart).
        """
        done = self._done[layer]
        entries = self.buffer[layer, :, : self.frames + q.shape[1]]  # [2, frames, passes, heads, d]
        entries[:, self.frames :, done] = torch.cat([k, v])
        self._done[layer] += 1
        if self.passes == "apart":
            keys, values = entries[:, :, done]
        elif q.shape[1] == 1:  # what it sees lies in one piece
            keys, values = entries.flatten(1, 2)[:, : self.frames * self.shape.camera_iterations + done + 1]
        else:
            past, new = entries[:, : self.frames], entries[:, self.frames :, : done + 1]
            keys, values = torch.cat([past.flatten(1, 2), new.flatten(1, 2)], 1)
        return self.kernel(q, keys[None], values[None])

    def added(self, layer: int, scale: Tensor, residual: Tensor) -> None:
        """What a block's MLP adds is of no interest here."""

    def end_frames(self, count: int, keeps: Keeps = first_and_newest) -> None:
        """Keeps the `count` frames just computed, and in a full window as many of all as there is room for."""
        numbers = [*self.numbers, *range(self._seen, self._seen + count)]
        if not self.window and len(numbers) + self.chunk > self._capacity:
            self._rebuild(2 * self._capacity, range(len(numbers)))
        self.numbers, self._seen = numbers, self._seen + count
        if self.window:
            self._prune(set(keeps(sorted(numbers), 1 + self.window)))
        self._done = [0] * self.shape.camera_blocks

    def abandon_frames(self) -> None:
        """Forgets what there is of the frames being computed."""
        self._done = [0] * self.shape.camera_blocks

    def reconfigured(self, config: CacheConfig, keeps: Keeps = first_and_newest) -> CameraCache:
        """One of other settings that takes over from this one; what a smaller window keeps is up to `keeps`."""
        other, numbers = copy(self), sorted(self.numbers)
        kept = keeps(numbers, 1 + config.camera_window) if config.camera_window else numbers
        frames = max(camera_frames(config), len(kept) + config.chunk)
        if frames != self._capacity or kept != numbers:
            other._rebuild(frames, [self.numbers.index(number) for number in kept])
            other.numbers = kept
        other.window, other.chunk, other.passes = config.camera_window, config.chunk, config.camera_passes
        return other

    def _prune(self, kept: set[int]) -> None:
        """Moves the frames of these numbers to the first slots."""
        numbers, room = self.numbers, len(kept)
        holes = [slot for slot in range(room) if numbers[slot] not in kept]
        beyond = [slot for slot in range(room, len(numbers)) if numbers[slot] in kept]
        for hole, slot in zip(holes, beyond, strict=True):
            self.buffer[:, :, hole].copy_(self.buffer[:, :, slot])
            numbers[hole] = numbers[slot]
        del numbers[room:]

    def _allocate(self, frames: int) -> Tensor:
        size, dtype = camera_layout(self.shape, frames)["camera"]
        return torch.zeros(size, dtype=dtype, device=self.device)

    @property
    def _capacity(self) -> int:
        return self.buffer.shape[2]

    def _rebuild(self, frames: int, kept: list[int] | range) -> None:
        """Moves some frames to a buffer with room for `frames`; nothing has changed if there is no memory for it."""
        buffer = self._allocate(frames)
        for slot, old in enumerate(kept):
            buffer[:, :, slot].copy_(self.buffer[:, :, old])
        self.buffer = buffer
