# SPDX-License-Identifier: Apache-2.0
"""Keys and values in a rotated basis, each token by itself, without bias.

Two identities of softmax attention make it free of cost in accuracy: any one vector may be taken from all keys of a
head (it adds the same to every logit of a query), and any orthogonal matrix H may be put on queries and keys together,
(qH).(kH) = q.k, and another on values and, once, on the output. With a Hadamard matrix what lies in few channels is
spread over all of them, and one scale per token and head is enough for keys too. The vector is the mean key of the
first frame. (QuaRot, arXiv 2404.00456, does so for language models.)

The scale is not the one of least error. That one makes every vector shorter, x.y < x.x, so that all logits flatten and
all outputs shrink alike, which no average over tokens makes good. The one of x.y = x.x leaves an error of which each
token's is independent of the others'.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from xsvggt_ros.cache.quantizers.base import Quantizer
from xsvggt_ros.cache.quantizers.packing import PARAMETER_DTYPE, pack, unpack
from xsvggt_ros.cache.shape import Layout


class Rotated(Quantizer):
    """Every token carries all that its codes need: any may leave without a trace. At 16 bits nothing is rotated."""

    parameters = ("scale",)

    def layout(self) -> Layout:
        size = (self.shape.heads, self.shape.head_dim), torch.float32
        centre: Layout = {} if self.bits["key"] == 16 else {"key_centre": size}
        return super().layout() | self._parameters("key") | centre

    def enter(self, q: Tensor, k: Tensor, v: Tensor, first: bool) -> tuple[Tensor, Tensor, Tensor]:
        if self.bits["key"] < 16:
            if first:
                self._centre_on(k)
            q, k = rotated(q), self._entered_keys(k)
        return q, k, self._entered(v)

    def leave(self, out: Tensor) -> Tensor:
        return self._entered(out)

    def plain(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.bits["key"] < 16:
            keys = rotated(keys) + self.tensors["key_centre"].to(keys.dtype)
        return keys, self._entered(values)

    def turned(self, x: Tensor) -> Tensor:
        return rotated(x) if self.bits["key"] < 16 else x

    def centre(self) -> Tensor | float:
        return rotated(self.tensors["key_centre"]) if self.bits["key"] < 16 else 0.0

    def _encoded(self, x: Tensor, bits: int) -> tuple[Tensor, ...]:
        return encoded(x, bits)

    def _decode(self, packed: Tensor, parameters: list[Tensor], bits: int, out: Tensor) -> None:
        (scale,) = parameters
        decode(packed, scale, bits, out)

    def _centre_on(self, keys: Tensor) -> None:
        self.tensors["key_centre"].copy_(keys[: self.shape.tokens_per_frame].mean(0, dtype=torch.float32))

    def _entered_keys(self, keys: Tensor) -> Tensor:
        return rotated(keys - self.tensors["key_centre"].to(keys.dtype))

    def _entered(self, values: Tensor) -> Tensor:
        return rotated(values) if self.bits["value"] < 16 else values

    def _read_keys(self, tokens: int, out: Tensor) -> None:
        self._read_per_token("key", tokens, out)

    def _write_keys(self, slots: Tensor, keys: Tensor, in_use: int, evictions: int) -> None:
        self._write_per_token("key", slots, keys)

    def _take_over_keys(self, other: Quantizer, source: Tensor, slots: Tensor, keys: Tensor) -> None:
        if self.bits["key"] < 16:
            if "key_centre" in other.tensors:
                self.tensors["key_centre"].copy_(other.tensors["key_centre"])
            else:
                self._centre_on(keys)
        if isinstance(other, Rotated) and self.bits["key"] == other.bits["key"]:
            self._move(other, source, [*self._codes("key"), *self._parameters("key")])
        else:
            self._write_per_token("key", slots, self._entered_keys(keys) if self.bits["key"] < 16 else keys)


def encoded(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """x [..., d] -> packed codes [..., d * bits / 8] and the scale [...]; code c means scale * (c - middle(bits)).

    The range from -max|x| to max|x| is cut into 2^bits equal bins.
    """
    x = x.float()
    reach = x.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    codes = ((x / reach + 1) * 2 ** (bits - 1)).floor_().clamp_(0, 2**bits - 1)
    scale = x.square().sum(-1) / (x * (codes - middle(bits))).sum(-1).clamp_min(torch.finfo(x.dtype).tiny)
    limit = torch.finfo(PARAMETER_DTYPE).max
    return pack(codes.to(torch.uint8), bits), scale.clamp_max(limit).to(PARAMETER_DTYPE)


def decode(packed: Tensor, scale: Tensor, bits: int, out: Tensor) -> None:
    """Writes to out [..., d] what `encoded` gave; scale [..., 1]. Computed in float32 and rounded once."""
    codes = unpack(packed, bits, torch.empty(out.shape, device=out.device))
    torch.mul(codes.sub_(middle(bits)), scale.float(), out=codes)
    out.copy_(codes)


def middle(bits: int) -> float:
    """The code, if it were one, of 0."""
    return (2**bits - 1) / 2


def rotated(x: Tensor) -> Tensor:
    """x [..., d] times an orthogonal, symmetric matrix, which is therefore its own inverse."""
    return x @ hadamard(x.shape[-1], x.device, x.dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def hadamard(d: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Hadamard matrix of the largest power of two that divides d, on each of the interleaved parts: [d, d]."""
    power = d & -d
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < power:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return torch.kron(matrix / math.sqrt(power), torch.eye(d // power)).to(device, dtype)
