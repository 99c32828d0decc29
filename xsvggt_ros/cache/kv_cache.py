# SPDX-License-Identifier: Apache-2.0
"""The key/value cache of the global blocks: allocated once for the budget, packed, and pruned in place.

Keys are stored after normalisation and rotary embedding, values raw. Positions repeat in every frame, so the order
of slots means nothing and a new token may take any free slot. A token is quantised once, when it enters;
pruning only frees slots.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from xsvggt_ros.cache.budget import budget_in_force, capacities
from xsvggt_ros.cache.camera_cache import CameraCache, Kernel
from xsvggt_ros.cache.moving import move
from xsvggt_ros.cache.policies import Geometry, PastTokens, Policy, Seen, make_policy
from xsvggt_ros.cache.policies.base import Rewritten
from xsvggt_ros.cache.policies.diversity import likeness
from xsvggt_ros.cache.shape import CacheShape, nbytes
from xsvggt_ros.cache.store import Store, layout
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.fusing import Fusing, as_written
from xsvggt_ros.memory import OutOfMemory, memory_for

FRAMES_AT_FIRST = 8  # room that a cache without a budget starts with; it doubles as needed


class KVCache:
    """Past keys and values of one stream, batch 1. The kernels are those of the global blocks and the camera head."""

    def __init__(
        self,
        shape: CacheShape,
        config: CacheConfig,
        device: torch.device,
        kernel: Kernel,
        camera_kernel: Kernel,
        fused: Fusing = as_written,
    ):
        self.shape = shape
        self.config = config
        self.device = device
        self.kernel = kernel
        self._fused = fused  # makes few kernels of what a step of a full cache does
        self.policy = make_policy(config, shape)
        # Tokens per layer, None: as many as come; and whether less than the policy's floor was asked for.
        self.budget, self.budget_raised = budget_in_force(shape, config, self.policy)
        self.frames = 0  # taken in so far
        self.taking_in = True  # whether it takes in the frames of a step; else they only look at what is there
        self.evicted = 0  # per layer, by the last frames and by reconfiguring before them
        self.lost = False  # whether memory ended in the middle of a change: it is of no more use then
        self.patches = torch.empty(0)  # [S, n, C], what the encoder makes of the newest frames
        self._newest = 0  # index of the first of the newest frames
        self._gone = 0  # tokens of all layers, since the frames before
        self._likeness: list[float] | None = None  # of the keys of each layer, once measured
        capacity = self.budget or FRAMES_AT_FIRST * shape.tokens_per_frame
        with memory_for(self._no_memory(capacity)):
            self._first = torch.zeros((), dtype=torch.int64, device=device)  # `frames`, for the device
            self.camera = CameraCache(shape, config, device, camera_kernel)
            self.policy.allocate(device, capacity)
            self.layers = [Store(shape, config, self.policy, capacity, device) for _ in range(shape.layers)]
            self._scratch = self._new_scratch(capacity, config.chunk)

    # --- what is held -----------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        """Cached per layer, on average."""
        return sum(store.tokens for store in self.layers) // self.shape.layers

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that keeps something between steps."""
        of_layers = [tensor for store in self.layers for tensor in store.tensors.values()]
        return [*of_layers, *self.policy.shared.values(), self.camera.buffer]

    @property
    def nbytes(self) -> int:
        """Bytes of all cache tensors: codes, parameters, evidence, bookkeeping and the camera head's cache."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def filled_nbytes(self) -> int:
        """About as many of them as hold something by now: a CPU's memory is used as it is written to."""
        of_layers = sum(store.nbytes * store.tokens // store.capacity for store in self.layers)
        return of_layers + self.camera.buffer.nbytes * self.camera.frames // max(1, self.camera.buffer.shape[2])

    @property
    def scratch_nbytes(self) -> int:
        """Bytes of the working memory in which one layer at a time is unpacked."""
        return self._scratch.nbytes

    @property
    def floor(self) -> int:
        """The least budget the policy works with, in tokens per layer."""
        return self.policy.floor()

    @property
    def reencoded(self) -> int:
        """Tokens of all layers that were quantised once more since they entered, to make room in key groups."""
        return sum(store.quantizer.reencoded for store in self.layers)

    def token_ids(self, layer: int, lane: int = 0) -> Tensor:
        """frame * tokens per frame + place in the frame, of every token cached for a lane's heads, ascending."""
        frame, token = (place[:, lane] for place in self.layers[layer].places())
        return (frame.long() * self.shape.tokens_per_frame + token).sort().values

    @property
    def camera_iterations(self) -> int:
        """Of the camera head, that there is room for."""
        return self.shape.camera_iterations

    # --- a step -----------------------------------------------------------------------------------

    def begin(self, patches: Tensor) -> None:
        """New frames come, of which the encoder makes patches [S, n, C]."""
        if self.config.layer_budgets == "adaptive" and self._likeness is None and self._full:
            self._likeness = self._measure()
            self._switch(self.config, self._newest)
        self.patches = patches
        self.policy.begin(patches, self.frames)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A global block: new tokens attend to all cached ones and to each other, then are taken in, if any are.

        q, k and v [1, N, heads, d] are of whole frames. Returns [1, N, heads, d].
        """
        store = self._store_for(layer, k.shape[1]) if self.taking_in else self.layers[layer]
        seen = self._view(store, q[0], k[0], v[0])
        out = self.kernel(seen.q[None], seen.keys[None], seen.values[None], seen.bias)
        if self.taking_in:
            self._take_in(store, seen)
        return out

    def added(self, layer: int, scale: Tensor, residual: Tensor) -> None:
        """What the block's MLP added to the new tokens: scale [C] * residual [1, N, C]."""
        if self.policy.wants_residual and self.taking_in:
            evidence = self.policy.weigh((scale * residual[0]).norm(dim=-1, dtype=torch.float32))
            self.layers[layer].note(self._first, evidence)

    def end_frames(self, count: int) -> None:
        """After all layers have taken the `count` new frames in, or let them look."""
        if not self.taking_in:
            self.camera.abandon_frames()
            self.evicted, self._gone = self._gone // self.shape.layers, 0
            return
        # First what may fail; `_switch` takes it back then.
        self._first.fill_(self.frames + count)
        self.camera.end_frames(count, self.policy.frames_kept)
        self.evicted, self._gone = self._gone // self.shape.layers, 0
        self._newest = self.frames
        self.frames += count

    def learn(self, geometry: Geometry) -> None:
        """What became of the newest frames, for policies that go by it, if they were taken in."""
        if self.taking_in and (evidence := self.policy.learn(geometry)):
            for store in self.layers:
                store.note(self._newest, evidence)

    def abandon_frames(self, config: CacheConfig) -> None:
        """After a step that failed midway: forgets its frames, however far they came, and goes on with `config`.

        Tokens that had to go for those frames stay lost, in the layers that had taken them in. Raises OutOfMemory if
        there is not the memory for it, or where cached tokens were just being encoded anew; the cache is of no more
        use then.
        """
        if any(store.quantizer.torn for store in self.layers):
            self.lost = True
            raise OutOfMemory("memory ended while tokens were encoded anew; start a new stream, with a lower budget")
        self.camera.abandon_frames()
        # As in the layers that took the frames in, the one before is no longer the newest, which is protected.
        self._switch(config, newest=self.frames, rebuild=True)

    # --- a step that is repeated --------------------------------------------------------------------

    @property
    def why_unsteady(self) -> str:
        """Why its steps never become the same work over and over, on the device alone; empty: once it is `steady`."""
        if self.budget is None or not self.camera.window:
            return "the cache grows without end"
        return "" if self.policy.repeats else f"policy {self.config.policy} decides on the host what stays"

    @property
    def steady(self) -> bool:
        """Whether all that is new in a step, from `begin` to the camera head's passes, are numbers on the device.

        As long as `policy` is the same object, its tensors are too.
        """
        return not self.why_unsteady and self._full and self.camera.full

    def take_back(self) -> None:
        """After a step was begun of which the device has done nothing: as if it had not been begun."""
        self.camera.abandon_frames()
        self._gone = 0
        for store in self.layers:
            store.quantizer.torn = False

    def repeated(self, patches: Tensor) -> None:
        """The device alone has done a steady cache's step once more, up to `end_frames`; of patches [S, n, C]."""
        self.patches = patches
        self.policy.begin(patches, self.frames)  # for what it notes on the host
        if self.taking_in:
            self._gone = self.shape.layers * patches.shape[0] * self.shape.tokens_per_frame

    # --- settings ---------------------------------------------------------------------------------

    def reconfigure(self, config: CacheConfig) -> None:
        """Other policy, budget or bits from now on, between two frames; the stream goes on.

        A smaller budget is pruned to at once, by the new policy; other bits convert what is stored, once. It is done
        layer by layer: one of them at a time is there twice. Raises OutOfMemory if there is not the memory for it;
        nothing has changed then, unless others took the memory in the middle: then the cache is `lost`.
        """
        self._switch(config, newest=self._newest)

    # --- inside: a step ---------------------------------------------------------------------------

    def _view(self, store: Store, q: Tensor, k: Tensor, v: Tensor) -> Seen:
        """The cached tokens, unpacked, then the new ones, exact, and new queries [N, heads, d].

        They lie in the scratch buffer that all layers share: valid until the next call.
        """
        end = store.tokens + k.shape[0]
        store.read(self._scratch)
        fused = self._fused if store.tokens == store.capacity else as_written
        bias = fused(beside)(self._scratch[:, store.tokens : end], k, v, self.policy, store.evidence())
        keys, values = self._scratch[:, :end]
        return Seen(q, keys, values, bias)

    def _take_in(self, store: Store, seen: Seen) -> None:
        """Takes the new tokens in, those at the end of what was seen."""
        new = seen.q.shape[0]
        kept = min(new, store.capacity)
        evictions = store.evictions(kept)
        fused = self._fused if evictions == new else as_written
        # A step of numbers that are not finite is abandoned later; what is known about the past must stay even so.
        for x in (seen.keys, seen.values):
            x[-new:].nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        evidence, leaving, rewritten = fused(chosen)(self.policy, self._past(store, seen.keys), seen, evictions)
        if rewritten:
            store.rewrite(*rewritten)
        self._gone += evictions + new - kept
        newest = {name: x[-kept:] for name, x in evidence.items()}
        # Before keys and values: where these fail, the slots are known as the unfinished frame's.
        slots = fused(Store.noted)(store, leaving, self._first, new - kept, kept, newest)
        store.put(slots, seen.keys[-kept:], seen.values[-kept:])

    def _past(self, store: Store, keys: Tensor) -> PastTokens:
        """What the policy ranks while new frames are being taken in."""
        frame, token = store.places()
        return PastTokens(
            frame=frame,
            token=token,
            keys=keys[: store.tokens],
            newest=self._first,
            tokens_per_frame=self.shape.tokens_per_frame,
            budget=store.capacity,
            evidence=store.evidence(),
        )

    def _store_for(self, layer: int, new: int) -> Store:
        """The layer's, with room for the new tokens where there is no budget; nothing has changed without memory."""
        store = self.layers[layer]
        if self.budget is None and store.tokens + new > store.capacity:
            capacity = ample(store, new)
            scratch = self._scratch
            if scratch.shape[1] < self._scratch_size(capacity, self.config.chunk)[1]:
                scratch = self._new_scratch(capacity, self.config.chunk)
            store = self._moved(store, self.config, self.policy, capacity, self.frames)
            self.layers[layer], self._scratch = store, scratch
        return store

    # --- inside: other settings -------------------------------------------------------------------

    @property
    def _full(self) -> bool:
        """Whether there is a budget and every layer has reached it."""
        return self.budget is not None and all(store.tokens == store.capacity for store in self.layers)

    def _measure(self) -> list[float]:
        """How alike the keys of each layer are; waits for the device."""
        found = []
        for store in self.layers:
            store.read(self._scratch)
            found.append(likeness(self._past(store, self._scratch[0])))
        return torch.stack(found).tolist()

    def _switch(self, config: CacheConfig, newest: int, rebuild: bool = False) -> None:
        newest = max(newest, self.frames - config.chunk)  # as many as a step takes in: the floor has room for them
        policy = make_policy(config, self.shape)
        budget, raised = budget_in_force(self.shape, config, policy)
        if budget is None:
            sizes = [ample(store, config.chunk * self.shape.tokens_per_frame) for store in self.layers]
        else:
            sizes = capacities(self.shape, config, policy, budget, self._likeness)
        with memory_for(self._no_memory(max(sizes))):
            self._first.fill_(self.frames)
            policy.allocate(self.device, max(sizes))
            policy.take_over(self.policy)
            camera = self.camera.reconfigured(config, policy.frames_kept)  # first: it may need memory
            self._make_sure_of_memory(config, policy, sizes)
            for layer in sorted(range(len(sizes)), key=lambda i: sizes[i] - self.layers[i].capacity):  # freeing first
                self._move_layer(layer, config, policy, sizes[layer], newest, rebuild)
            self._change_scratch(max(sizes), config.chunk)
        self.lost = False
        self.camera = camera
        self.config, self.policy = config, policy
        self.budget, self.budget_raised = budget, raised

    def _move_layer(
        self, layer: int, config: CacheConfig, policy: Policy, capacity: int, newest: int, rebuild: bool
    ) -> None:
        store = self.layers[layer]
        same = config.quantizer == store.quantizer.config.quantizer  # which the layout does not always tell
        if rebuild or not same or layout(self.shape, config, policy, capacity) != store.layout:
            new = self._moved(store, config, policy, capacity, newest)
            self.lost = True  # until all is changed
            self.layers[layer] = new
            finished = store.places()[0][:, 0] < self.frames
            self._gone += int(finished.sum()) - new.tokens

    def _moved(self, store: Store, config: CacheConfig, policy: Policy, capacity: int, newest: int) -> Store:
        new = Store(self.shape, config, policy, capacity, self.device)
        move(store, new, policy, newest, self.frames, self._scratch)
        return new

    def _make_sure_of_memory(self, config: CacheConfig, policy: Policy, capacities: list[int]) -> None:
        """Asks for the memory that the change needs at most at one time, beside what is held, and lets it go.

        A little more goes into conversions, of a few tokens at a time.
        """
        new = [nbytes(layout(self.shape, config, policy, capacity)) for capacity in capacities]
        scratch = nbytes({"": (self._scratch_size(max(capacities), config.chunk), self.shape.dtype)})
        more = max(0, sum(new) - sum(store.nbytes for store in self.layers))
        torch.empty(more + max(new) + max(0, scratch - self.scratch_nbytes), dtype=torch.uint8, device=self.device)

    def _scratch_size(self, capacity: int, chunk: int) -> tuple[int, ...]:
        """Keys and values of all that attention sees at most."""
        seen = capacity + chunk * self.shape.tokens_per_frame
        return (2, seen, self.shape.heads, self.shape.head_dim)

    def _new_scratch(self, capacity: int, chunk: int) -> Tensor:
        return torch.zeros(self._scratch_size(capacity, chunk), dtype=self.shape.dtype, device=self.device)

    def _change_scratch(self, capacity: int, chunk: int) -> None:
        """To the right size; the old and the new are not there at the same time."""
        if tuple(self._scratch.shape) != self._scratch_size(capacity, chunk):
            self.lost = True  # until all is changed
            self._scratch = self._scratch[:, :0].clone()
            self._scratch = self._new_scratch(capacity, chunk)

    def _no_memory(self, capacity: int) -> str:
        """What an error says."""
        return (
            f"no memory for a cache of {capacity} tokens per layer; lower cache.budget_frames, budget_tokens, "
            "budget_mib or camera_window, or use fewer bits"
        )


def beside(place: Tensor, k: Tensor, v: Tensor, policy: Policy, evidence: dict[str, Tensor]) -> Tensor | None:
    """Puts new keys and values [N, heads, d] into place [2, N, heads, d]; as Seen.bias, for what they lie beside."""
    place[0] = k
    place[1] = v
    bias = policy.bias(evidence)  # [T, lanes]
    if bias is None:
        return None
    return pad(bias.repeat_interleave(k.shape[1] // bias.shape[1], 1).T, (0, k.shape[0]))


def chosen(
    policy: Policy, past: PastTokens, seen: Seen, evictions: int
) -> tuple[dict[str, Tensor], Tensor, Rewritten | None]:
    """What a policy knows about the new tokens, and as Policy.evict what happens to the old ones."""
    seen = replace(seen, q=seen.q.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
    evidence = policy.observe(seen, past.evidence)
    if not evictions:
        return evidence, torch.empty(0, policy.lanes, dtype=torch.int64, device=seen.q.device), None
    return evidence, *policy.evict(past, seen, evidence, evictions)


def ample(store: Store, new: int) -> int:
    """The capacity for `new` tokens more, by doubling."""
    capacity = store.capacity
    while capacity < store.tokens + new:
        capacity *= 2
    return capacity
