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
from xsvggt_ros.cache.quantizers.packing import PARAMETER_DTYPE, pack, parts_of
from xsvggt_ros.cache.shape import Layout
from xsvggt_ros.fusing import triton_runs

# In standard deviations, by bits: for normally distributed numbers, as rotated ones are, of the least error (Max 1960).
REACH = {1: 1.596, 2: 1.991, 3: 2.344, 4: 2.682, 8: 3.944}
EXACT = {torch.bfloat16: 2**8, torch.float16: 2**11}  # up to here it has all whole numbers
WIDE = {2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}  # of so many bytes
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
        elif self._centred and self.bits["key"] == self.bits["value"]:
            self._write_both(slots, keys, values)
        else:
            super().write(slots, keys, values, in_use, evictions)

    def _write_both(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Keys and values as one: for the few tokens of a frame the time goes into calls, not into numbers."""
        for rows in self._blocks(keys.shape[0]):
            x = torch.cat([keys[rows] - self.tensors["key_centre"], values[rows].float()])
            codes = self._encoded_from(slots[rows].repeat(2, 1), x, self.bits["key"])
            for name, both in zip(("s", "_scale"), codes, strict=True):
                for kind, part in zip(("key", "value"), both.chunk(2), strict=True):
                    self._put(f"{kind}{name}", slots[rows], part)

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
        x = x - self.tensors["key_centre"] if kind == "key" else x.float()
        return self._encoded_from(slots, x, self.bits[kind])

    def _encoded_from(self, slots: Tensor, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """As `_encoded`, of x in float32, less its centre."""
        drawn = self._signs(at(self.tensors["frame"], slots), at(self.tensors["token"], slots))
        return encoded(rotated((by_lane(x, self.lanes) * drawn).flatten(1, 2)), bits)

    def _decode(self, kind: str, rows: slice, packed: Tensor, parameters: list[Tensor], out: Tensor) -> None:
        (scale,) = parameters
        x = decoded(packed, self.bits[kind], out.dtype).float().mul_(scale.float() * unit(out.shape[-1]))
        by_lane(x, self.lanes).mul_(self._signs(self.tensors["frame"][rows], self.tensors["token"][rows]))
        if kind == "key":
            x += self.tensors["key_centre"]
        out.copy_(x)  # float32 until here: rounded once

    def _signs(self, frame: Tensor, token: Tensor) -> Tensor:
        """Of the tokens at these places [n, lanes]: [n, lanes, 1, d]."""
        table = signs(self.shape.head_dim, frame.device)
        drawn = (frame * self.shape.tokens_per_frame + token) % DRAWN
        return table.index_select(0, drawn.flatten()).view(*drawn.shape, 1, -1)  # much faster than table[drawn]


@lru_cache(maxsize=8)
def kernels_for(d: int, device: torch.device) -> ModuleType | None:
    """The module that does a layer in one launch, where it can: on CUDA with Triton, for vectors of d channels."""
    if not triton_runs(device):
        return None
    from xsvggt_ros.cache.quantizers import fused

    return fused if d in fused.HEAD_DIMS else None


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


def decoded(packed: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Packed codes [..., d * bits / 8] rotated back, but for the scale: unit(d) * decoded is rotated(code - middle).

    Whole numbers, in `dtype` where that has them all, else in float32: [..., d].
    """
    if bits == 3:
        lower, highest = packed.split([packed.shape[-1] * 2 // 3, packed.shape[-1] // 3], -1)
        return decoded(lower, 2, torch.float32) + 4 * decoded(highest, 1, torch.float32)
    d = packed.shape[-1] * 8 // bits
    exact = dtype if (2**bits - 1) * d <= EXACT.get(dtype, 0) else torch.float32
    table, matrix = unpacking(d, bits, exact, packed.device)
    # A table and one product: fewer and larger operations than masks, shifts and a transform step by step.
    codes = table.index_select(0, packed.flatten().int()).view(exact)
    return codes.view(*packed.shape[:-1], d) @ matrix


def unit(d: int) -> float:
    """What `decoded` counts in."""
    return 0.5 / math.sqrt(d & -d)


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


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def unpacking(d: int, bits: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each byte 2 (code - middle) of its codes, and what they are multiplied by, in the order of the bytes.

    The codes of a byte [256, 8 / bits] are seen as one number [256] where there is such a type: that is looked up much
    faster. The matrix [d, d] is hadamard / (2 unit(d)), whose entries are 0, 1 and -1.
    """
    codes = torch.stack(parts_of(torch.arange(256, dtype=torch.uint8), bits), -1)
    table = (2 * codes.int() - (2**bits - 1)).to(device, dtype)
    wide = WIDE.get(codes.shape[1] * dtype.itemsize)
    matrix = (hadamard(d, device) / (2 * unit(d))).round().unflatten(0, (codes.shape[1], -1))
    return table.view(wide)[:, 0] if wide else table, matrix.transpose(0, 1).flatten(0, 1).to(dtype).contiguous()


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def signs(d: int, device: torch.device) -> Tensor:
    """+-1 [DRAWN, d], the same on every machine."""
    drawn = torch.randint(2, (DRAWN, d), generator=torch.Generator().manual_seed(0))
    return (2.0 * drawn - 1).to(device)
