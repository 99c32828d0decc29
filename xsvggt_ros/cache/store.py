# SPDX-License-Identifier: Apache-2.0
"""Packed storage of all layers' keys and values: slots that are read whole and written in place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xsvggt_ros.cache.groups import Groups, keys_layout, lowest
from xsvggt_ros.cache.policies import Policy
from xsvggt_ros.cache.quantize import PARAMETER_DTYPE, dequantize, quantize_per_token
from xsvggt_ros.cache.shape import CacheShape, Layout, codes, nbytes
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.memory import MIB, memory_for


class Room(NamedTuple):
    """Where new tokens go."""

    slots: Tensor  # [n]
    groups: Tensor | None = None  # of their keys, if those are quantised


def layout(shape: CacheShape, config: CacheConfig, policy: Policy, tokens: int) -> Layout:
    """Of every tensor of a store for `tokens` per layer."""
    slots = (shape.layers, tokens)
    found: Layout = {"frame": (slots, torch.int32), "token": (slots, torch.int32)}
    found |= keys_layout(shape, config.key_bits, policy, tokens)
    found |= {"values": codes(shape, tokens, config.value_bits)}
    if config.value_bits < 16:
        per_head = (*slots, shape.heads), PARAMETER_DTYPE
        found |= {"value_scale": per_head, "value_offset": per_head}
    return found | {name: ((shape.layers, *size), dtype) for name, (size, dtype) in policy.evidence().items()}


class Store:
    """Room for `capacity` tokens per layer, as many in use in every layer: the first slots, in no order.

    Raises OutOfMemory, with the remedy, if there is not the memory for them.
    """

    def __init__(self, shape: CacheShape, config: CacheConfig, policy: Policy, capacity: int, device: torch.device):
        self.shape = shape
        self.capacity = capacity
        self.tokens = 0  # in use, per layer
        self.layout = layout(shape, config, policy, capacity)
        with memory_for(
            f"no memory for a cache of {capacity} tokens ({nbytes(self.layout) / MIB:.0f} MiB); "
            "lower cache.budget_tokens, set cache.budget_mib, or use fewer bits"
        ):
            self.tensors = {
                name: torch.zeros(size, dtype=dtype, device=device) for name, (size, dtype) in self.layout.items()
            }
        self._evidence = tuple(policy.evidence())
        self._value_bits = config.value_bits
        self._groups = Groups(shape, config.key_bits, policy, capacity, self.tensors)

    # --- what is there ----------------------------------------------------------------------------

    def read(self, layer: int, out: Tensor) -> None:
        """Unpacks the slots in use into out [2, >= tokens, heads, d]: keys, then values."""
        keys, values = out[:, : self.tokens]
        self._groups.read(layer, self.tokens, keys)
        packed = self.tensors["values"][layer, : self.tokens]
        if self._value_bits == 16:
            values.copy_(packed)
        else:
            table = (self.tensors[name][layer, : self.tokens, :, None] for name in ("value_scale", "value_offset"))
            scale, offset = table
            dequantize(packed, scale, offset, self._value_bits, values)

    def places(self, layer: int) -> tuple[Tensor, Tensor]:
        """The frame that each token in use came with, and its place in that frame, int32 [tokens] both."""
        return self.tensors["frame"][layer, : self.tokens], self.tensors["token"][layer, : self.tokens]

    def evidence(self, layer: int) -> dict[str, Tensor]:
        """What the policy keeps about a layer, to read and to write in place."""
        return {name: self.tensors[name][layer] for name in self._evidence}

    # --- taking tokens in -------------------------------------------------------------------------

    def evictions(self, new: int) -> int:
        """How many tokens have to go, in every layer, for `new` ones."""
        over = max(0, self.tokens + new - self.capacity)
        return min(self.tokens, max(over, self._groups.evictions(self.tokens, new)))

    def room(self, layer: int, new: int, scores: Tensor) -> Room:
        """Frees the slots of the tokens that have to go, those of the lowest scores [tokens], for `new` ones."""
        evictions = self.evictions(new)
        groups, scores = self._groups.choose(layer, scores, evictions, new)
        fresh = torch.arange(self.tokens, self.tokens + new - evictions, device=scores.device)
        return Room(torch.cat([lowest(scores, evictions), fresh]), groups)

    def put(self, layer: int, room: Room, frame: Tensor | int, token: Tensor, keys: Tensor, values: Tensor) -> None:
        """Stores keys and values [n, heads, d] of the tokens at places `token` [n] of a frame."""
        # First of all: where the rest fails, these slots are known as the unfinished frame's.
        self._put_places(layer, room.slots, frame, token)
        self._groups.write(layer, room.slots, keys, room.groups)
        self._put_values(layer, room.slots, values)

    def taken_in(self, new: int) -> int:
        """After every layer took in `new` tokens. Returns how many went for them, per layer."""
        evictions = self.evictions(new)
        self._groups.taken_in(new)
        self.tokens += new - evictions
        return evictions

    def _put_places(self, layer: int, slots: Tensor, frame: Tensor | int, token: Tensor) -> None:
        self.tensors["frame"][layer, slots] = frame
        self.tensors["token"][layer, slots] = token.int()

    def _put_values(self, layer: int, slots: Tensor, values: Tensor) -> None:
        if self._value_bits < 16:
            values, scale, offset = quantize_per_token(values, self._value_bits)
            self.tensors["value_scale"][layer, slots] = scale
            self.tensors["value_offset"][layer, slots] = offset
        self.tensors["values"][layer, slots] = values

    # --- moving to another store ------------------------------------------------------------------

    def ample_capacity(self, policy: Policy) -> int:
        """Of a store by `policy` that has room for another frame beside all of this one, by doubling."""
        capacity = self.capacity
        while capacity < self.tokens + self.shape.tokens_per_frame or not self._groups.suffice(policy, capacity):
            capacity *= 2
        return capacity

    def take_over_evidence(self, other: Store) -> None:
        """Takes over what the other's policy keeps, as far as this one's keeps the same."""
        for name in self._evidence:
            if self.layout[name] == other.layout.get(name):
                self.tensors[name].copy_(other.tensors[name])

    def fitting(self, layer: int, other: Store, slots: Tensor) -> Tensor:
        """Of the other's slots, the best first, those that there is room for here."""
        return self._groups.fitting(layer, other._groups, slots)[: self.capacity]

    def take_over(self, layer: int, other: Store, slots: Tensor, exact: Tensor) -> None:
        """Fills the first slots with other's `slots` [n], in order; exact [2, ., heads, d] is other, unpacked.

        Codes whose bits stay the same are moved, others are made anew from the exact numbers.
        """
        mine = torch.arange(slots.shape[0], device=slots.device)
        frame, token = other.places(layer)
        self._put_places(layer, mine, frame[slots], token[slots])
        self._groups.take_over(layer, other._groups, slots, exact[0])
        if self._value_bits != other._value_bits:
            self._put_values(layer, mine, exact[1, slots])
        else:
            for name in ("values", "value_scale", "value_offset"):
                if name in self.tensors:
                    self.tensors[name][layer, mine] = other.tensors[name][layer, slots]
        self.tokens = slots.shape[0]
