# SPDX-License-Identifier: Apache-2.0
"""Packed storage of one layer's keys and values: slots that are read whole and written in place."""

from __future__ import annotations

import torch
from torch import Tensor

from xsvggt_ros.cache.lanes import at, lanes_in, lanes_of
from xsvggt_ros.cache.policies import Policy
from xsvggt_ros.cache.quantizers import make_quantizer
from xsvggt_ros.cache.shape import CacheShape, Layout, nbytes
from xsvggt_ros.config import CacheConfig


def layout(shape: CacheShape, config: CacheConfig, policy: Policy, capacity: int) -> Layout:
    """Of every tensor of a store for `capacity` tokens."""
    slots = (capacity, policy.lanes)
    found: Layout = {"frame": (slots, torch.int32), "token": (slots, torch.int32)}
    found |= make_quantizer(config, shape, policy.lanes, capacity).layout() | policy.layer_evidence()
    return found | {name: ((*slots, *size), dtype) for name, (size, dtype) in policy.token_evidence().items()}


class Store:
    """Room for `capacity` tokens of one layer, in each lane of heads; in use are the first slots, in no order."""

    def __init__(self, shape: CacheShape, config: CacheConfig, policy: Policy, capacity: int, device: torch.device):
        self.shape = shape
        self.capacity = capacity
        self.lanes = policy.lanes
        self.tokens = 0  # in use
        self.layout = layout(shape, config, policy, capacity)
        self.tensors = {
            name: torch.zeros(size, dtype=dtype, device=device) for name, (size, dtype) in self.layout.items()
        }
        self.quantizer = make_quantizer(config, shape, self.lanes, capacity)
        self.quantizer.tensors = self.tensors
        self._of_layer, self._of_tokens = tuple(policy.layer_evidence()), tuple(policy.token_evidence())
        self._adds_up = policy.adds_up

    @property
    def nbytes(self) -> int:
        """Of all its tensors."""
        return nbytes(self.layout)

    # --- what is there ----------------------------------------------------------------------------

    def read(self, out: Tensor) -> None:
        """Unpacks the slots in use into out [2, >= tokens, heads, d]: keys, then values."""
        self.quantizer.read(self.tokens, out[0, : self.tokens], out[1, : self.tokens])

    def places(self) -> tuple[Tensor, Tensor]:
        """The frame that each token in use came with, and its place in that frame, int32 [tokens, lanes] both."""
        return self.tensors["frame"][: self.tokens], self.tensors["token"][: self.tokens]

    def evidence(self) -> dict[str, Tensor]:
        """What the policy keeps about the layer and about its tokens, to read and to write in place."""
        of_tokens = {name: self.tensors[name][: self.tokens] for name in self._of_tokens}
        return {name: self.tensors[name] for name in self._of_layer} | of_tokens

    # --- taking tokens in -------------------------------------------------------------------------

    def evictions(self, new: int) -> int:
        """How many tokens have to go for `new` ones."""
        return max(0, self.tokens + new - self.capacity)

    def put(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keys and values [n, heads, d] of the tokens that were `noted` in slots [n, lanes]."""
        new = keys.shape[0]
        evictions = self.evictions(new)
        self.quantizer.write(slots, keys, values, self.tokens, evictions)
        self.tokens += new - evictions

    def noted(self, leaving: Tensor, first: Tensor, skipped: int, new: int, evidence: dict[str, Tensor]) -> Tensor:
        """The slots [n, lanes] of n new tokens, of frames from `first` on without the `skipped` first of these tokens.

        They are those `leaving` [evictions(n), lanes], then the next free ones. What is to know about the tokens is
        written: their places, and evidence {name: [n, lanes, ...]}, 0 where it says nothing.
        """
        device = leaving.device
        fresh = torch.arange(self.tokens, self.tokens + new - leaving.shape[0], device=device)
        slots = torch.cat([leaving, fresh[:, None].expand(-1, self.lanes)])
        place = torch.arange(skipped, skipped + new, device=device)[:, None]
        size = self.shape.tokens_per_frame
        self._put("frame", slots, (first + place // size).int())
        self._put("token", slots, (place % size).int())
        for name in self._of_tokens:
            nothing = self.tensors[name].new_zeros(())  # a number would come from the host
            self._put(name, slots, evidence.get(name, nothing))
        return slots

    def rewrite(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Gives the tokens in slots [n, lanes] other keys and values [n, heads, d]."""
        self.quantizer.torn = True
        self.quantizer.write(slots, keys, values, self.tokens, slots.shape[0])
        self.quantizer.torn = False

    def note(self, first: int | Tensor, evidence: dict[str, Tensor]) -> None:
        """Takes evidence {name: [N, ...]} about the tokens of the frames from `first` on, in their order there."""
        frame, token = self.places()
        newest = frame >= first  # [tokens, lanes]
        place = ((frame - first) * self.shape.tokens_per_frame + token).where(newest, 0)
        for name, x in evidence.items():
            there = self.tensors[name][: self.tokens]
            mask = newest.view(*newest.shape, *[1] * (there.ndim - 2))
            there.copy_(torch.where(mask, x[place].to(there.dtype), there))

    def _put(self, name: str, slots: Tensor, x: Tensor) -> None:
        self.tensors[name][slots, lanes_of(slots)] = x

    # --- moving to another store ------------------------------------------------------------------

    def take_over_layer(self, other: Store) -> None:
        """Takes over what the other's policy keeps about the layer, as far as this one's keeps the same."""
        self.quantizer.reencoded_before = other.quantizer.reencoded
        for name in self._of_layer:
            if self.layout[name] == other.layout.get(name):
                self.tensors[name].copy_(other.tensors[name])

    def evidence_from(self, other: Store) -> dict[str, Tensor]:
        """A copy of what this one's policy keeps about tokens, of other's tokens and lanes.

        Zero where the other keeps none.
        """
        found = {}
        for name in self._of_tokens:
            (_, _, *size), dtype = self.layout[name]
            sizes = (other.tokens, other.lanes, *size)
            theirs = other.tensors[name][: other.tokens] if name in other._of_tokens else None
            if theirs is not None and (theirs.shape, theirs.dtype) == (sizes, dtype):
                found[name] = theirs.clone()
            else:
                found[name] = torch.zeros(sizes, dtype=dtype, device=self.tensors[name].device)
        return found

    def of_lanes(self, evidence: dict[str, Tensor], source: Tensor) -> dict[str, Tensor]:
        """Evidence about another store's tokens and lanes, of the tokens in its slots source [n, heads], of lanes here.

        And that about the layer.
        """
        found = {name: self.tensors[name] for name in self._of_layer}
        for name, x in evidence.items():
            x, adds_up = at(x, lanes_in(source, x.shape[1])), name in self._adds_up
            if x.shape[1] > self.lanes:
                total = x.sum(1, keepdim=True, dtype=torch.float64)
                x = (total if adds_up else total / x.shape[1]).to(x.dtype)
            elif x.shape[1] < self.lanes:
                x = (x / self.lanes if adds_up else x).repeat_interleave(self.lanes, 1)
            found[name] = x
        return found

    def take_over(
        self, other: Store, source: Tensor, keys: Tensor, values: Tensor, evidence: dict[str, Tensor]
    ) -> None:
        """Fills the first slots with other's, of each head in the order of source [n, heads].

        keys and values [T, heads, d] are what other's slots hold, evidence is what this policy knows about them.
        """
        frame, token = other.places_in(lanes_in(source, self.lanes))
        count = source.shape[0]
        self.tensors["frame"][:count], self.tensors["token"][:count] = frame, token
        for name in self._of_tokens:
            self.tensors[name][:count] = evidence[name]
        self.quantizer.take_over(other.quantizer, source, keys, values)
        self.tokens = count

    def places_in(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """As `places`, of slots [n, lanes], or of more lanes than are told apart here."""
        lanes = lanes_of(slots) if self.lanes > 1 else torch.zeros_like(lanes_of(slots))
        return self.tensors["frame"][slots, lanes], self.tensors["token"][slots, lanes]
