# SPDX-License-Identifier: Apache-2.0
"""The bounded, packed key/value cache of the global attention blocks and of the camera head."""

from xsvggt_ros.cache.kv_cache import KVCache
from xsvggt_ros.cache.shape import CacheShape

__all__ = ["CacheShape", "KVCache"]
