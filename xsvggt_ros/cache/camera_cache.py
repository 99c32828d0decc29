# SPDX-License-Identifier: Apache-2.0
"""The camera head's cache: first frame and a window of the most recent, one key per refinement pass."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from xsvggt_ros.cache.shape import CacheShape, Layout
from xsvggt_ros.config import CacheConfig


class Kernel(Protocol):
    """softmax(q k^T / sqrt(d) + bias) v of q [B, T, heads, d], k and v [B, N, heads, d], bias [heads, N]."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor: ...


def camera_frames(config: CacheConfig) -> int:
    """Frames there is room for: first, window, and those being computed."""
    return 1 + config.camera_window + config.chunk


def camera_layout(shape: CacheShape, frames: int) -> Layout:
    """Of the keys and values of a number of frames, one entry per pass."""
    entry = (shape.camera_heads, shape.camera_head_dim)
    return {"camera": ((shape.camera_blocks, 2, frames, shape.camera_iterations, *entry), shape.camera_dtype)}


class CameraCache:
    """Frame slots lie one after the other; the frames being computed always use those after the last.

    Once the window is full, a finished frame moves from there over the oldest, so that what a query may
    see is always a prefix of the buffer.
    """

    def __init__(self, shape: CacheShape, config: CacheConfig, device: torch.device, kernel: Kernel):
        self.shape = shape
        self.window = config.camera_window
        self.passes = config.camera_passes
        self.chunk = config.chunk
        self.device = device
        self.kernel = kernel
        self.frames = 0  # finished and kept
        self._oldest = 1  # slot of the oldest frame but the first
        self._done = [0] * shape.camera_blocks  # passes of the frames being computed, per block
        self.buffer = self._allocate(camera_frames(config))  # [blocks, 2, frames, passes, heads, d]

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
        else:
            past, new = entries[:, : self.frames], entries[:, self.frames :, : done + 1]
            keys, values = torch.cat([past.flatten(1, 2), new.flatten(1, 2)], 1)
        return self.kernel(q, keys[None], values[None])

    def added(self, layer: int, scale: Tensor, residual: Tensor) -> None:
        """What a block's MLP adds is of no interest here."""

    def end_frames(self, count: int, leaving: Tensor | None = None) -> None:
        """Keeps the `count` frames just computed, in a full window over the oldest.

        leaving: one slot for each of them [count] that they take over instead.
        """
        first = self.frames
        if not self.window and first + count + self.chunk > self._capacity:
            self._rebuild(2 * self._capacity, range(first + count))
        for new in range(first, first + count):
            self._keep(new, None if leaving is None else leaving[new - first : new - first + 1])
        self._done = [0] * self.shape.camera_blocks

    def abandon_frames(self) -> None:
        """Forgets what there is of the frames being computed."""
        self._done = [0] * self.shape.camera_blocks

    def reconfigure(self, config: CacheConfig) -> None:
        """Takes over other settings; of a smaller window the first and the newest frames stay."""
        if (config.camera_window, config.chunk) != (self.window, self.chunk):
            oldest_first = [(self._oldest - 1 + i) % max(1, self.frames - 1) + 1 for i in range(self.frames - 1)]
            kept = oldest_first[-config.camera_window :]  # a window of 0 keeps them all
            frames = max(camera_frames(config), len(kept) + 1 + config.chunk)
            self._rebuild(frames, [0, *kept] if self.frames else [])
        self.window, self.chunk, self.passes = config.camera_window, config.chunk, config.camera_passes

    def _keep(self, new: int, leaving: Tensor | None) -> None:
        """Of the frame computed in slot `new`."""
        if not self.window or self.frames <= self.window:
            if new != self.frames:
                self.buffer[:, :, self.frames].copy_(self.buffer[:, :, new])
            self.frames += 1
        elif leaving is not None:
            self.buffer.index_copy_(2, leaving, self.buffer[:, :, new : new + 1])
        else:
            self.buffer[:, :, self._oldest].copy_(self.buffer[:, :, new])
            self._oldest = self._oldest % self.window + 1

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
        self.frames, self._oldest = min(self.frames, len(kept)), 1
