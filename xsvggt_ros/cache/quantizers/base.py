# SPDX-License-Identifier: Apache-2.0
"""What a quantizer does for the slots of one layer.

A slot holds a token of every head. Where heads choose their tokens apart, those of one slot are of different tokens:
the `lanes` of a layer are the groups of heads, all of them or each alone, that share a choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from xsvggt_ros.cache.quantizers.packing import PARAMETER_DTYPE
from xsvggt_ros.cache.shape import CacheShape, Layout
from xsvggt_ros.config import CacheConfig


class Quantizer(ABC):
    """Stores keys and values [., heads, d], each in its number of bits, in the tensors of `layout`."""

    def __init__(self, config: CacheConfig, shape: CacheShape, lanes: int, capacity: int):
        self.config = config
        self.shape = shape
        self.lanes = lanes
        self.capacity = capacity
        self.bits = {"key": config.key_bits, "value": config.value_bits}
        self.tensors: dict[str, Tensor] = {}  # those of the store: of the layout, and the places of the tokens in it
        self.reencoded_before = 0  # in the store before
        self.torn = False  # whether tokens that stay are just being written, or were when that failed

    def layout(self) -> Layout:
        """Of its tensors."""
        return self._codes("key") | self._codes("value") | self._parameters("value")

    @property
    def reencoded(self) -> int:
        """Tokens that were encoded once more at the same bits; reading it waits for the device."""
        return self.reencoded_before

    # --- slots ------------------------------------------------------------------------------------

    def read(self, tokens: int, keys: Tensor, values: Tensor) -> None:
        """Unpacks the first slots into keys and values [tokens, heads, d]."""
        self._read_keys(tokens, keys)
        self._read_per_token("value", tokens, values)

    def write(self, slots: Tensor, keys: Tensor, values: Tensor, in_use: int, evictions: int) -> None:
        """Stores keys and values [n, heads, d] in slots [n, lanes], of which the first `evictions` are among the
        `in_use` ones that hold tokens; the others are the next free ones.
        """
        self._write_keys(slots, keys, in_use, evictions)
        self._write_per_token("value", slots, values)

    def take_over(self, other: Quantizer, source: Tensor, keys: Tensor, values: Tensor) -> None:
        """Fills the first slots with other's, of each head in the order of source [n, heads].

        Codes that mean the same here are moved, others made anew from what keys and values [n, heads, d] are.
        """
        slots = torch.arange(source.shape[0], device=source.device)[:, None].expand(-1, self.lanes)
        self._take_over_keys(other, source, slots, keys)
        if type(self) is type(other) and self.bits["value"] == other.bits["value"]:
            self._move(other, source, [*self._codes("value"), *self._parameters("value")])
        else:
            self._write_per_token("value", slots, values)

    @abstractmethod
    def _read_keys(self, tokens: int, out: Tensor) -> None: ...

    @abstractmethod
    def _write_keys(self, slots: Tensor, keys: Tensor, in_use: int, evictions: int) -> None: ...

    @abstractmethod
    def _take_over_keys(self, other: Quantizer, source: Tensor, slots: Tensor, keys: Tensor) -> None: ...

    # --- each token by itself ---------------------------------------------------------------------

    parameters: tuple[str, ...]
    """What the codes of a token and head need to be numbers again, float16 each."""

    @abstractmethod
    def _encoded(self, slots: Tensor, x: Tensor, bits: int) -> tuple[Tensor, ...]:
        """x [n, heads, d], for slots [n, lanes], as packed codes [n, heads, d * bits / 8] and parameters [n, heads]."""

    @abstractmethod
    def _decode(self, packed: Tensor, parameters: list[Tensor], bits: int, out: Tensor) -> None:
        """Writes to out [n, heads, d] what `_encoded` made for the first n slots; parameters [n, heads, 1]."""

    def _codes(self, kind: str) -> Layout:
        bits, d = self.bits[kind], self.shape.head_dim
        size = (self.capacity, self.shape.heads, d if bits == 16 else d * bits // 8)
        return {f"{kind}s": (size, self.shape.dtype if bits == 16 else torch.uint8)}

    def _parameters(self, kind: str) -> Layout:
        size = (self.capacity, self.shape.heads), PARAMETER_DTYPE
        return {} if self.bits[kind] == 16 else {f"{kind}_{name}": size for name in self.parameters}

    def _read_per_token(self, kind: str, tokens: int, out: Tensor) -> None:
        packed = self.tensors[f"{kind}s"][:tokens]
        if self.bits[kind] == 16:
            out.copy_(packed)
        else:
            parameters = [self.tensors[f"{kind}_{name}"][:tokens, :, None] for name in self.parameters]
            self._decode(packed, parameters, self.bits[kind], out)

    def _write_per_token(self, kind: str, slots: Tensor, x: Tensor) -> None:
        if self.bits[kind] < 16:
            x, *parameters = self._encoded(slots, x, self.bits[kind])
            for name, parameter in zip(self.parameters, parameters, strict=True):
                self._put(f"{kind}_{name}", slots, parameter)
        self._put(f"{kind}s", slots, x)

    def _put(self, name: str, slots: Tensor, x: Tensor) -> None:
        """Writes x [n, heads, ...] to slots [n, lanes]."""
        by_lane(self.tensors[name], self.lanes)[slots, lanes_of(slots)] = by_lane(x, self.lanes)

    def _move(self, other: Quantizer, source: Tensor, names: list[str]) -> None:
        heads = lanes_of(source)
        for name in names:
            self.tensors[name][: source.shape[0]] = other.tensors[name][source, heads]


def by_lane(x: Tensor, lanes: int) -> Tensor:
    """x [n, heads, ...] as [n, lanes, heads of a lane, ...]."""
    return x.unflatten(1, (lanes, -1))


def lanes_of(slots: Tensor) -> Tensor:
    """Which lane each column of slots [n, lanes] is of."""
    return torch.arange(slots.shape[1], device=slots.device)
