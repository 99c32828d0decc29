# SPDX-License-Identifier: Apache-2.0
"""Packed storage of all layers' keys and values: slots that are read whole and written in place."""

from __future__ import annotations

import torch
from torch import Tensor

from xsvggt_ros.cache.budget import CacheShape, key_groups, layout, nbytes
from xsvggt_ros.cache.policies import Policy
from xsvggt_ros.cache.quantize import dequantize, quantize_per_channel, quantize_per_token
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.memory import MIB, memory_for


class Store:
    """Tensors for `capacity` tokens per layer. Which slots are in use is the caller's business.

    Raises OutOfMemory, with the remedy, if there is not the memory for them.

    Keys below 16 bits share a scale and offset per channel within a group: tokens of one frame, consecutive
    there when they entered. The groups' parameters are a table of fixed size; a token knows its group.
    """

    def __init__(self, shape: CacheShape, config: CacheConfig, policy: Policy, capacity: int, device: torch.device):
        self.shape = shape
        self.capacity = capacity
        self.key_bits = config.key_bits
        self.value_bits = config.value_bits
        self.groups = key_groups(shape, policy, capacity)
        self.layout = layout(shape, config, policy, capacity)
        with memory_for(
            f"no memory for a cache of {capacity} tokens ({nbytes(self.layout) / MIB:.0f} MiB); "
            "lower cache.budget_tokens, set cache.budget_mib, or use fewer bits"
        ):
            self.tensors = {
                name: torch.zeros(size, dtype=dtype, device=device) for name, (size, dtype) in self.layout.items()
            }

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def read(self, layer: int, tokens: int, out: Tensor) -> None:
        """Unpacks the first `tokens` slots into out [2, >= tokens, heads, d]: keys, then values."""
        keys, values = out[:, :tokens]
        if self.key_bits == 16:
            keys.copy_(self["keys"][layer, :tokens])
        else:
            group = self["group"][layer, :tokens]
            table = (self[name][layer].to(out.dtype) for name in ("key_scale", "key_offset"))
            scale, offset = (parameter.index_select(0, group) for parameter in table)
            dequantize(self["keys"][layer, :tokens], scale, offset, self.key_bits, keys)
        if self.value_bits == 16:
            values.copy_(self["values"][layer, :tokens])
        else:
            scale, offset = (self[name][layer, :tokens, :, None] for name in ("value_scale", "value_offset"))
            dequantize(self["values"][layer, :tokens], scale, offset, self.value_bits, values)

    def write_keys(self, layer: int, slots: Tensor, keys: Tensor, rows: Tensor, groups: Tensor | None) -> None:
        """Stores keys [n, heads, d]. Below 16 bits rows [G, m] lists each group's keys, groups [G] names its entry."""
        if groups is not None:
            keys, scale, offset = quantize_per_channel(keys, rows, self.key_bits)
            self["key_scale"][layer, groups] = scale
            self["key_offset"][layer, groups] = offset
            group = groups.new_empty(slots.shape)
            group[rows] = groups[:, None].expand_as(rows)
            self["group"][layer, slots] = group.int()
        self["keys"][layer, slots] = keys

    def write_values(self, layer: int, slots: Tensor, values: Tensor) -> None:
        """Stores values [n, heads, d]."""
        if self.value_bits < 16:
            values, scale, offset = quantize_per_token(values, self.value_bits)
            self["value_scale"][layer, slots] = scale
            self["value_offset"][layer, slots] = offset
        self["values"][layer, slots] = values

    def write_places(self, layer: int, slots: Tensor, frame: Tensor | int, token: Tensor) -> None:
        """Stores which frame the tokens came with, and their places in it [n]."""
        self["frame"][layer, slots] = frame
        self["token"][layer, slots] = token.int()

    def group_labels(self, layer: int, slots: Tensor) -> Tensor:
        """A number for the key group of each slot's token [n], which follows from where the token came from."""
        frame, token = (self[name][layer, slots].long() for name in ("frame", "token"))
        return frame * self.shape.groups_per_frame + token // self.shape.group_size

    def take_over(self, layer: int, other: Store, slots: Tensor, exact: Tensor) -> int:
        """Fills the first slots with other's `slots` [n], in order; exact [2, ., heads, d] is other, unpacked.

        Codes whose bits stay the same are moved, others are made anew from the exact numbers.
        Returns how many key groups the tokens come from.
        """
        mine = torch.arange(slots.shape[0], device=slots.device)
        self.write_places(layer, mine, other["frame"][layer, slots], other["token"][layer, slots])
        self["query"][layer] = other["query"][layer]
        _, group, members = other.group_labels(layer, slots).unique(return_inverse=True, return_counts=True)
        if self.key_bits != other.key_bits:
            groups = torch.arange(members.shape[0], device=slots.device) if self.key_bits < 16 else None
            self.write_keys(layer, mine, exact[0, slots], _rows(group, members), groups)
        else:
            self["keys"][layer, mine] = other["keys"][layer, slots]
            if self.key_bits < 16:
                self["group"][layer, mine] = group.int()
                entry = other["group"][layer, slots].long()
                for name in ("key_scale", "key_offset"):
                    self[name][layer, group] = other[name][layer, entry]
        if self.value_bits != other.value_bits:
            self.write_values(layer, mine, exact[1, slots])
        else:
            for name in ("values", "value_scale", "value_offset"):
                if name in self.tensors:
                    self[name][layer, mine] = other[name][layer, slots]
        return members.shape[0]


def _rows(group: Tensor, members: Tensor) -> Tensor:
    """The tokens of each group [G, most members], from each token's group [n]; missing ones repeat the last."""
    order = group.argsort(stable=True)
    start = members.cumsum(0) - members
    place = torch.arange(int(members.max()), device=group.device)
    return order[start[:, None] + torch.minimum(place, members[:, None] - 1)]
