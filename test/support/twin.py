# SPDX-License-Identifier: Apache-2.0
"""A plain cache beside the real one: what every token is and which of them stay, from the formulas alone.

It keeps every token that ever came, in float32, in a row per token: frame * tokens per frame + place. What is cached
are sets of rows, one per layer and lane. An instance of the same policy ranks them; the real cache's order of slots is
taken over before each step (a random policy numbers tokens by it), nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from support.caches import Shortage, cache_of, shape_of
from support.streams import NewFrames, RandomStream
from xsvggt_ros.cache.policies import PastTokens, Policy, Seen, make_policy
from xsvggt_ros.cache.policies.random import Random
from xsvggt_ros.cache.shape import CacheShape
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.memory import OutOfMemory

FRAMES = 80  # that a twin may see
D = 64
# Walsh's matrix, by its definition.
WALSH = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(D)] for i in range(D)]) / 8
SIGNS = 2.0 * torch.randint(2, (4093, D), generator=torch.Generator().manual_seed(0)) - 1
TIE = 1e-4  # of the scores' spread: what differs by less may be ranked either way


def coded(x: Tensor, bits: int) -> Tensor:
    """x [..., d] as `bits` give it back: the range of each row in 2^bits equal bins, float16 parameters."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    width = (high - low) / 2**bits
    scale, offset = width.half().float(), (low + width / 2).half().float()
    return offset + scale * ((x - offset) / scale).round().clamp(0, 2**bits - 1)


def coded_about_zero(x: Tensor, bits: int) -> Tensor:
    """The same of a range about zero, scaled so that x.y = x.x."""
    step = {1: 1.596, 2: 0.9957, 3: 0.586, 4: 0.3352, 8: 0.03081}[bits]  # Max 1960, of normally distributed numbers
    reach = torch.minimum(x.abs().amax(-1, keepdim=True), x.square().mean(-1, keepdim=True).sqrt() * step * 2**bits / 2)
    bins = ((x / reach + 1) / 2 * 2**bits).floor().clamp(0, 2**bits - 1)
    levels = bins + 0.5 - 2**bits / 2
    return ((x * x).sum(-1, keepdim=True) / (x * levels).sum(-1, keepdim=True)).half().float() * levels


class Coding:
    """How a layer's keys and values are stored."""

    def __init__(self, config: CacheConfig, centre: Tensor):
        self.config = config
        self.rotates = config.quantizer == "rotated"
        self.centre = centre  # [heads, d]

    @property
    def centres(self) -> bool:
        return self.rotates and self.config.key_bits < 16

    def keys(self, rows: Tensor, x: Tensor) -> Tensor:
        """What is left of keys [n, heads, d] of tokens in rows [n, heads]."""
        if self.centres:
            return self._coded(rows, x - self.centre, self.config.key_bits) + self.centre
        return self._coded(rows, x, self.config.key_bits)

    def values(self, rows: Tensor, x: Tensor) -> Tensor:
        return self._coded(rows, x, self.config.value_bits)

    def _coded(self, rows: Tensor, x: Tensor, bits: int) -> Tensor:
        if bits == 16:
            return x
        if not self.rotates:
            return coded(x, bits)
        signs = SIGNS[rows % SIGNS.shape[0]]
        return coded_about_zero(x * signs @ WALSH, bits) @ WALSH * signs

    @property
    def same_keys(self) -> tuple[str, int]:
        return self.config.quantizer, self.config.key_bits

    @property
    def same_values(self) -> tuple[str, int]:
        return self.config.quantizer, self.config.value_bits


