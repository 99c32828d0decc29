# SPDX-License-Identifier: Apache-2.0
"""What the cache's tensors are for a number of tokens, and how many tokens a budget therefore allows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from xsvggt_ros.cache.policies import Policy
from xsvggt_ros.cache.quantize import PARAMETER_DTYPE
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.memory import MIB

GROUP = 64  # tokens that share a key channel's scale and offset, at most

Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class CacheShape:
    """The model's sizes that the cache depends on."""

    layers: int
    heads: int
    head_dim: int
    tokens_per_frame: int
    specials: int
    camera_blocks: int
    camera_heads: int
    camera_head_dim: int
    camera_iterations: int
    dtype: torch.dtype
    camera_dtype: torch.dtype

    @property
    def groups_per_frame(self) -> int:
        return math.ceil(self.tokens_per_frame / GROUP)

    @property
    def group_size(self) -> int:
        """Tokens per group, such that a frame's groups are equally full."""
        return math.ceil(self.tokens_per_frame / self.groups_per_frame)


def key_groups(shape: CacheShape, policy: Policy, tokens: int) -> int:
    """Key groups that `tokens` may need, the first frame's and the incoming frame's included.

    A policy that keeps scattered tokens leaves groups partly empty: it gets `policy.fragmentation` times
    the room for the tokens between those two frames. KVCache says what happens when that is used up.
    """
    middle = max(0, tokens - 2 * shape.tokens_per_frame)
    spare = math.ceil(policy.fragmentation * shape.groups_per_frame * middle / shape.tokens_per_frame)
    return 2 * shape.groups_per_frame + spare + (middle > 0)


def layout(shape: CacheShape, config: CacheConfig, policy: Policy, tokens: int) -> Layout:
    """{name: (shape, dtype)} of every tensor that keeps `tokens` per layer."""
    slots = (shape.layers, tokens)
    per_head = (*slots, shape.heads)

    def codes(bits: int) -> tuple[tuple[int, ...], torch.dtype]:
        if bits == 16:
            return (*per_head, shape.head_dim), shape.dtype
        return (*per_head, shape.head_dim * bits // 8), torch.uint8

    found: Layout = {
        "keys": codes(config.key_bits),
        "values": codes(config.value_bits),
        "frame": (slots, torch.int32),
        "token": (slots, torch.int32),
        "query": ((shape.layers, shape.head_dim), torch.float32),
    }
    if config.key_bits < 16:
        groups = (shape.layers, key_groups(shape, policy, tokens), shape.heads, shape.head_dim)
        found |= {"group": (slots, torch.int32)}
        found |= {"key_scale": (groups, PARAMETER_DTYPE), "key_offset": (groups, PARAMETER_DTYPE)}
    if config.value_bits < 16:
        found |= {"value_scale": (per_head, PARAMETER_DTYPE), "value_offset": (per_head, PARAMETER_DTYPE)}
    return found


def camera_layout(shape: CacheShape, frames: int) -> tuple[tuple[int, ...], torch.dtype]:
    """Of the camera head's keys and values for a number of frames, one entry per iteration."""
    slots = frames * shape.camera_iterations
    return (shape.camera_blocks, 2, slots, shape.camera_heads, shape.camera_head_dim), shape.camera_dtype


def nbytes(tensors: Layout) -> int:
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors.values())


def budget_in_force(shape: CacheShape, config: CacheConfig, policy: Policy) -> tuple[int | None, bool]:
    """Tokens per layer, None for as many as come; and whether the policy's floor had to raise what was asked for."""
    if config.policy == "full":
        return None, False
    limits = [config.budget_tokens] if config.budget_tokens else []
    if config.budget_mib:
        limits.append(_tokens_in(config.budget_mib * MIB, shape, config, policy))
    asked, floor = min(limits), policy.floor(shape.tokens_per_frame)
    return max(asked, floor), asked < floor


def _tokens_in(limit: float, shape: CacheShape, config: CacheConfig, policy: Policy) -> int:
    camera = camera_layout(shape, camera_frames(config))

    def fits(tokens: int) -> bool:
        return nbytes(layout(shape, config, policy, tokens) | {"camera": camera}) <= limit

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def camera_frames(config: CacheConfig) -> int:
    """Frames the camera head's cache has room for: first, window, and the one being computed."""
    return 2 + config.camera_window
