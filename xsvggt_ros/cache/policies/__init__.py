# SPDX-License-Identifier: Apache-2.0
"""Cache policies: which cached tokens stay when the budget is full.

A policy ranks the past tokens of a layer; the cache keeps the highest. One file each; adding one means
adding it here, and its name to `config.POLICIES`, which must not load torch.
"""

from __future__ import annotations

from xsvggt_ros.cache.policies.base import Geometry, PastTokens, Policy, Seen
from xsvggt_ros.cache.policies.coreset import Coreset
from xsvggt_ros.cache.policies.frame_bank import FrameBank
from xsvggt_ros.cache.policies.full import Full
from xsvggt_ros.cache.policies.ghost import Ghost
from xsvggt_ros.cache.policies.infinite import Infinite
from xsvggt_ros.cache.policies.output_aware import OutputAware
from xsvggt_ros.cache.policies.ovggt import Ovggt
from xsvggt_ros.cache.policies.random import Random
from xsvggt_ros.cache.policies.sliding_window import SlidingWindow
from xsvggt_ros.cache.policies.stac import Stac
from xsvggt_ros.cache.policies.window_specials import WindowSpecials
from xsvggt_ros.cache.policies.xstream import XStream
from xsvggt_ros.cache.shape import CacheShape
from xsvggt_ros.config import CacheConfig

__all__ = ["BY_NAME", "Geometry", "PastTokens", "Policy", "Seen", "make_policy"]

BY_NAME: dict[str, type[Policy]] = {
    "coreset": Coreset,
    "xstream": XStream,
    "stac": Stac,
    "frame_bank": FrameBank,
    "output_aware": OutputAware,
    "infinite": Infinite,
    "ovggt": Ovggt,
    "ghost": Ghost,
    "window_specials": WindowSpecials,
    "sliding_window": SlidingWindow,
    "random": Random,
    "full": Full,
}


def make_policy(config: CacheConfig, shape: CacheShape) -> Policy:
    """The policy that `config.policy` names."""
    return BY_NAME[config.policy](config, shape)
