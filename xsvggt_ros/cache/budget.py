# SPDX-License-Identifier: Apache-2.0
"""How many tokens a budget allows."""

from __future__ import annotations

from xsvggt_ros.cache.camera_cache import camera_frames, camera_layout
from xsvggt_ros.cache.policies import Policy
from xsvggt_ros.cache.shape import CacheShape, nbytes
from xsvggt_ros.cache.store import layout
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.memory import MIB


def budget_in_force(shape: CacheShape, config: CacheConfig, policy: Policy) -> tuple[int | None, bool]:
    """Tokens per layer, None for as many as come; and whether the policy's floor had to raise what was asked for."""
    if config.policy == "full":
        return None, False
    limits = [config.budget_tokens] if config.budget_tokens else []
    if config.budget_mib:
        limits.append(_tokens_in(config.budget_mib * MIB, shape, config, policy))
    asked, floor = min(limits), policy.floor()
    return policy.usable(max(asked, floor)), asked < floor


def _tokens_in(limit: float, shape: CacheShape, config: CacheConfig, policy: Policy) -> int:
    camera = nbytes(camera_layout(shape, camera_frames(config)))

    def fits(tokens: int) -> bool:
        layers = shape.layers * nbytes(layout(shape, config, policy, tokens))
        return layers + nbytes(policy.shared_evidence(tokens)) + camera <= limit

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