class PlainLayer:
    """What one layer keeps."""

    def __init__(self, shape: CacheShape, config: CacheConfig, policy: Policy):
        self.shape = shape
        rows = FRAMES * shape.tokens_per_frame
        self.keys = torch.zeros(rows, shape.heads, shape.head_dim)  # stored
        self.values = torch.zeros_like(self.keys)
        self.exact_keys, self.exact_values = torch.zeros_like(self.keys), torch.zeros_like(self.keys)  # and uncoded
        self.coding = Coding(config, torch.zeros(shape.heads, shape.head_dim))
        self.kept: list[set[int]] = [set() for _ in range(policy.lanes)]
        self.of_layer = {name: torch.zeros(size, dtype=kind) for name, (size, kind) in policy.layer_evidence().items()}
        self.of_tokens = self._zeros(policy)
        self.scores: dict[tuple[int, int], float] = {}  # of (lane, row), where some had to go last

    def _zeros(self, policy: Policy) -> dict[str, Tensor]:
        rows = (self.keys.shape[0], policy.lanes)
        return {n: torch.zeros(*rows, *size, dtype=kind) for n, (size, kind) in policy.token_evidence().items()}

    def of_heads(self, rows: Tensor) -> Tensor:
        return rows.repeat_interleave(self.shape.heads // rows.shape[1], 1)

    def stored(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [n, heads, d] of rows [n, lanes]."""
        rows = self.of_heads(rows)
        heads = torch.arange(self.shape.heads)
        return self.keys[rows, heads], self.values[rows, heads]

    def store(self, rows: Tensor, keys: Tensor | None, values: Tensor | None) -> None:
        rows, heads = self.of_heads(rows), torch.arange(self.shape.heads)
        config = self.coding.config
        if keys is not None:
            self.exact_keys[rows, heads] = keys
            by_channel = config.quantizer == "channel" and config.key_bits < 16  # see `compare`
            self.keys[rows, heads] = torch.nan if by_channel else self.coding.keys(rows, keys)
        if values is not None:
            self.exact_values[rows, heads] = values
            self.values[rows, heads] = self.coding.values(rows, values)

    def evidence(self, rows: Tensor) -> dict[str, Tensor]:
        return self.of_layer | {name: x[rows, torch.arange(rows.shape[1])] for name, x in self.of_tokens.items()}

    def note(self, rows: Tensor, evidence: dict[str, Tensor]) -> None:
        """evidence {name: [n, lanes, ...]} of rows [n, lanes]."""
        for name in self.of_tokens:
            self.of_tokens[name][rows, torch.arange(rows.shape[1])] = evidence[name]

    def past(self, rows: Tensor, keys: Tensor, newest: int, budget: int) -> PastTokens:
        per_frame = self.shape.tokens_per_frame
        frame, token = (rows // per_frame).int(), (rows % per_frame).int()
        return PastTokens(frame, token, keys, newest, per_frame, budget, self.evidence(rows))

    def keep_best(self, rows: Tensor, scores: Tensor, count: int) -> None:
        """Of rows [n, lanes] the `count` with the highest scores in each lane, of equal ones the newest."""
        ranked = [sorted(zip(*both, strict=True)) for both in zip(scores.T.tolist(), rows.T.tolist(), strict=True)]
        self.kept = [{row for _, row in lane[max(0, len(lane) - count) :]} for lane in ranked]
        self.scores = {
            (lane, row): float(score)
            for lane, (ids, values) in enumerate(zip(rows.T.tolist(), scores.T, strict=True))
            for row, score in zip(ids, values, strict=True)
        }

    def compare(self, rows: Tensor, keys: Tensor, values: Tensor) -> int:
        """Checks what the real cache holds [T, heads, d], and goes on with it.

        Keys that share parameters per channel: half a step from what they were. Returns how many tokens' changed.
        """
        index = (self.of_heads(rows), torch.arange(self.shape.heads))
        same(values, self.values[index], self.exact_values[index])
        before, exact, changed = self.keys[index], self.exact_keys[index], 0
        if self.coding.config.quantizer == "channel" and self.coding.config.key_bits < 16:
            before = torch.where(before.isnan(), exact, before)
            extent = torch.cat([keys, before])
            step = (extent.amax(0) - extent.amin(0)) / 2**self.coding.config.key_bits
            change = (keys - before).abs()
            assert (change <= step / 2 + 2**-10 * extent.abs().amax(0) + 1e-3).all()
            old = ~self.keys[index].isnan() & (change > 1e-5)
            changed = int(old.unflatten(1, (rows.shape[1], -1)).flatten(2).any(-1).sum())
        else:
            same(keys, before, exact)
        self.keys[index], self.values[index] = keys, values
        return changed

    def adopt(self, policy: Policy, before: Tensor, rows: Tensor, evidence: dict[str, Tensor]) -> None:
        """What is left of `before`, and what is known about it, after a step that was cut off anywhere."""
        for lane, (had, has) in enumerate(zip(before.T.tolist(), rows.T.tolist(), strict=True)):
            assert set(has) <= set(had), "a token of the abandoned frame is there"
            self.kept[lane] = set(has)
        self.of_tokens = self._zeros(policy)
        self.note(rows, evidence)
        self.of_layer = {name: evidence[name].clone() for name in policy.layer_evidence()}

    def choose(self, lane: int, real: set[int]) -> None:
        """Checks the real choice of a lane: the same, but for tokens whose scores are."""
        mine = self.kept[lane]
        if mine != real:
            assert len(mine) == len(real), (len(mine), len(real))
            finite = torch.tensor([x for x in self.scores.values() if abs(x) != float("inf")])
            lost, gained = ([self.scores[lane, row] for row in rows] for rows in (mine - real, real - mine))
            assert max(lost) - min(gained) <= TIE * float(finite.max() - finite.min()), "another choice than by score"
        self.kept[lane] = real


class Twin(RandomStream):
    """The real cache and the plain one, of which every operation is checked."""

    def __init__(self, config: CacheConfig, tokens_per_frame: int = 25, layers: int = 2, seed: int = 0, **shape: int):
        super().__init__(config, tokens_per_frame, layers, seed)
        self.shape = shape_of(tokens_per_frame, layers, **shape)
        self.offset = 3 * self._normal(layers, 1, self.shape.heads, D)  # channels with an offset of their own
        self.config = config
        self.reset()

    def reset(self) -> None:
        """A new stream."""
        self.cache = cache_of(self.shape, self.config)
        self.policy = self._policy(self.config)
        self.plain = [PlainLayer(self.shape, self.config, self.policy) for _ in range(self.shape.layers)]
        self.frames = self.newest = 0
        self.tokens = self.reencoded = 0
        self.check()

    def draw(self, frames: int, geometry=None) -> NewFrames:
        new = super().draw(frames, geometry)
        new.k += self.offset
        return new

    # --- what is done to both ---------------------------------------------------------------------

    def step(self, frames: int = 1, geometry=None) -> None:
        new = self.draw(frames, geometry)
        places = self.places_in_memory()
        self._take_in(new, None)
        evidence = self.policy.learn(new.geometry)
        for layer in range(self.shape.layers):
            self._note(layer, evidence, frames)
        self.newest, self.frames = self.frames, self.frames + frames
        self.check()
        assert self.budget is None or self.places_in_memory() == places, "a cache with a budget moved"

    def fail(self, layers: int, config: CacheConfig) -> None:
        """A step that fails after some of the layers, and what the cache then goes on with."""
        self._take_in(self.draw(1), layers)
        for index in range(self.shape.layers):
            self._check_layer(index)
        self._go_on(config, self.cache.abandon_frames, newest=self.frames)

    def cut_off(self, shortage: Shortage, config: CacheConfig) -> bool:
        """A step that finds no memory, and what the cache goes on with, at the same bits; whether it does."""
        new, before = self.draw(1), [self.order(layer) for layer in range(self.shape.layers)]
        with pytest.raises((torch.OutOfMemoryError, MemoryError)), shortage:
            self.feed(new)
        try:
            self.cache.abandon_frames(config)
        except OutOfMemory:
            assert self.cache.lost
            return False
        self.config, self.policy = config, self._policy(config)
        self.policy.take_over(self.cache.policy)
        for index, (layer, rows) in enumerate(zip(self.plain, before, strict=True)):
            layer.adopt(self.policy, rows, self.order(index), self.cache.layers[index].evidence())
        self.check()
        return True

    def reconfigure(self, config: CacheConfig) -> None:
        self._go_on(config, self.cache.reconfigure, newest=max(self.newest, self.frames - config.chunk))

    # --- a step -----------------------------------------------------------------------------------

    def _take_in(self, new: NewFrames, layers: int | None) -> None:
        orders = [self.order(layer) for layer in range(self.shape.layers)]
        self._same_luck()
        outputs = self.feed(new, layers)
        self.policy.begin(new.patches, self.frames)
        for layer, output in enumerate(outputs):
            expected = self._attend(layer, orders[layer], new.q[layer], new.k[layer], new.v[layer])
            torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)
            if self.policy.wants_residual:
                self._note(layer, self.policy.weigh(new.residual[layer].norm(dim=-1)), new.count)

    def _attend(self, index: int, old: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layer, count = self.plain[index], q.shape[0]
        if not old.shape[0]:
            layer.coding.centre = k[: self.shape.tokens_per_frame].mean(0)
        seen_keys, seen_values = (torch.cat(x) for x in zip(layer.stored(old), (k, v), strict=True))
        evidence = layer.evidence(old)
        bias = self.policy.bias(evidence)
        if bias is not None:
            bias = torch.cat([layer.of_heads(bias).T, torch.zeros(self.shape.heads, count)], 1)
        seen = Seen(q, seen_keys, seen_values, bias)
        output = attention(q, seen_keys, seen_values, bias)
        found = self.policy.observe(seen, evidence)
        layer.note(old, evidence)
        self._make_room(layer, old, seen, found)
        rows = self._new_rows(count, layer)
        layer.store(rows, k[-rows.shape[0] :], v[-rows.shape[0] :])
        nothing = {name: torch.zeros_like(x[rows, 0]) for name, x in layer.of_tokens.items()}
        layer.note(rows, nothing | {name: x[-rows.shape[0] :] for name, x in found.items()})
        for lane, ids in enumerate(rows.T.tolist()):
            layer.kept[lane] |= set(ids)
        return output

    def _make_room(self, layer: PlainLayer, old: Tensor, seen: Seen, found: dict[str, Tensor]) -> None:
        capacity = self.budget or 10**9
        left = capacity - min(seen.q.shape[0], capacity)
        if old.shape[0] > left:
            count = old.shape[0]
            past = layer.past(old, seen.keys[:count], self.frames, capacity)
            slots, rewritten = old[:0], None
            if not isinstance(self.policy, Random):  # whose scores are others each time
                slots, rewritten = self.policy.evict(past, seen, found, count - left)
            scores = self.policy.scores(past)
            if rewritten:  # then by more than the scores, see test_stac.py
                where, keys, values = rewritten
                layer.store(old.gather(0, where), keys, values)
                scores = scores.scatter(0, slots, -torch.inf)
            layer.note(old, past.evidence)
            layer.keep_best(old, scores, left)

    def _new_rows(self, count: int, layer: PlainLayer) -> Tensor:
        first = self.frames * self.shape.tokens_per_frame
        kept = min(count, self.budget or count)
        return torch.arange(first + count - kept, first + count)[:, None].expand(-1, len(layer.kept))

    def _note(self, layer: int, evidence: dict[str, Tensor], count: int) -> None:
        """Of the `count` newest frames."""
        size, there = self.shape.tokens_per_frame, self.plain[layer].of_tokens
        for name, x in evidence.items():
            there[name][self.frames * size : (self.frames + count) * size] = x[:, None].to(there[name].dtype)

    # --- other settings ---------------------------------------------------------------------------

    def _go_on(self, config: CacheConfig, change: Callable[[CacheConfig], None], newest: int) -> None:
        orders = [self.order(layer) for layer in range(self.shape.layers)]
        change(config)
        before, self.config = self.policy, config
        self.policy = self._policy(config)
        self.policy.take_over(before)
        for layer, order in zip(self.plain, orders, strict=True):
            self._move(layer, order, newest)
        self.check()

    def _move(self, layer: PlainLayer, order: Tensor, newest: int) -> None:
        rows = self._candidates(order)
        lanes, known = order.shape[1], layer.of_tokens
        zeros = {n: x[:, :1].repeat_interleave(lanes, 1) for n, x in layer._zeros(self.policy).items()}
        layer.of_tokens = {n: known.get(n, x) for n, x in zeros.items()}
        if self.policy.lanes < lanes:
            self._leave_behind(layer, order, rows.expand(-1, lanes), newest)
        layer.of_tokens = {n: self._of_lanes(n, x) for n, x in layer.of_tokens.items()}
        evidence = self.policy.layer_evidence()
        layer.of_layer = {n: layer.of_layer.get(n, torch.zeros(s, dtype=kind)) for n, (s, kind) in evidence.items()}
        keys, values = layer.stored(rows)
        coding = Coding(self.config, layer.coding.centre)
        there = rows // self.shape.tokens_per_frame < self.frames
        scores = torch.zeros(rows.shape)
        if rows.shape[0]:
            scores = self.policy.scores(layer.past(rows, keys, newest, self.budget or 0)).masked_fill(
                ~there, -torch.inf
            )
        layer.keep_best(rows, scores, min(self.budget or 10**9, int(there.sum(0).min()) if rows.shape[0] else 0))
        self._leave_behind(layer, rows, torch.tensor([sorted(lane) for lane in layer.kept]).long().T, newest)
        if coding.centres and not layer.coding.centres:
            oldest = torch.tensor([sorted(lane)[: self.shape.tokens_per_frame] for lane in layer.kept]).T
            plain = torch.zeros_like(layer.keys)
            plain[layer.of_heads(rows), torch.arange(self.shape.heads)] = keys
            coding.centre = plain[layer.of_heads(oldest.long()), torch.arange(self.shape.heads)].mean(0)
        layer.coding, old = coding, layer.coding
        layer.store(
            rows,
            None if old.same_keys == coding.same_keys else keys,
            None if old.same_values == coding.same_values else values,
        )

    def _leave_behind(self, layer: PlainLayer, rows: Tensor, kept: Tensor, newest: int) -> None:
        """All but the rows kept [n, lanes] go."""
        if not rows.shape[0]:
            return
        past = layer.past(rows, layer.stored(rows)[0], newest, self.budget or 0)
        self.policy.leave_behind(past, (rows.T[:, None] == kept.T[..., None]).int().argmax(-1).T, self.frames)
        layer.note(rows, past.evidence)

    def _of_lanes(self, name: str, x: Tensor) -> Tensor:
        """x [rows, lanes] as the policy's lanes have it: added up over heads, or the mean."""
        lanes, before, adds_up = self.policy.lanes, x.shape[1], name in self.policy.adds_up
        if lanes == before:
            return x
        whole = x.double().sum(1, keepdim=True) if adds_up else x.double().mean(1, keepdim=True)
        return (whole / (lanes if adds_up else 1)).to(x.dtype).repeat_interleave(lanes, 1)

    def _candidates(self, order: Tensor) -> Tensor:
        """Where lanes become one, what all of them kept."""
        lanes = self.policy.lanes
        if lanes >= order.shape[1]:
            return order.repeat_interleave(lanes // order.shape[1], 1)
        common = set.intersection(*(set(lane) for lane in order.T.tolist()))
        return torch.tensor(sorted(common), dtype=torch.int64)[:, None]

    # --- inside -----------------------------------------------------------------------------------

    def _policy(self, config: CacheConfig) -> Policy:
        policy = make_policy(config, self.shape)
        asked = max(config.budget_tokens or int(config.budget_frames * self.shape.tokens_per_frame), policy.floor())
        self.budget = None if config.policy == "full" else policy.usable(asked)
        policy.allocate(torch.device("cpu"), self.budget or 0)
        return policy

    def order(self, layer: int) -> Tensor:
        """Rows [T, lanes] of the real cache's slots."""
        frame, token = self.cache.layers[layer].places()
        return frame.long() * self.shape.tokens_per_frame + token

    def _same_luck(self) -> None:
        if isinstance(self.policy, Random):
            real = self.cache.policy._generator
            self.policy._generator = real and torch.Generator().set_state(real.get_state())

    def places_in_memory(self) -> list[int]:
        cache = self.cache
        buffers = [] if self.config.camera_window == 0 else [cache.camera.buffer]
        tensors = [*(x for store in cache.layers for x in store.tensors.values()), *cache.policy.shared.values()]
        return [tensor.data_ptr() for tensor in [*tensors, *buffers]]

    # --- what must be the same --------------------------------------------------------------------

    def check(self) -> None:
        cache = self.cache
        assert cache.nbytes == sum(tensor.nbytes for tensor in cache.tensors)
        assert (cache.frames, cache.budget) == (self.frames, self.budget)
        changed = sum(self._check_layer(index) for index in range(self.shape.layers))
        again, self.reencoded = cache.reencoded - self.reencoded, cache.reencoded
        lanes = self.policy.lanes
        assert changed <= (again + (self.shape.layers if lanes > 1 else 0)) * lanes, (
            "keys changed without being counted"
        )

    def _check_layer(self, index: int) -> int:
        """Returns how many tokens have other keys than before."""
        layer, rows = self.plain[index], self.order(index)
        assert rows.shape[1] == len(layer.kept)
        for lane, ids in enumerate(rows.T.tolist()):
            assert len(set(ids)) == len(ids), "a token is there twice"
            layer.choose(lane, set(ids))
            assert self.cache.token_ids(index, lane).tolist() == sorted(ids)
        for name, x in layer.evidence(rows).items():
            torch.testing.assert_close(self.cache.layers[index].evidence()[name], x, rtol=1e-3, atol=1e-4, msg=name)
        out = torch.zeros(2, rows.shape[0], self.shape.heads, self.shape.head_dim)
        self.cache.layers[index].read(out)
        return layer.compare(rows, *out) if rows.shape[0] else 0


def same(real: Tensor, expected: Tensor, exact: Tensor) -> None:
    """Checks that codes mean what is expected, but for a few where the rounding of the input turned one on an edge."""
    slack = 2**-9 * exact.norm(dim=-1) + 1e-5
    error, allowed = (real - exact).norm(dim=-1), (expected - exact).norm(dim=-1)
    assert (error <= 1.1 * allowed + slack).all()
    assert (error > 1.02 * allowed + slack).sum() <= 1 + 0.005 * error.numel()


def attention(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, written out: q [N, heads, d] -> [N, heads, d]."""
    logits = torch.einsum("nhd,thd->hnt", q, keys) / q.shape[-1] ** 0.5
    if bias is not None:
        logits += bias[:, None]
    return torch.einsum("hnt,thd->nhd", logits.softmax(-1), values)
