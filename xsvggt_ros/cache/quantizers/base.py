# SPDX-License-Identifier: Apache-2.0
"""What a quantizer does for the slots of one layer.

A slot holds a token of every head. Where heads choose their tokens apart, those of one slot are of different tokens:
the `lanes` of a layer are the groups of heads, all of them or each alone, that share a choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from xsvggt_ros.cache.lanes import at, by_lane, lanes_of
from xsvggt_ros.cache.quantizers.packing import PARAMETER_DTYPE
from xsvggt_ros.cache.shape import CacheShape, Layout
from xsvggt_ros.config import CacheConfig

AT_ONCE = 256  # tokens converted at once at least, ...
CACHED = 2**18  # ... and on a CPU about so many numbers, which stay in its cache
AT_ONCE_ELSEWHERE = 2048  # the fewer calls, the better


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
        for rows in self._blocks(tokens):
            self._read_keys(rows, keys[rows])
            self._read_per_token("value", rows, values[rows])

    def write(self, slots: Tensor, keys: Tensor, values: Tensor, in_use: int, evictions: int) -> None:
        """Stores keys and values [n, heads, d] in slots [n, lanes], of which the first `evictions` are among the
        `in_use` ones that hold tokens; the others are the next free ones.
        """
        self._write_keys(slots, keys, in_use, evictions)
        self._write_per_token("value", slots, values)

    def take_over(self, other: Quantizer, source: Tensor, keys: Tensor, values: Tensor) -> None:
        """Fills the first slots with other's, of each head in the order of source [n, heads].

        Codes that mean the same here are moved, others made anew from keys and values [T, heads, d], which are what
        other's slots hold.
        """
        same = type(self) is type(other) and self.bits["value"] == other.bits["value"]
        for rows in self._blocks(source.shape[0]):
            self._take_over_keys(other, source[rows], rows, keys)
            if same:
                self._move(other, source[rows], rows, [*self._codes("value"), *self._parameters("value")])
            else:
                self._write_per_token("value", self._slots(rows), at(values, source[rows]))

    @abstractmethod
    def _read_keys(self, rows: slice, out: Tensor) -> None: ...

    @abstractmethod
    def _write_keys(self, slots: Tensor, keys: Tensor, in_use: int, evictions: int) -> None: ...

    @abstractmethod
    def _take_over_keys(self, other: Quantizer, source: Tensor, rows: slice, keys: Tensor) -> None:
        """As `take_over`, of the slots `rows`, which source [n, heads] is for."""

    @property
    def _at_once(self) -> int:
        if self.tensors["values"].device.type != "cpu":
            return AT_ONCE_ELSEWHERE
        return max(AT_ONCE, CACHED // (self.shape.heads * self.shape.head_dim))

    def _blocks(self, tokens: int) -> Iterator[slice]:
        """So many tokens, some at a time: what becomes of them takes little memory."""
        return (slice(start, min(start + self._at_once, tokens)) for start in range(0, tokens, self._at_once))

    def _slots(self, rows: slice) -> Tensor:
        """Of a block, [n, lanes]."""
        device = self.tensors["values"].device
        return torch.arange(rows.start, rows.stop, device=device)[:, None].expand(-1, self.lanes)

    # --- each token by itself ---------------------------------------------------------------------

    parameters: tuple[str, ...]
    """What the codes of a token and head need to be numbers again, float16 each."""

    @abstractmethod
    def _encoded(self, kind: str, slots: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """x [n, heads, d], for slots [n, lanes], as packed codes [n, heads, d * bits / 8] and parameters [n, heads]."""

    @abstractmethod
    def _decode(self, kind: str, rows: slice, packed: Tensor, parameters: list[Tensor], out: Tensor) -> None:
        """Writes to out [n, heads, d] what `_encoded` made for the slots `rows`; parameters [n, heads, 1]."""

    def _codes(self, kind: str) -> Layout:
        bits, d = self.bits[kind], self.shape.head_dim
        size = (self.capacity, self.shape.heads, d if bits == 16 else d * bits // 8)
        return {f"{kind}s": (size, self.shape.dtype if bits == 16 else torch.uint8)}

    def _parameters(self, kind: str) -> Layout:
        size = (self.capacity, self.shape.heads), PARAMETER_DTYPE
        return {} if self.bits[kind] == 16 else {f"{kind}_{name}": size for name in self.parameters}

    def _read_per_token(self, kind: str, rows: slice, out: Tensor) -> None:
        packed = self.tensors[f"{kind}s"][rows]
        if self.bits[kind] == 16:
            out.copy_(packed)
        else:
            parameters = [self.tensors[f"{kind}_{name}"][rows, :, None] for name in self.parameters]
            self._decode(kind, rows, packed, parameters, out)

    def _write_per_token(self, kind: str, slots: Tensor, x: Tensor) -> None:
        if self.bits[kind] == 16:
            self._put(f"{kind}s", slots, x)
            return
        for rows in self._blocks(x.shape[0]):
            codes = self._encoded(kind, slots[rows], x[rows])
            for name, part in zip(("s", *(f"_{name}" for name in self.parameters)), codes, strict=True):
                self._put(f"{kind}{name}", slots[rows], part)

    def _put(self, name: str, slots: Tensor, x: Tensor) -> None:
        """Writes x [n, heads, ...] to slots [n, lanes]."""
        by_lane(self.tensors[name], self.lanes)[slots, lanes_of(slots)] = by_lane(x, self.lanes)

    def _move(self, other: Quantizer, source: Tensor, rows: slice, names: list[str]) -> None:
        for name in names:
            self.tensors[name][rows] = at(other.tensors[name], source)
