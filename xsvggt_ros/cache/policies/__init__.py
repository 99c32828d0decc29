# SPDX-License-Identifier: Apache-2.0
"""Cache policies: which cached tokens stay when the budget is full.

A policy ranks the past tokens of a layer; the cache keeps the highest. One file each; adding one means
adding it here and to `config.POLICIES`.
"""

from __future__ import annotations

from xsvggt_ros.cache.policies.base import PastTokens, Policy
from xsvggt_ros.cache.policies.full import Full
from xsvggt_ros.cache.policies.random import Random
from xsvggt_ros.cache.policies.sliding_window import SlidingWindow
from xsvggt_ros.cache.policies.xstream import XStream, query_summary
from xsvggt_ros.config import CacheConfig

__all__ = ["PastTokens", "Policy", "make_policy", "query_summary"]


def make_policy(config: CacheConfig) -> Policy:
    """The policy that `config.policy` names."""
    if config.policy == "sliding_window":
        return SlidingWindow(config.pin_first_frame)
    if config.policy == "random":
        return Random(config.seed)
    return Full() if config.policy == "full" else XStream()
