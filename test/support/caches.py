# SPDX-License-Identifier: Apache-2.0
"""Caches of small models, and memory that ends."""

import math

import torch
from torch.overrides import TorchFunctionMode

from xsvggt_ros.cache import CacheShape, KVCache
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.model.attention import sdpa

CPU = torch.device("cpu")


def shape_of(tokens_per_frame: int, layers: int = 2, dtype: torch.dtype = torch.float32, heads: int = 2) -> CacheShape:
    return CacheShape(
        layers=layers,
        heads=heads,
        head_dim=64,
        tokens_per_frame=tokens_per_frame,
        specials=5,
        grid=grid_of(tokens_per_frame - 5),
        camera_blocks=2,
        camera_heads=2,
        camera_head_dim=32,
        camera_iterations=4,
        dtype=dtype,
        camera_dtype=torch.float32,
    )


def grid_of(patches: int) -> tuple[int, int]:
    """The squarest there is."""
    rows = next(r for r in range(math.isqrt(max(1, patches)), 0, -1) if patches % r == 0)
    return rows, patches // rows


def cache_of(
    shape: CacheShape, config: CacheConfig, device: torch.device = CPU, kind: type[KVCache] = KVCache
) -> KVCache:
    return kind(shape, config, device, sdpa, sdpa)


class Shortage(TorchFunctionMode):
    """There is no memory for the n-th torch call made under it, counted from 0, nor for later ones if `lasting`."""

    def __init__(self, at: int | None = None, lasting: bool = False):
        super().__init__()
        self.at, self.lasting, self.calls = at, lasting, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        call, self.calls = self.calls, self.calls + 1
        if self.at is not None and (call == self.at or (self.lasting and call > self.at)):
            raise torch.OutOfMemoryError(f"CUDA out of memory in {func}")
        return func(*args, **(kwargs or {}))
