# SPDX-License-Identifier: Apache-2.0
"""The key/value cache of the global blocks: allocated once for the budget, packed, and pruned in place.

Keys are stored after normalisation and rotation, values raw. Positions repeat in every frame, so the order
of slots means nothing and a new token may take any free slot. A token is quantised once, when it enters;
pruning only frees slots.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from xsvggt_ros.cache.budget import CacheShape, budget_in_force, key_groups, layout
from xsvggt_ros.cache.camera_cache import CameraCache, Kernel
from xsvggt_ros.cache.policies import PastTokens, Policy, make_policy, query_summary
from xsvggt_ros.cache.policies.base import PROTECTED
from xsvggt_ros.cache.store import Store
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.memory import memory_for

FRAMES_AT_FIRST = 8  # room that a cache without a budget starts with; it doubles as needed


class Contents(NamedTuple):
    """What the cache keeps, and the working memory that fits it."""

    store: Store
    scratch: Tensor  # [2, capacity + P, heads, d]
    tokens: int = 0  # in use, per layer
    groups: int = 0  # of keys, in use at most


class KVCache:
    """Past keys and values of one stream, batch 1. The kernels are those of the global blocks and the camera head."""

    def __init__(
        self, shape: CacheShape, config: CacheConfig, device: torch.device, kernel: Kernel, camera_kernel: Kernel
    ):
        self.shape = shape
        self.config = config
        self.device = device
        self.kernel = kernel
        self.policy = make_policy(config)
        # Tokens per layer, None: as many as come; and whether less than the policy's floor was asked for.
        self.budget, self.budget_raised = budget_in_force(shape, config, self.policy)
        self.frames = 0  # seen so far
        self.tokens = 0  # cached per layer
        self.evicted = 0  # per layer, by the last frame and by reconfiguring before it
        self.camera = CameraCache(shape, config, device, camera_kernel)
        self._pruned = 0  # by reconfiguring since the last frame
        self._groups_in_use = 0  # at most; known without asking the device
        capacity = self.budget or FRAMES_AT_FIRST * shape.tokens_per_frame
        store = Store(shape, config, self.policy, capacity, device)
        self._hold(Contents(store, self._scratch_for(store)))

    # --- what is held -----------------------------------------------------------------------------

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that keeps something between steps."""
        return [*self._store.tensors.values(), self.camera.buffer]

    @property
    def nbytes(self) -> int:
        """Bytes of all cache tensors: codes, parameters, bookkeeping and the camera head's cache."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def scratch_nbytes(self) -> int:
        """Bytes of the working memory in which one layer at a time is unpacked."""
        return self._scratch.nbytes

    @property
    def floor(self) -> int:
        """The least budget the policy works with, in tokens per layer."""
        return self.policy.floor(self.shape.tokens_per_frame)

    def token_ids(self, layer: int) -> Tensor:
        """frame * tokens per frame + place in the frame, of every cached token, ascending."""
        frame, token = (self._store[name][layer, : self.tokens].long() for name in ("frame", "token"))
        return (frame * self.shape.tokens_per_frame + token).sort().values

    # --- a step -----------------------------------------------------------------------------------

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A global block: the new frame attends to all cached tokens and itself, then is taken in: [1, P, heads, d]."""
        keys, values = self.view(layer, k[0], v[0])
        out = self.kernel(q, keys[None], values[None])
        self.commit(layer, q[0], keys, values)
        return out

    def view(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [T + P, heads, d]: the cached ones, unpacked, then the new frame's, exact.

        They lie in the scratch buffer that all layers share: valid until the next call.
        """
        end = self.tokens + k.shape[0]
        if self.budget is None:
            self._grow()
        self._store.read(layer, self.tokens, self._scratch)
        self._scratch[0, self.tokens : end] = k
        self._scratch[1, self.tokens : end] = v
        return self._scratch[0, :end], self._scratch[1, :end]

    def commit(self, layer: int, q: Tensor, keys: Tensor, values: Tensor) -> None:
        """Takes in the new frame: the last P of keys and values, as `view` gave them; q [P, heads, d]."""
        kept, evictions = self._turnover()
        self._store["query"][layer] = query_summary(q, self.shape.specials, self.config.query_pool)
        slots, groups = self._make_room(layer, keys[: self.tokens], kept, evictions)
        place = torch.arange(kept, device=self.device)
        # First of all: where the rest fails, these slots are known as the unfinished frame's.
        self._store.write_places(layer, slots, self.frames, place + q.shape[0] - kept)
        self._store.write_keys(layer, slots, keys[-kept:], self._rows(kept), groups)
        self._store.write_values(layer, slots, values[-kept:])

    def end_frame(self) -> None:
        """After all layers have taken the frame in."""
        self.camera.end_frame()  # first: it may need memory
        kept, evictions = self._turnover()
        self.evicted = evictions + self.shape.tokens_per_frame - kept + self._pruned
        self._pruned = 0
        if self._store.key_bits < 16:
            self._groups_in_use = min(self._groups_in_use + self._groups_for(kept), self._store.groups)
        self.tokens += kept - evictions
        self.frames += 1

    def abandon_frame(self, config: CacheConfig) -> None:
        """After a step that failed midway: forgets its frame, however far it came, and goes on with `config`.

        Tokens that had to go for that frame stay lost, in every layer as many. Raises OutOfMemory if there is
        not the memory for it; the cache is of no more use then.
        """
        self.camera.abandon_frame()
        # As in the layers that took the frame in, the one before is no longer the newest, which is protected.
        self._switch(config, newest=self.frames, rebuild=True)

    # --- settings ---------------------------------------------------------------------------------

    def reconfigure(self, config: CacheConfig) -> None:
        """Other policy, budget or bits from now on, between two frames; the stream goes on.

        A smaller budget is pruned to at once, by the new policy; other bits convert what is stored, once.
        Raises OutOfMemory if there is not the memory for it; nothing has changed then.
        """
        self._switch(config, newest=self.frames - 1)

    # --- inside -----------------------------------------------------------------------------------

    def _switch(self, config: CacheConfig, newest: int, rebuild: bool = False) -> None:
        policy = make_policy(config)
        budget, raised = budget_in_force(self.shape, config, policy)
        capacity = budget or self._ample_capacity(policy)
        contents = None
        with memory_for(
            f"no memory for a cache of {capacity} tokens beside the one in use; lower cache.budget_tokens, "
            "cache.budget_mib or cache.camera_window, or use fewer bits"
        ):
            if rebuild or layout(self.shape, config, policy, capacity) != self._store.layout:
                contents = self._rebuilt(Store(self.shape, config, policy, capacity, self.device), policy, newest)
            self.camera.reconfigure(config)
        # Nothing below needs memory: either all of it happens or nothing.
        self.config, self.policy = config, policy
        self.budget, self.budget_raised = budget, raised
        if contents:
            self._pruned += self.tokens - contents.tokens
            self._hold(contents)

    def _grow(self) -> None:
        """Makes room for another frame; nothing has changed if there is no memory for it."""
        capacity = self._ample_capacity(self.policy)
        if capacity == self._store.capacity:
            return
        store = Store(self.shape, self.config, self.policy, capacity, self.device)
        self._hold(self._rebuilt(store, self.policy, self.frames))

    def _ample_capacity(self, policy: Policy) -> int:
        """Tokens per layer that a cache without a budget needs room for to take in another frame."""
        capacity, per_frame = self._store.capacity, self.shape.tokens_per_frame
        groups = self._groups_in_use + self.shape.groups_per_frame
        while capacity < self.tokens + per_frame or key_groups(self.shape, policy, capacity) < groups:
            capacity *= 2
        return capacity

    def _hold(self, contents: Contents) -> None:
        self._store, self._scratch, self.tokens, self._groups_in_use = contents

    def _scratch_for(self, store: Store) -> Tensor:
        rows = store.capacity + self.shape.tokens_per_frame
        size = (2, rows, self.shape.heads, self.shape.head_dim)
        return torch.zeros(size, dtype=self.shape.dtype, device=self.device)

    def _past(self, layer: int, keys: Tensor, newest: int) -> PastTokens:
        frame, token = (self._store[name][layer, : self.tokens] for name in ("frame", "token"))
        return PastTokens(frame, token, keys, self._store["query"][layer], newest, self.shape.tokens_per_frame)

    def _groups_for(self, tokens: int) -> int:
        return math.ceil(tokens / self.shape.group_size)

    def _rows(self, tokens: int) -> Tensor:
        """Groups of consecutive tokens [G, group size]; the last one repeats its last token."""
        groups, size = self._groups_for(tokens), self.shape.group_size
        return torch.arange(groups * size, device=self.device).clamp_max(tokens - 1).view(groups, size)

    def _turnover(self) -> tuple[int, int]:
        """How many of the new frame's tokens stay, and how many cached ones go for them, in every layer."""
        if self.budget is None:
            return self.shape.tokens_per_frame, 0
        kept = min(self.shape.tokens_per_frame, self.budget)
        over = max(0, self.tokens + kept - self.budget)
        needed = self._groups_for(kept)
        if self._store.key_bits == 16 or self._groups_in_use + needed <= self._store.groups:
            return kept, over
        # The emptiest `needed` key groups have to be reused. They hold at most their share of the tokens;
        # the first frame with its groups is left out of the account if it is protected.
        first, first_groups = self.shape.tokens_per_frame, self.shape.groups_per_frame
        share = math.ceil(self.tokens * needed / self._store.groups)
        share_without_first = math.ceil((self.tokens - first) * needed / (self._store.groups - first_groups))
        return kept, min(self.tokens, max(over, share, share_without_first))

    def _make_room(self, layer: int, past_keys: Tensor, kept: int, evictions: int) -> tuple[Tensor, Tensor | None]:
        """Slots for the new frame's tokens, and the key groups they will use if keys are quantised."""
        fresh = torch.arange(self.tokens, self.tokens + kept - evictions, device=self.device)
        quantised = self._store.key_bits < 16
        scores = torch.zeros(self.tokens, device=self.device)
        if evictions:
            scores = self.policy.scores(self._past(layer, past_keys, self.frames))
        groups = self._emptiest_groups(layer, scores, evictions, self._groups_for(kept)) if quantised else None
        if evictions and groups is not None:
            reused = torch.zeros(self._store.groups, dtype=torch.bool, device=self.device).index_fill(0, groups, True)
            in_reused = reused[self._store["group"][layer, : self.tokens].long()]
            scores = scores.masked_fill(in_reused, -PROTECTED)
        return torch.cat([_lowest(scores, evictions), fresh]), groups

    def _emptiest_groups(self, layer: int, scores: Tensor, evictions: int, count: int) -> Tensor:
        """The `count` key groups to give to the new frame.

        Those that the policy's own choice empties, if there are enough; otherwise those with the fewest
        tokens, whose last tokens then have to go before others: the price of a fixed table of groups.
        """
        group = self._store["group"][layer, : self.tokens].long()
        empty = torch.zeros(self._store.groups, device=self.device)
        total = empty.index_add(0, group, torch.ones_like(scores))
        stays = torch.ones_like(scores).index_fill(0, _lowest(scores, evictions), 0)
        left = empty.index_add(0, group, stays)
        protected = empty.index_add(0, group, (scores == PROTECTED).float()) > 0
        fullness = torch.where((left == 0).sum() >= count, left, total)
        return _lowest(fullness.masked_fill(protected, PROTECTED), count)

    def _rebuilt(self, store: Store, policy: Policy, newest: int) -> Contents:
        """What the policy keeps, moved into another store, the same number of tokens in every layer."""
        scratch = self._scratch_for(store)
        if not self.tokens:
            return Contents(store, scratch)
        exact = self._scratch
        kept = []
        for layer in range(self.shape.layers):
            self._store.read(layer, self.tokens, exact)
            kept.append(self._best(layer, exact[0, : self.tokens], store, policy, newest))
        tokens, groups = min(slots.shape[0] for slots in kept), 0
        for layer, slots in enumerate(kept):
            self._store.read(layer, self.tokens, exact)
            groups = max(groups, store.take_over(layer, self._store, slots[:tokens], exact))
        return Contents(store, scratch, tokens, groups)

    def _best(self, layer: int, keys: Tensor, store: Store, policy: Policy, newest: int) -> Tensor:
        """Slots of this layer's tokens that go into `store`, the highest score first.

        None of an unfinished frame's. Quantised keys may come from as many groups as the store has room for:
        those with the best tokens.
        """
        past = self._past(layer, keys, newest)
        slots = policy.scores(past).argsort(descending=True)
        slots = slots[past.frame[slots] != self.frames]
        if store.key_bits < 16:
            labels, group = self._store.group_labels(layer, slots).unique(return_inverse=True)
            rank = torch.arange(slots.shape[0], device=self.device)
            best = torch.full_like(labels, slots.shape[0]).scatter_reduce(0, group, rank, "amin")
            slots = slots[torch.isin(group, best.argsort()[: store.groups])]
        return slots[: store.capacity]


def _lowest(x: Tensor, count: int) -> Tensor:
    return x.topk(count, largest=False, sorted=False).indices
