# SPDX-License-Identifier: Apache-2.0
"""How much of the cache's budget is in force: less of it where time or memory is short, or the scene is small."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from xsvggt_ros.cache import CacheShape, KVCache
from xsvggt_ros.cache.budget import budget_in_force
from xsvggt_ros.cache.policies import make_policy
from xsvggt_ros.config import CacheConfig

LEAST_MIB = 1e-3  # of a budget that is used up: the policy's own least is in force then


@lru_cache(maxsize=8)
def scaled(cache: CacheConfig, fraction: float) -> CacheConfig:
    """With a fraction of its budget; policy full has none."""
    if cache.policy == "full" or fraction == 1:
        return cache
    tokens = max(1, int(cache.budget_tokens * fraction)) if cache.budget_tokens else 0
    frames, mib = cache.budget_frames * fraction, cache.budget_mib * fraction
    return replace(cache, budget_frames=frames, budget_tokens=tokens, budget_mib=mib)


@lru_cache(maxsize=8)
def divided(cache: CacheConfig, caches: int) -> CacheConfig:
    """Of so many caches that keep within the budget of one together."""
    return replace(scaled(cache, 1 / caches), camera_window=-(-cache.camera_window // caches))


@lru_cache(maxsize=8)
def beside(cache: CacheConfig, mib: float) -> CacheConfig:
    """With so much less of a budget in MiB, for something else; where nothing is left, the least that there can be."""
    return replace(cache, budget_mib=max(cache.budget_mib - mib, LEAST_MIB)) if cache.budget_mib else cache


def halved(config: CacheConfig, cache: KVCache | None) -> CacheConfig:
    """With half the budget or, where there is none, half of what the cache holds; it cannot stay full then."""
    if cache is None:
        return scaled(config, 0.5)
    if not config.camera_window:
        config = replace(config, camera_window=max(1, cache.camera.frames // 2))
    if config.policy == "full":
        held = min(cache.tokens, cache.frames * cache.shape.tokens_per_frame)  # some layers may be a frame ahead
        return replace(config, policy=CacheConfig().policy, budget_tokens=max(1, held // 2))
    if cache.budget is None or cache.budget == cache.floor:
        return config
    if config.adaptive:  # of what is in force: half of the ceiling may be more
        return replace(config, budget_tokens=max(1, cache.budget // 2))
    return scaled(config, 0.5)


@lru_cache(maxsize=8)
def for_views(cache: CacheConfig, views: int, shape: CacheShape) -> CacheConfig:
    """What an adaptive cache needs in a scene of so many views, at most its budget; any other as it is.

    That is what its policy needs at least, and a frame for each view, in steps, as each rebuilds the cache.
    """
    if not cache.adaptive or cache.policy == "full":
        return cache
    wanted = make_policy(cache, shape).floor() + _step(views) * shape.tokens_per_frame
    return replace(cache, budget_tokens=min(wanted, cache.budget_tokens or tokens_of(cache, shape)))


@lru_cache(maxsize=8)
def tokens_of(cache: CacheConfig, shape: CacheShape) -> int:
    """Tokens per layer that the settings allow; 0: any number."""
    return budget_in_force(shape, cache, make_policy(cache, shape))[0] or 0


def _step(views: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on that is enough."""
    views = max(1, views)
    power = 1 << (views - 1).bit_length()
    return power * 3 // 4 if views <= power * 3 // 4 else power
