# SPDX-License-Identifier: Apache-2.0
"""Each token by itself, rotated at random, without bias: one scale per token and head, for keys as for values.

A vector x is stored as the codes of H D x: D are signs, +-1, drawn for the token, and H is a Hadamard matrix, so that
what lies in few channels is spread over all of them (QuaRot, arXiv 2404.00456). Three things make 1 or 2 bits enough:
* Keys have one vector taken off, the mean key of the first frame: what all share needs no bits.
* The scale is not the one of least error. That one makes every vector shorter, x.y < x.x, so that all logits flatten
  and all outputs shrink alike, which no average over tokens makes good. The one of x.y = x.x does not.
* Tokens differ in their signs. Under the same ones similar tokens would have the same error; errors that differ average
  out where a query attends to many.

On CUDA fused.py does the same in one launch for all of a layer.
"""

from __future__ import annotations

import math
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from xsvggt_ros.cache.lanes import at, by_lane
from xsvggt_ros.cache.quantizers.base import Quantizer
from xsvggt_ros.cache.quantizers.packing import PARAMETER_DTYPE, joined, pack, parts_of
from xsvggt_ros.cache.shape import Layout

# In standard deviations, by bits: for normally distributed numbers, as rotated ones are, of the least error (Max 1960).
REACH = {1: 1.596, 2: 1.991, 3: 2.344, 4: 2.682, 8: 3.944}
FACTORS = 4  # of the matrix, that act on bytes; smaller matrices than the rest are not faster
DRAWN = 4093  # sets of signs; a prime, so that neighbours in time and in place have different ones


