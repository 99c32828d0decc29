# SPDX-License-Identifier: Apache-2.0
"""Each token by itself, rotated at random, without bias: one scale per token and head, for keys as for values.

A vector x is stored as the codes of H D x: D are signs, +-1, drawn for the token, and H is a Hadamard matrix, so that
what lies in few channels is spread over all of them (QuaRot, arXiv 2404.00456). Three things make 1 or 2 bits enough:
* Keys have one vector taken off, the mean key of the first frame: what all share needs no bits.
* The scale is not the one of least error. That one makes every vector shorter, x.y < x.x, so that all logits flatten
  and all outputs shrink alike, which no average over tokens makes good. The one of x.y = x.x does not.
* Tokens differ in their signs. Under the same ones similar tokens would have the same error; errors that differ average
  out where a query attends to many.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from xsvggt_ros.cache.quantizers.base import Quantizer, by_lane, lanes_of
from xsvggt_ros.cache.quantizers.packing import PARAMETER_DTYPE, pack, unpack
from xsvggt_ros.cache.shape import Layout

# In standard deviations, by bits: for normally distributed numbers, as rotated ones are, of the least error (Max 1960).
REACH = {1: 1.596, 2: 1.991, 3: 2.344, 4: 2.682, 8: 3.944}
DRAWN = 4093  # sets of signs; a prime, so that neighbours in time and in place have different ones


class Rotated(Quantizer):
    """Every token carries all that its codes need: any may leave without a trace."""

    parameters = ("scale",)

    def layout(self) -> Layout:
        size = (self.shape.heads, self.shape.head_dim), torch.float32
        centre: Layout = {} if self.bits["key"] == 16 else {"key_centre": size}
        return super().layout() | self._parameters("key") | centre

    def _read_keys(self, rows: slice, out: Tensor) -> None:
        self._read_per_token("key", rows, out)
        if self.bits["key"] < 16:
            out += self.tensors["key_centre"].to(out.dtype)

    def _write_keys(self, slots: Tensor, keys: Tensor, in_use: int, evictions: int) -> None:
        if not in_use:
            self._centre_on(keys)
        self._write_centred(slots, keys)

    def _centre_on(self, keys: Tensor) -> None:
        if self.bits["key"] < 16:
            first = keys[: self.shape.tokens_per_frame]
            self.tensors["key_centre"].copy_(first.mean(0, dtype=torch.float32))

    def _write_centred(self, slots: Tensor, keys: Tensor) -> None:
        self._write_per_token("key", slots, keys - self.tensors["key_centre"] if self.bits["key"] < 16 else keys)

    def take_over(self, other: Quantizer, source: Tensor, keys: Tensor, values: Tensor) -> None:
        if "key_centre" in self.tensors and "key_centre" in other.tensors:
            self.tensors["key_centre"].copy_(other.tensors["key_centre"])
        else:
            oldest = source[: self.shape.tokens_per_frame]
            self._centre_on(keys[oldest, lanes_of(oldest)])
        super().take_over(other, source, keys, values)

    def _take_over_keys(self, other: Quantizer, source: Tensor, rows: slice, keys: Tensor) -> None:
        if isinstance(other, Rotated) and self.bits["key"] == other.bits["key"]:
            self._move(other, source, rows, [*self._codes("key"), *self._parameters("key")])
        else:
            self._write_centred(self._slots(rows), keys[source, lanes_of(source)])

    def _encoded(self, slots: Tensor, x: Tensor, bits: int) -> tuple[Tensor, ...]:
        lanes = lanes_of(slots)
        drawn = self._signs(self.tensors["frame"][slots, lanes], self.tensors["token"][slots, lanes])
        return encoded(rotated((by_lane(x.float(), self.lanes) * drawn).flatten(1, 2)), bits)

    def _decode(self, rows: slice, packed: Tensor, parameters: list[Tensor], bits: int, out: Tensor) -> None:
        (scale,) = parameters
        codes = unpack(packed, bits, torch.empty(out.shape, device=out.device)).sub_(middle(bits))
        x = rotated(codes).mul_(scale)
        by_lane(x, self.lanes).mul_(self._signs(self.tensors["frame"][rows], self.tensors["token"][rows]))
        out.copy_(x)  # float32 until here: rounded once

    def _signs(self, frame: Tensor, token: Tensor) -> Tensor:
        """Of the tokens at these places [n, lanes]: [n, lanes, 1, d]."""
        table = signs(self.shape.head_dim, frame.device)
        return table[(frame * self.shape.tokens_per_frame + token) % DRAWN][:, :, None]


def encoded(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x [..., d] float32 -> packed codes [..., d * bits / 8] and the scale [...]: code c is scale (c - middle(bits)).

    The range from -reach to reach is cut into 2^bits equal bins; what lies beyond is in the last ones.
    """
    tiny = torch.finfo(x.dtype).tiny
    reach = torch.minimum(x.abs().amax(-1, keepdim=True), REACH[bits] * x.square().mean(-1, keepdim=True).sqrt())
    reach = reach.clamp_min(tiny)
    codes = ((x / reach + 1) * 2 ** (bits - 1)).floor_().clamp_(0, 2**bits - 1)
    scale = x.square().sum(-1) / (x * (codes - middle(bits))).sum(-1).clamp_min(tiny)
    limit = torch.finfo(PARAMETER_DTYPE).max
    return pack(codes.to(torch.uint8), bits), scale.clamp_max(limit).to(PARAMETER_DTYPE)


def middle(bits: int) -> float:
    """The code, if it were one, of 0."""
    return (2**bits - 1) / 2


def rotated(x: Tensor) -> Tensor:
    """x [..., d] times an orthogonal, symmetric matrix, which is therefore its own inverse."""
    return x @ hadamard(x.shape[-1], x.device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def hadamard(d: int, device: torch.device) -> Tensor:
    """Hadamard matrix of the largest power of two that divides d, on each of the interleaved parts: [d, d]."""
    power = d & -d
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < power:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return torch.kron(matrix / math.sqrt(power), torch.eye(d // power)).to(device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def signs(d: int, device: torch.device) -> Tensor:
    """+-1 [DRAWN, d], the same on every machine."""
    drawn = torch.randint(2, (DRAWN, d), generator=torch.Generator().manual_seed(0))
    return (2.0 * drawn - 1).to(device)
