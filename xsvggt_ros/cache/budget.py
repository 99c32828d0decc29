# SPDX-License-Identifier: Apache-2.0
"""How many tokens a budget allows."""

from __future__ import annotations

import math

from xsvggt_ros.cache.camera_cache import camera_frames, camera_layout
from xsvggt_ros.cache.policies import Policy
from xsvggt_ros.cache.shape import CacheShape, nbytes
from xsvggt_ros.cache.store import layout
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.memory import MIB

TEMPERATURE = 0.5  # of the layers' shares


def budget_in_force(shape: CacheShape, config: CacheConfig, policy: Policy) -> tuple[int | None, bool]:
    """Tokens per layer, None for as many as come; and whether the policy's floor had to raise what was asked for."""
    if config.policy == "full":
        return None, False
    limits = [config.budget_tokens] if config.budget_tokens else []
    if not (config.budget_tokens or config.budget_mib):
        limits.append(int(config.budget_frames * shape.tokens_per_frame))
    if config.budget_mib:
        limits.append(tokens_in(_left_for_layers(shape, config), shape, config, policy))
    asked, floor = min(limits), policy.floor()
    return policy.usable(max(asked, floor)), asked < floor


def capacities(
    shape: CacheShape, config: CacheConfig, policy: Policy, budget: int, likeness: list[float] | None
) -> list[int]:
    """Tokens of each layer, `budget` on average, by how alike their keys are (see diversity.likeness), if it is known.

    Layer l has the share softmax_l((1 - likeness_l) / .5) (InfiniteVGGT, arXiv 2601.02281), but at least the policy's
    floor.
    """
    if likeness is None or config.layer_budgets == "equal" or policy.same_in_all_layers:
        return [budget] * shape.layers
    weights = [math.exp((1 - m) / TEMPERATURE) for m in likeness]
    found = divided(budget * shape.layers, weights, policy.floor())
    while config.budget_mib and global_nbytes(shape, config, policy, found) > _left_for_layers(shape, config):
        found[found.index(max(found))] -= 1  # parameters that tokens share make the bytes uneven
    return found


def _left_for_layers(shape: CacheShape, config: CacheConfig) -> float:
    """Bytes of budget_mib that the global layers may take."""
    camera = nbytes(camera_layout(shape, camera_frames(config)))
    return config.budget_mib * MIB - camera - shape.beside_nbytes


def divided(total: int, weights: list[float], least: int) -> list[int]:
    """total in whole parts of at least `least`, in proportion to weights where that is more."""
    free = set(range(len(weights)))
    while True:
        rest, weight = total - least * (len(weights) - len(free)), sum(weights[i] for i in free)
        low = {i for i in free if rest * weights[i] < least * weight}
        if not low:
            break
        free -= low
    parts = [int(rest * w / weight) if i in free else least for i, w in enumerate(weights)]
    for i in list(free)[: total - sum(parts)]:
        parts[i] += 1
    return parts


def tokens_in(limit: float, shape: CacheShape, config: CacheConfig, policy: Policy) -> int:
    """Tokens in each layer whose cache takes at most `limit` bytes, without the camera head's."""

    def fits(tokens: int) -> bool:
        return global_nbytes(shape, config, policy, [tokens] * shape.layers) <= limit

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def global_nbytes(shape: CacheShape, config: CacheConfig, policy: Policy, tokens: list[int]) -> int:
    """Of a cache with that many tokens in each layer, without the camera head's."""
    sizes = {count: nbytes(layout(shape, config, policy, count)) for count in set(tokens)}
    return sum(sizes[count] for count in tokens) + nbytes(policy.shared_evidence(max(tokens)))
