# SPDX-License-Identifier: Apache-2.0
"""The camera head's cache: first frame and a window of the most recent, one key per iteration."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from xsvggt_ros.cache.shape import CacheShape, Layout
from xsvggt_ros.config import CacheConfig

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]  # softmax attention of q [B, T, heads, d] to k and v


def camera_frames(config: CacheConfig) -> int:
    """Frames there is room for: first, window, and the one being computed."""
    return 2 + config.camera_window


def camera_layout(shape: CacheShape, frames: int) -> Layout:
    """Of the keys and values of a number of frames, one entry per iteration."""
    slots = frames * shape.camera_iterations
    size = (shape.camera_blocks, 2, slots, shape.camera_heads, shape.camera_head_dim)
    return {"camera": (size, shape.camera_dtype)}


class CameraCache:
    """Frame slots lie one after the other; the frame being computed always uses the one after the last.

    Once the window is full, a finished frame moves from there over the oldest, so that what a query may
    see is always a prefix of the buffer.
    """

    def __init__(self, shape: CacheShape, config: CacheConfig, device: torch.device, kernel: Kernel):
        self.shape = shape
        self.window = config.camera_window
        self.device = device
        self.kernel = kernel
        self.frames = 0  # finished and kept
        self._oldest = 1  # slot of the oldest frame but the first
        self._entries = [0] * shape.camera_blocks  # of the frame being computed, per block
        self.buffer = self._allocate(camera_frames(config))  # [blocks, 2, slots, heads, d]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One trunk block's query in one iteration, to everything so far, its own key included: [1, 1, heads, d]."""
        end = self.frames * self.shape.camera_iterations + self._entries[layer]
        self.buffer[layer, 0, end] = k[0, 0]
        self.buffer[layer, 1, end] = v[0, 0]
        self._entries[layer] += 1
        keys, values = self.buffer[layer, :, : end + 1]
        return self.kernel(q, keys[None], values[None])

    def end_frames(self, count=1, leaving=None) -> None:
        """Keeps the frame just computed."""
        if not self.window and self.frames + 1 == self._capacity:
            self._rebuild(2 * self._capacity, range(self.frames + 1))
        elif not self.window or self.frames <= self.window:
            self.frames += 1
        else:
            self._frame(self.buffer, self._oldest).copy_(self._frame(self.buffer, self.frames))
            self._oldest = self._oldest % self.window + 1
        self._entries = [0] * self.shape.camera_blocks

    def abandon_frames(self) -> None:
        """Forgets what there is of the frame being computed."""
        self._entries = [0] * self.shape.camera_blocks

    def reconfigure(self, config: CacheConfig) -> None:
        """Takes over a new window; the first and the newest frames stay."""
        if config.camera_window == self.window:
            return
        oldest_first = [(self._oldest - 1 + i) % max(1, self.frames - 1) + 1 for i in range(self.frames - 1)]
        kept = oldest_first[-config.camera_window :]  # a window of 0 keeps them all
        self._rebuild(max(camera_frames(config), len(kept) + 2), [0, *kept] if self.frames else [])
        self.window = config.camera_window

    def _allocate(self, frames: int) -> Tensor:
        size, dtype = camera_layout(self.shape, frames)["camera"]
        return torch.zeros(size, dtype=dtype, device=self.device)

    @property
    def _capacity(self) -> int:
        return self.buffer.shape[2] // self.shape.camera_iterations

    def _frame(self, buffer: Tensor, slot: int) -> Tensor:
        """Of one frame [blocks, 2, iterations, heads, d]."""
        iterations = self.shape.camera_iterations
        return buffer[:, :, slot * iterations : (slot + 1) * iterations]

    def _rebuild(self, frames: int, kept: list[int] | range) -> None:
        """Moves some frames to a buffer with room for `frames`; nothing has changed if there is no memory for it."""
        buffer = self._allocate(frames)
        for slot, old in enumerate(kept):
            self._frame(buffer, slot).copy_(self._frame(self.buffer, old))
        self.buffer = buffer
        self.frames, self._oldest = len(kept), 1
