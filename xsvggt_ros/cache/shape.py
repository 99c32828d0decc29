# SPDX-License-Identifier: Apache-2.0
"""The sizes of what is cached."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""{name: (shape, dtype)} of tensors."""


@dataclass(frozen=True)
class CacheShape:
    """The model's sizes that the cache depends on."""

    layers: int
    heads: int
    head_dim: int
    tokens_per_frame: int
    specials: int
    grid: tuple[int, int]  # rows and columns of a frame's patches, which follow its special tokens
    camera_blocks: int
    camera_heads: int
    camera_head_dim: int
    camera_iterations: int
    dtype: torch.dtype
    camera_dtype: torch.dtype
    beside_nbytes: int = 0  # of what a stream keeps beside the cache, which budget_mib holds for too

    @property
    def width(self) -> int:
        """Channels of a token, of the encoder's too."""
        return self.heads * self.head_dim


def nbytes(tensors: Layout) -> int:
    """Bytes of all of them."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors.values())
