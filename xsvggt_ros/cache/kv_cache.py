# SPDX-License-Identifier: Apache-2.0
"""The key/value cache of the global blocks: allocated once for the budget, packed, and pruned in place.

Keys are stored after normalisation and rotation, values raw. Positions repeat in every frame, so the order
of slots means nothing and a new token may take any free slot. A token is quantised once, when it enters;
pruning only frees slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xsvggt_ros.cache.budget import budget_in_force
from xsvggt_ros.cache.camera_cache import CameraCache, Kernel
from xsvggt_ros.cache.policies import PastTokens, Policy, make_policy
from xsvggt_ros.cache.shape import CacheShape
from xsvggt_ros.cache.store import Store, layout
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.memory import memory_for

FRAMES_AT_FIRST = 8  # room that a cache without a budget starts with; it doubles as needed


class KVCache:
    """Past keys and values of one stream, batch 1. The kernels are those of the global blocks and the camera head."""

    def __init__(
        self, shape: CacheShape, config: CacheConfig, device: torch.device, kernel: Kernel, camera_kernel: Kernel
    ):
        self.shape = shape
        self.config = config
        self.device = device
        self.kernel = kernel
        self.policy = make_policy(config, shape)
        # Tokens per layer, None: as many as come; and whether less than the policy's floor was asked for.
        self.budget, self.budget_raised = budget_in_force(shape, config, self.policy)
        self.frames = 0  # seen so far
        self.evicted = 0  # per layer, by the last frame and by reconfiguring before it
        self.camera = CameraCache(shape, config, device, camera_kernel)
        self._pruned = 0  # by reconfiguring since the last frame
        capacity = self.budget or FRAMES_AT_FIRST * shape.tokens_per_frame
        self.store, self._scratch = self._allocate(config, self.policy, capacity)

    # --- what is held -----------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """Cached per layer."""
        return self.store.tokens

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that keeps something between steps."""
        return [*self.store.tensors.values(), self.camera.buffer]

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
        return self.policy.floor()

    def token_ids(self, layer: int) -> Tensor:
        """frame * tokens per frame + place in the frame, of every cached token, ascending."""
        frame, token = self.store.places(layer)
        return (frame.long() * self.shape.tokens_per_frame + token).sort().values

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
        self.store.read(layer, self._scratch)
        self._scratch[0, self.tokens : end] = k
        self._scratch[1, self.tokens : end] = v
        return self._scratch[0, :end], self._scratch[1, :end]

    def commit(self, layer: int, q: Tensor, keys: Tensor, values: Tensor) -> None:
        """Takes in the new frame: the last P of keys and values, as `view` gave them; q [P, heads, d]."""
        evidence = self.store.evidence(layer)
        self.policy.observe(q, evidence)
        kept = self._kept
        scores = torch.zeros(self.tokens, device=self.device)
        if self.store.evictions(kept):
            scores = self.policy.scores(self._past(layer, keys[: self.tokens], evidence, self.frames))
        room = self.store.room(layer, kept, scores)
        token = torch.arange(q.shape[0] - kept, q.shape[0], device=self.device)
        self.store.put(layer, room, self.frames, token, keys[-kept:], values[-kept:])

    def end_frame(self) -> None:
        """After all layers have taken the frame in."""
        self.camera.end_frame()  # first: it may need memory
        dropped = self.shape.tokens_per_frame - self._kept
        self.evicted = self.store.taken_in(self._kept) + dropped + self._pruned
        self._pruned = 0
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
        policy = make_policy(config, self.shape)
        budget, raised = budget_in_force(self.shape, config, policy)
        capacity = budget or self.store.ample_capacity(policy)
        rebuild = rebuild or layout(self.shape, config, policy, capacity) != self.store.layout
        with memory_for(
            f"no memory for a cache of {capacity} tokens beside the one in use; lower cache.budget_tokens, "
            "cache.budget_mib or cache.camera_window, or use fewer bits"
        ):
            contents = self._moved(config, policy, capacity, newest) if rebuild else (self.store, self._scratch)
            self.camera.reconfigure(config)
        # Nothing below needs memory: either all of it happens or nothing.
        self.config, self.policy = config, policy
        self.budget, self.budget_raised = budget, raised
        self._pruned += self.tokens - contents[0].tokens
        self.store, self._scratch = contents

    def _grow(self) -> None:
        """Makes room for another frame; nothing has changed if there is no memory for it."""
        capacity = self.store.ample_capacity(self.policy)
        if capacity != self.store.capacity:
            self.store, self._scratch = self._moved(self.config, self.policy, capacity, self.frames)

    def _allocate(self, config: CacheConfig, policy: Policy, capacity: int) -> tuple[Store, Tensor]:
        """A store, and the working memory that fits it, [2, capacity + P, heads, d]."""
        store = Store(self.shape, config, policy, capacity, self.device)
        size = (2, capacity + self.shape.tokens_per_frame, self.shape.heads, self.shape.head_dim)
        return store, torch.zeros(size, dtype=self.shape.dtype, device=self.device)

    def _moved(self, config: CacheConfig, policy: Policy, capacity: int, newest: int) -> tuple[Store, Tensor]:
        """As `_allocate`, with what the policy keeps in it, the same number of tokens in every layer."""
        store, scratch = self._allocate(config, policy, capacity)
        store.take_over_evidence(self.store)
        if not self.tokens:
            return store, scratch
        exact = self._scratch
        kept = []
        for layer in range(self.shape.layers):
            self.store.read(layer, exact)
            past = self._past(layer, exact[0, : self.tokens], store.evidence(layer), newest)
            slots = policy.scores(past).argsort(descending=True)
            slots = slots[past.frame[slots] != self.frames]  # none of an unfinished frame's
            kept.append(store.fitting(layer, self.store, slots))
        tokens = min(slots.shape[0] for slots in kept)
        for layer, slots in enumerate(kept):
            self.store.read(layer, exact)
            store.take_over(layer, self.store, slots[:tokens], exact)
        return store, scratch

    def _past(self, layer: int, keys: Tensor, evidence: dict[str, Tensor], newest: int) -> PastTokens:
        frame, token = self.store.places(layer)
        return PastTokens(frame, token, keys, newest, self.shape.tokens_per_frame, evidence)

    @property
    def _kept(self) -> int:
        """How many of a new frame's tokens stay."""
        return min(self.shape.tokens_per_frame, self.store.capacity)
