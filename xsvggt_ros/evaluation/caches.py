# SPDX-License-Identifier: Apache-2.0
"""Caches that are only there to be compared with: no past at all, and the published quantiser, simulated."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from xsvggt_ros.cache import KVCache
from xsvggt_ros.cache.budget import global_nbytes
from xsvggt_ros.cache.policies import Seen
from xsvggt_ros.cache.store import Store
from xsvggt_ros.config import StreamConfig
from xsvggt_ros.model import StreamVGGT
from xsvggt_ros.stream import GeometryStream

PUBLISHED_GROUP = 64  # tokens, or channels of a value, that share a scale
HIGHEST_CODE = 15  # of 4 bits
LEAST_SCALE = 1e-12


class CurrentFrameOnly(KVCache):
    """The global layers see the frame at hand and nothing else; the camera head's cache is as ever."""

    @property
    def tensors(self) -> list[Tensor]:
        return [self.camera.buffer]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.kernel(q, k, v)

    def added(self, layer: int, scale: Tensor, residual: Tensor) -> None:
        pass

    def end_frames(self, count: int) -> None:
        self.camera.end_frames(count)
        self.frames += count


class PublishedQuantiser(KVCache):
    """4 bits as XStreamVGGT (arXiv 2601.01204) publishes them, of a cache whose own bits are 16.

    Every frame, old tokens and new are quantised and dequantised again, in order of age, and pruned after that.
    Computed in float32, kept in the cache's own type; nothing is packed, so no memory is saved.
    """

    def _take_in(self, store: Store, seen: Seen) -> None:
        order = self._by_age(store, seen.keys.shape[0])
        keys, values = seen.keys.clone(), quantised(seen.values, channels=True)
        keys[order] = quantised(keys[order], channels=False)
        slots = torch.arange(store.tokens, device=self.device)[:, None]
        store.rewrite(slots, keys[: store.tokens], values[: store.tokens])
        super()._take_in(store, replace(seen, keys=keys, values=values))

    def _by_age(self, store: Store, count: int) -> Tensor:
        """Slots of the cached tokens, oldest first, then those of the new frame, which lie after them."""
        frame, token = store.places()
        age = (frame.long() * self.shape.tokens_per_frame + token)[:, 0].argsort()
        return torch.cat([age, torch.arange(store.tokens, count, device=self.device)])


def quantised(x: Tensor, channels: bool) -> Tensor:
    """x [T, heads, d] as the published 4-bit scheme gives it back, in x's type.

    A group is PUBLISHED_GROUP channels of a token, or as many consecutive tokens of a channel; a last group that is
    not full has zeros for the rest. The zero point is clamped to the codes, which is the scheme's weakness.
    """
    rows = x.float() if channels else x.float().movedim(0, -1)  # groups along the last axis
    size = rows.shape[-1]
    groups = pad(rows, (0, -size % PUBLISHED_GROUP)).unflatten(-1, (-1, PUBLISHED_GROUP))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / HIGHEST_CODE).clamp_min(LEAST_SCALE)
    zero = (-low / scale).round().clamp(0, HIGHEST_CODE)
    codes = ((groups / scale).round() + zero).clamp(0, HIGHEST_CODE)
    rows = (scale * (codes - zero)).flatten(-2)[..., :size].to(x.dtype)
    return rows if channels else rows.movedim(-1, 0)


class ComparedStream(GeometryStream):
    """A stream with a cache of the given kind."""

    def __init__(self, config: StreamConfig, model: StreamVGGT, kind: type[KVCache]):
        self._cache_type = kind
        super().__init__(config, model)

    @property
    def global_bytes(self) -> int:
        """Bytes of the tokens cached, spare room and the camera head's cache left out, after at least one step."""
        cache = self._cache
        assert cache is not None
        if isinstance(cache, CurrentFrameOnly):
            return 0
        return global_nbytes(cache.shape, cache.config, cache.policy, [store.tokens for store in cache.layers])