class Rotated(Quantizer):
    """Every token carries all that its codes need: any may leave without a trace."""

    parameters = ("scale",)

    def layout(self) -> Layout:
        size = (self.shape.heads, self.shape.head_dim), torch.float32
        centre: Layout = {"key_centre": size} if self._centred else {}
        return super().layout() | self._parameters("key") | centre

    def read(self, tokens: int, keys: Tensor, values: Tensor) -> None:
        d, device = self.shape.head_dim, keys.device
        if kernels := kernels_for(d, device):
            kernels.read(self.tensors, self.bits, signs(d, device), self.shape.tokens_per_frame, keys, values)
        else:
            super().read(tokens, keys, values)

    def write(self, slots: Tensor, keys: Tensor, values: Tensor, in_use: int, evictions: int) -> None:
        if not in_use and self._centred:
            self._centre_on(keys)
        d, device, per_frame = self.shape.head_dim, keys.device, self.shape.tokens_per_frame
        if kernels := kernels_for(d, device):
            kernels.write(self.tensors, self.bits, REACH, signs(d, device), per_frame, slots, keys, values)
        else:
            super().write(slots, keys, values, in_use, evictions)

    def _read_keys(self, rows: slice, out: Tensor) -> None:
        self._read_per_token("key", rows, out)

    def _write_keys(self, slots: Tensor, keys: Tensor, in_use: int, evictions: int) -> None:
        self._write_per_token("key", slots, keys)

    @property
    def _centred(self) -> bool:
        return self.bits["key"] < 16

    def _centre_on(self, keys: Tensor) -> None:
        first = keys[: self.shape.tokens_per_frame]
        self.tensors["key_centre"].copy_(first.mean(0, dtype=torch.float32))

    def take_over(self, other: Quantizer, source: Tensor, keys: Tensor, values: Tensor) -> None:
        if "key_centre" in self.tensors and "key_centre" in other.tensors:
            self.tensors["key_centre"].copy_(other.tensors["key_centre"])
        elif self._centred:
            self._centre_on(at(keys, source[: self.shape.tokens_per_frame]))
        super().take_over(other, source, keys, values)

    def _take_over_keys(self, other: Quantizer, source: Tensor, rows: slice, keys: Tensor) -> None:
        if isinstance(other, Rotated) and self.bits["key"] == other.bits["key"]:
            self._move(other, source, rows, [*self._codes("key"), *self._parameters("key")])
        else:
            self._write_per_token("key", self._slots(rows), at(keys, source))

    def _encoded(self, kind: str, slots: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        drawn = self._signs(at(self.tensors["frame"], slots), at(self.tensors["token"], slots))
        x = x - self.tensors["key_centre"] if kind == "key" else x.float()
        return encoded(rotated((by_lane(x, self.lanes) * drawn).flatten(1, 2)), self.bits[kind])

    def _decode(self, kind: str, rows: slice, packed: Tensor, parameters: list[Tensor], out: Tensor) -> None:
        (scale,) = parameters
        x = decoded(packed, self.bits[kind], torch.empty(out.shape, device=out.device)).mul_(scale)
        by_lane(x, self.lanes).mul_(self._signs(self.tensors["frame"][rows], self.tensors["token"][rows]))
        if kind == "key":
            x += self.tensors["key_centre"]
        out.copy_(x)  # float32 until here: rounded once

    def _signs(self, frame: Tensor, token: Tensor) -> Tensor:
        """Of the tokens at these places [n, lanes]: [n, lanes, 1, d]."""
        table = signs(self.shape.head_dim, frame.device)
        return table[(frame * self.shape.tokens_per_frame + token) % DRAWN][:, :, None]


@lru_cache(maxsize=8)
def kernels_for(d: int, device: torch.device) -> ModuleType | None:
    """The module that does a layer in one launch, where it can: on CUDA with Triton, for vectors of d channels."""
    if device.type != "cuda":
        return None
    try:
        from xsvggt_ros.cache.quantizers import fused
    except ImportError:  # Triton is optional
        return None
    return fused if d in fused.HEAD_DIMS and fused.run_on(device) else None


def encoded(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x [..., d] float32 -> packed codes [..., d * bits / 8] and the scale [...]: code c is scale (c - middle(bits)).

    The range from -reach to reach is cut into 2^bits equal bins; what lies beyond is in the last ones.
    """
    tiny = torch.finfo(x.dtype).tiny
    reach = torch.minimum(x.abs().amax(-1, keepdim=True), REACH[bits] * x.square().mean(-1, keepdim=True).sqrt())
    reach = reach.clamp_min(tiny)
    codes = (x / reach).add_(1).mul_(2 ** (bits - 1)).floor_().clamp_(0, 2**bits - 1)
    packed = pack(codes.to(torch.uint8), bits)
    scale = x.square().sum(-1) / codes.sub_(middle(bits)).mul_(x).sum(-1).clamp_min(tiny)
    return packed, scale.clamp_max(torch.finfo(PARAMETER_DTYPE).max).to(PARAMETER_DTYPE)


def decoded(packed: Tensor, bits: int, room: Tensor) -> Tensor:
    """Rotated back [..., d] float32, but for the scale: rotated(codes - middle(bits)). room [..., d] is used for it."""
    x, d = rotated_codes(packed, bits, room), room.shape[-1]
    power = d & -d
    x[..., : d // power] -= middle(bits) * math.sqrt(power)  # a constant has its all in the matrix's first column
    return x


def rotated_codes(packed: Tensor, bits: int, room: Tensor) -> Tensor:
    """rotated(unpack(packed, bits, room)), at less cost.

    The matrix is a Kronecker product. Its first factors, of size 2, act on the parts in which codes are packed, while
    these are bytes; only the rest is a matrix product.
    """
    if bits == 3:
        lower, highest = packed.split([packed.shape[-1] * 2 // 3, packed.shape[-1] // 3], -1)
        return rotated_codes(lower, 2, room) + 4 * rotated_codes(highest, 1, room)
    parts = parts_of(packed, bits)
    factors = min(len(parts), FACTORS)
    for stride in (len(parts) >> i for i in range(1, factors.bit_length())):
        pairs = [(i, i + stride) for i in range(len(parts)) if not i & stride]
        for i, j in pairs:
            a, b = parts[i].view(torch.int8), parts[j].view(torch.int8)
            parts[i], parts[j] = a + b, a - b
    rest = joined(parts, room).unflatten(-1, (factors, -1))
    return (rotated(rest) / math.sqrt(factors)).flatten(-2)


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
