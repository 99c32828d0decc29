# SPDX-License-Identifier: Apache-2.0
"""How keys and values become bits. One file each; adding one means adding it here, and its name to the settings."""

from __future__ import annotations

from xsvggt_ros.cache.quantizers.base import Quantizer
from xsvggt_ros.cache.quantizers.channel import Channel
from xsvggt_ros.cache.quantizers.rotated import Rotated
from xsvggt_ros.cache.shape import CacheShape
from xsvggt_ros.config import CacheConfig

__all__ = ["BY_NAME", "Quantizer", "make_quantizer"]

BY_NAME: dict[str, type[Quantizer]] = {"rotated": Rotated, "channel": Channel}


def make_quantizer(config: CacheConfig, shape: CacheShape, lanes: int, capacity: int) -> Quantizer:
    """The one that `config.quantizer` names, for one layer with room for `capacity` tokens."""
    return BY_NAME[config.quantizer](config, shape, lanes, capacity)
