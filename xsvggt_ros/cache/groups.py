# SPDX-License-Identifier: Apache-2.0
"""Keys below 16 bits share a scale and offset per channel within a group of tokens: which group, and what room for it.

A group is tokens of one frame, consecutive there when they entered. The groups' parameters are a table of fixed
size; a token knows its group. All that is known of groups is here; the store passes them on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xsvggt_ros.cache.policies.base import PROTECTED, Policy
from xsvggt_ros.cache.quantize import PARAMETER_DTYPE, dequantize, quantize_per_channel
from xsvggt_ros.cache.shape import CacheShape, Layout, codes

GROUP = 64  # tokens that share a key channel's scale and offset, at most
SCATTERED = 4  # times the groups of densely filled ones, for policies that leave groups partly empty


def keys_layout(shape: CacheShape, bits: int, policy: Policy, tokens: int) -> Layout:
    """Of the keys of `tokens` per layer."""
    found: Layout = {"keys": codes(shape, tokens, bits)}
    if bits < 16:
        table = (shape.layers, table_size(shape, policy, tokens), shape.heads, shape.head_dim), PARAMETER_DTYPE
        found |= {"group": ((shape.layers, tokens), torch.int32), "key_scale": table, "key_offset": table}
    return found


def table_size(shape: CacheShape, policy: Policy, tokens: int) -> int:
    """Groups that `tokens` may need, the first frame's and the incoming frame's included.

    A policy that keeps scattered tokens leaves groups partly empty: it gets more room for the tokens between those
    two frames. What happens when that is used up: `Groups.evictions`.
    """
    per_frame = groups_per_frame(shape)
    middle = max(0, tokens - 2 * shape.tokens_per_frame)
    factor = SCATTERED if policy.scattered else 1
    spare = math.ceil(factor * per_frame * middle / shape.tokens_per_frame)
    return 2 * per_frame + spare + (middle > 0)


def groups_per_frame(shape: CacheShape) -> int:
    """Of a whole frame."""
    return math.ceil(shape.tokens_per_frame / GROUP)


class Groups:
    """The keys of a store's tensors, and the groups they are quantised in; at 16 bits there are none."""

    def __init__(self, shape: CacheShape, bits: int, policy: Policy, capacity: int, tensors: dict[str, Tensor]):
        self.shape = shape
        self.bits = bits
        self.tensors = tensors
        self.size = math.ceil(shape.tokens_per_frame / groups_per_frame(shape))  # a frame's are equally full
        self.count = table_size(shape, policy, capacity)
        self.in_use = 0  # at most; known without asking the device

    # --- room -------------------------------------------------------------------------------------

    def suffice(self, policy: Policy, capacity: int) -> bool:
        """Whether those in use and another frame's fit a store of that capacity."""
        return table_size(self.shape, policy, capacity) >= self.in_use + groups_per_frame(self.shape)

    def evictions(self, tokens: int, new: int) -> int:
        """How many of the `tokens` of each layer have to go so that `new` ones find groups.

        The emptiest groups have to be reused when the table is full. They hold at most their share of the tokens;
        the first frame with its groups is left out of the account if it is protected.
        """
        needed = self._needed(new)
        if self.bits == 16 or self.in_use + needed <= self.count:
            return 0
        first, first_groups = self.shape.tokens_per_frame, groups_per_frame(self.shape)
        share = math.ceil(tokens * needed / self.count)
        share_without_first = math.ceil((tokens - first) * needed / (self.count - first_groups))
        return max(share, share_without_first)

    def taken_in(self, new: int) -> None:
        """Every layer took in `new` tokens."""
        if self.bits < 16:
            self.in_use = min(self.in_use + self._needed(new), self.count)

    def choose(self, layer: int, scores: Tensor, evictions: int, new: int) -> tuple[Tensor | None, Tensor]:
        """The groups of `new` tokens, and the scores [T] with those tokens last that have to go for them."""
        if self.bits == 16:
            return None, scores
        group = self.tensors["group"][layer, : scores.shape[0]].long()
        groups = self._emptiest(group, scores, evictions, self._needed(new))
        if evictions:
            reused = torch.zeros(self.count, dtype=torch.bool, device=scores.device).index_fill(0, groups, True)
            scores = scores.masked_fill(reused[group], -PROTECTED)
        return groups, scores

    def _emptiest(self, group: Tensor, scores: Tensor, evictions: int, count: int) -> Tensor:
        """The `count` groups to give to new tokens, from each cached token's group [T].

        Those that the policy's own choice empties, if there are enough; otherwise those with the fewest
        tokens, whose last tokens then have to go before others: the price of a fixed table of groups.
        """
        empty = torch.zeros(self.count, device=scores.device)
        total = empty.index_add(0, group, torch.ones_like(scores))
        stays = torch.ones_like(scores).index_fill(0, lowest(scores, evictions), 0)
        left = empty.index_add(0, group, stays)
        protected = empty.index_add(0, group, (scores == PROTECTED).float()) > 0
        fullness = torch.where((left == 0).sum() >= count, left, total)
        return lowest(fullness.masked_fill(protected, PROTECTED), count)

    def _needed(self, tokens: int) -> int:
        return math.ceil(tokens / self.size)

    # --- keys -------------------------------------------------------------------------------------

    def read(self, layer: int, tokens: int, out: Tensor) -> None:
        """Unpacks the keys of the first `tokens` slots into out [tokens, heads, d]."""
        packed = self.tensors["keys"][layer, :tokens]
        if self.bits == 16:
            out.copy_(packed)
            return
        group = self.tensors["group"][layer, :tokens]
        table = (self.tensors[name][layer].to(out.dtype) for name in ("key_scale", "key_offset"))
        scale, offset = (parameter.index_select(0, group) for parameter in table)
        dequantize(packed, scale, offset, self.bits, out)

    def write(self, layer: int, slots: Tensor, keys: Tensor, groups: Tensor | None) -> None:
        """Stores keys [n, heads, d], consecutive tokens of a frame, in the groups that were chosen for them."""
        if groups is None:
            self.tensors["keys"][layer, slots] = keys
            return
        members = torch.full_like(groups, self.size)
        members[-1] -= groups.shape[0] * self.size - keys.shape[0]
        self._quantise(layer, slots, keys, _rows(members, min(self.size, keys.shape[0])), groups)

    def take_over(self, layer: int, other: Groups, slots: Tensor, exact: Tensor) -> None:
        """Fills the first slots with other's `slots` [n], in order; exact [., heads, d] is other's keys, unpacked.

        Codes whose bits stay the same are moved, others are made anew from the exact numbers.
        """
        mine = torch.arange(slots.shape[0], device=slots.device)
        _, group, members = other._labels(layer, slots).unique(return_inverse=True, return_counts=True)
        self.in_use = max(self.in_use, members.shape[0])
        if self.bits == other.bits:
            self.tensors["keys"][layer, mine] = other.tensors["keys"][layer, slots]
            if self.bits < 16:
                self.tensors["group"][layer, mine] = group.int()
                entry = other.tensors["group"][layer, slots].long()
                for name in ("key_scale", "key_offset"):
                    self.tensors[name][layer, group] = other.tensors[name][layer, entry]
        elif self.bits == 16:
            self.write(layer, mine, exact[slots], None)
        else:
            rows = group.argsort(stable=True)[_rows(members, int(members.max()))]
            self._quantise(layer, mine, exact[slots], rows, torch.arange(members.shape[0], device=slots.device))

    def fitting(self, layer: int, other: Groups, slots: Tensor) -> Tensor:
        """Of other's slots, the best first, those of the best groups that there is room for here."""
        if self.bits == 16:
            return slots
        labels, group = other._labels(layer, slots).unique(return_inverse=True)
        rank = torch.arange(slots.shape[0], device=slots.device)
        best = torch.full_like(labels, slots.shape[0]).scatter_reduce(0, group, rank, "amin")
        return slots[torch.isin(group, best.argsort()[: self.count])]

    def _quantise(self, layer: int, slots: Tensor, keys: Tensor, rows: Tensor, groups: Tensor) -> None:
        """Stores keys [n, heads, d]; rows [G, m] lists each group's keys, groups [G] names its entry."""
        packed, scale, offset = quantize_per_channel(keys, rows, self.bits)
        self.tensors["key_scale"][layer, groups] = scale
        self.tensors["key_offset"][layer, groups] = offset
        group = groups.new_empty(slots.shape)
        group[rows] = groups[:, None].expand_as(rows)
        self.tensors["group"][layer, slots] = group.int()
        self.tensors["keys"][layer, slots] = packed

    def _labels(self, layer: int, slots: Tensor) -> Tensor:
        """A number for the group of each slot's token [n]; at 16 bits that of the group it would have entered with."""
        if self.bits < 16:
            return self.tensors["group"][layer, slots].long()
        frame, token = (self.tensors[name][layer, slots].long() for name in ("frame", "token"))
        return frame * groups_per_frame(self.shape) + token // self.size


def lowest(x: Tensor, count: int) -> Tensor:
    """Where the `count` lowest are, in any order."""
    return x.topk(count, largest=False, sorted=False).indices


def _rows(members: Tensor, most: int) -> Tensor:
    """Where each group's tokens are among all, sorted by group [G, most]; a smaller group repeats its last."""
    start = members.cumsum(0) - members
    return start[:, None] + torch.minimum(torch.arange(most, device=members.device), members[:, None] - 1)
