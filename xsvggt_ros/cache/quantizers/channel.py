# SPDX-License-Identifier: Apache-2.0
"""The scheme of XStreamVGGT (arXiv 2601.01204, section 3.3), really packed: keys per channel, values per token.

Keys share a scale and offset per channel within a group of up to 64 tokens, those of one frame that lay together there.
The groups' parameters are a table of fixed size. As a policy takes tokens away groups become sparse; once the table is
used up, the sparsest groups' tokens are encoded anew, together in fewer groups, so that the table never decides what
stays. Every token that this happens to is rounded once more; `reencoded` counts them. (The published code quantises
every token anew in every frame, and packs none.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xsvggt_ros.cache.lanes import at, by_lane, lanes_in, lanes_of
from xsvggt_ros.cache.quantizers.affine import dequantize, quantize_per_channel, quantize_per_token
from xsvggt_ros.cache.quantizers.base import Quantizer
from xsvggt_ros.cache.quantizers.packing import PARAMETER_DTYPE
from xsvggt_ros.cache.shape import CacheShape, Layout
from xsvggt_ros.config import CacheConfig

GROUP = 64  # tokens that share a key channel's scale and offset, at most
ROOM = 2  # times the groups of densely filled ones; `_merge_sparse` relies on it


class Channel(Quantizer):
    """Which group a token is of, and what room there is for groups, is all known here."""

    parameters = ("scale", "offset")

    def __init__(self, config: CacheConfig, shape: CacheShape, lanes: int, capacity: int):
        super().__init__(config, shape, lanes, capacity)
        per_frame = shape.tokens_per_frame
        self.size = math.ceil(per_frame / math.ceil(per_frame / GROUP))  # a frame's groups are equally full
        new = min(config.chunk * per_frame, capacity)
        self.count = ROOM * self._needed(capacity) + self._needed(new)

    def layout(self) -> Layout:
        if self.bits["key"] == 16:
            return super().layout()
        table = (self.count, self.shape.heads, self.shape.head_dim), PARAMETER_DTYPE
        group = (self.capacity, self.lanes), torch.int32
        reencoded = (), torch.int64  # tokens, summed over the lanes
        keys: Layout = {"group": group, "key_scale": table, "key_offset": table, "reencoded": reencoded}
        return super().layout() | keys

    @property
    def reencoded(self) -> int:
        here = 0 if self.bits["key"] == 16 else int(self.tensors["reencoded"]) // self.lanes
        return super().reencoded + here

    def _needed(self, tokens: int) -> int:
        """Groups of so many tokens that lie together."""
        return math.ceil(tokens / self.size)

    def _encoded(self, kind: str, slots: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return quantize_per_token(x, self.bits[kind])

    def _decode(self, kind: str, rows: slice, packed: Tensor, parameters: list[Tensor], out: Tensor) -> None:
        scale, offset = parameters
        dequantize(packed, scale, offset, self.bits[kind], out)

    # --- keys -------------------------------------------------------------------------------------

    @property
    def _at_once(self) -> int:
        return super()._at_once // self.size * self.size  # whole groups

    def _read_keys(self, rows: slice, out: Tensor) -> None:
        if self.bits["key"] == 16:
            self._read_per_token("key", rows, out)
            return
        scale, offset = self._parameters_of(self.tensors["group"][rows])
        dequantize(self.tensors["keys"][rows], scale, offset, self.bits["key"], out)

    def _write_keys(self, slots: Tensor, keys: Tensor, in_use: int, evictions: int) -> None:
        if self.bits["key"] == 16:
            self._write_per_token("key", slots, keys)
            return
        needed = self._needed(slots.shape[0])
        stay = torch.arange(self.capacity, device=slots.device)[:, None].expand(-1, self.lanes) < in_use
        stay = stay.scatter(0, slots[:evictions], False)
        fullness = self._fullness(stay)
        if in_use > evictions:
            fullness = self._merge_sparse(stay, fullness, needed, min(needed * self.size, in_use - evictions))
        self._encode(slots, keys, emptiest(fullness, needed))

    def take_over(self, other: Quantizer, source: Tensor, keys: Tensor, values: Tensor) -> None:
        if self._holds_all_of(other):
            for name in ("key_scale", "key_offset"):
                self.tensors[name][: other.tensors[name].shape[0]] = other.tensors[name]
        super().take_over(other, source, keys, values)

    def _take_over_keys(self, other: Quantizer, source: Tensor, rows: slice, keys: Tensor) -> None:
        slots = self._slots(rows)
        if self._holds_all_of(other):
            self._move(other, source, rows, ["keys"])
            self.tensors["group"][rows] = at(other.tensors["group"], lanes_in(source, self.lanes))
        elif self.bits["key"] == 16:
            self._write_per_token("key", slots, at(keys, source))
        else:
            entries = rows.start // self.size + torch.arange(self._needed(slots.shape[0]), device=slots.device)
            self._encode(slots, at(keys, source), entries[:, None].expand(-1, self.lanes))
            if isinstance(other, Channel) and self.bits["key"] == other.bits["key"]:
                self.tensors["reencoded"] += slots.numel()

    def _holds_all_of(self, other: Quantizer) -> bool:
        """Whether the other's groups may stay as they are."""
        if not isinstance(other, Channel) or self.bits["key"] == 16:
            return False
        same = (self.bits["key"], self.lanes) == (other.bits["key"], other.lanes)
        return same and self.count >= other.count

    # --- groups -----------------------------------------------------------------------------------

    def _parameters_of(self, group: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and offset [n, heads, d] of tokens of groups [n, lanes]."""
        tables = (by_lane(self.tensors[name], self.lanes) for name in ("key_scale", "key_offset"))
        scale, offset = (at(table, group).flatten(1, 2) for table in tables)
        return scale, offset

    def _fullness(self, stay: Tensor) -> Tensor:
        """Tokens of each group [count, lanes], of those in slots that `stay` [capacity, lanes]."""
        empty = torch.zeros(self.count, self.lanes, dtype=torch.int64, device=stay.device)
        return empty.scatter_add(0, self.tensors["group"].long(), stay.long())

    def _encode(self, slots: Tensor, keys: Tensor, entries: Tensor, where: Tensor | bool = True) -> None:
        """Stores keys [n, heads, d], in runs of `size`, as groups `entries` [m, lanes]; `where` [lanes] only."""
        packed, scale, offset = quantize_per_channel(keys, self._runs(keys), self.bits["key"])
        self._put_where(where, "key_scale", entries, scale)
        self._put_where(where, "key_offset", entries, offset)
        self._put_where(where, "keys", slots, packed)
        run = torch.arange(slots.shape[0], device=slots.device) // self.size
        self._put_where(where, "group", slots, entries[run].int())

    def _put_where(self, where: Tensor | bool, name: str, rows: Tensor, x: Tensor) -> None:
        """Writes x [n, ...] to rows [n, lanes] in the lanes `where` it is so."""
        x, there = by_lane(x, self.lanes), by_lane(self.tensors[name], self.lanes)
        if isinstance(where, Tensor):
            x = torch.where(where.view(-1, *[1] * (x.ndim - 2)), x, at(there, rows))
        there[rows, lanes_of(rows)] = x

    def _runs(self, keys: Tensor) -> Tensor:
        """The rows of each run of `size` keys [m, size]; a shorter last one repeats its last."""
        count = keys.shape[0]
        rows = torch.arange(self._needed(count) * self.size, device=keys.device).clamp_max(count - 1)
        return rows.view(-1, self.size)

    def _merge_sparse(self, stay: Tensor, fullness: Tensor, needed: int, tokens: int) -> Tensor:
        """Where fewer than `needed` groups are empty, encodes the `tokens` of the sparsest groups together anew.

        Returns how full the groups are then. ROOM = 2 suffices: with fewer than `needed` groups empty, those in use
        hold less than half of `size` on average, so that the sparsest tokens, `needed` times `size` of them, come from
        at least twice as many groups as they then need. Done by selection, so that nothing waits for the device.
        """
        tight = (fullness == 0).sum(0) < needed  # [lanes]
        group = self.tensors["group"].long()
        sparsity = (fullness.gather(0, group) * self.count + group).masked_fill(~stay, torch.iinfo(torch.int64).max)
        slots = sparsity.topk(tokens, dim=0, largest=False).indices  # [tokens, lanes], a group's beside each other
        left = fullness.scatter_add(0, group.gather(0, slots), torch.full_like(slots, -1))
        entries = emptiest(left, self._needed(tokens))
        keys = self._keys_in(slots)
        self.torn = True
        self._encode(slots, keys, entries, tight)
        self.tensors["reencoded"] += tight.sum() * tokens
        self.torn = False
        return self._fullness(stay)

    def _keys_in(self, slots: Tensor) -> Tensor:
        """Keys [n, heads, d], float32, unpacked from slots [n, lanes]."""
        packed = at(by_lane(self.tensors["keys"], self.lanes), slots).flatten(1, 2)
        scale, offset = self._parameters_of(at(self.tensors["group"], slots))
        return dequantize(packed, scale, offset, self.bits["key"], torch.empty(scale.shape, device=packed.device))


def emptiest(fullness: Tensor, count: int) -> Tensor:
    """The `count` groups with the fewest tokens [count, lanes]."""
    return fullness.topk(count, dim=0, largest=False).indices
