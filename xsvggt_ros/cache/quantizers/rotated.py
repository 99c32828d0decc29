# SPDX-License-Identifier: Apache-2.0
"""Keys and values in a rotated basis, each token by itself.

Two identities of softmax attention make it free of cost in accuracy: any one vector may be taken from all keys of a
head (it adds the same to every logit of a query), and any orthogonal matrix H may be put on queries and keys together,
(qH).(kH) = q.k, and another on values and, once, on the output. With a Hadamard matrix what lies in few channels is
spread over all of them, and one scale and offset per token and head are enough for keys too. The vector is the mean
key of the first frame. (QuaRot, arXiv 2404.00456, for weights and caches of language models.)
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from xsvggt_ros.cache.quantizers.base import Quantizer, lanes_of
from xsvggt_ros.cache.shape import Layout


class Rotated(Quantizer):
    """Every token carries all that its codes need: any may leave without a trace. At 16 bits nothing is rotated."""

    def layout(self) -> Layout:
        size = (self.shape.heads, self.shape.head_dim), torch.float32
        centre: Layout = {} if self.bits["key"] == 16 else {"key_centre": size}
        return super().layout() | self._parameters("key") | centre

    def enter(self, q: Tensor, k: Tensor, v: Tensor, first: bool) -> tuple[Tensor, Tensor, Tensor]:
        if self.bits["key"] < 16:
            if first:
                self._centre_on(k)
            q = rotated(q)
        return q, self._entered_keys(k), self._entered(v)

    def leave(self, out: Tensor) -> Tensor:
        return self._entered(out)

    def plain(self, keys: Tensor) -> Tensor:
        return rotated(keys) + self.tensors["key_centre"].to(keys.dtype) if self.bits["key"] < 16 else keys

    def turned(self, x: Tensor) -> Tensor:
        return rotated(x) if self.bits["key"] < 16 else x

    def centre(self) -> Tensor | float:
        return rotated(self.tensors["key_centre"]) if self.bits["key"] < 16 else 0.0

    def _centre_on(self, keys: Tensor) -> None:
        self.tensors["key_centre"].copy_(keys[: self.shape.tokens_per_frame].mean(0, dtype=torch.float32))

    def _entered_keys(self, keys: Tensor) -> Tensor:
        return rotated(keys - self.tensors["key_centre"].to(keys.dtype)) if self.bits["key"] < 16 else keys

    def _entered(self, values: Tensor) -> Tensor:
        return rotated(values) if self.bits["value"] < 16 else values

    def _read_keys(self, rows: slice, out: Tensor) -> None:
        self._read_per_token("key", rows, out)

    def _write_keys(self, slots: Tensor, keys: Tensor, in_use: int, evictions: int) -> None:
        self._write_per_token("key", slots, keys)

    def take_over(self, other: Quantizer, source: Tensor, keys: Tensor, values: Tensor) -> None:
        if "key_centre" in self.tensors:
            if "key_centre" in other.tensors:
                self.tensors["key_centre"].copy_(other.tensors["key_centre"])
            else:
                oldest = source[: self.shape.tokens_per_frame]
                self._centre_on(other.plain(keys[oldest, lanes_of(oldest)]))
        super().take_over(other, source, keys, values)

    def _take_over_keys(self, other: Quantizer, source: Tensor, rows: slice, keys: Tensor) -> None:
        if isinstance(other, Rotated) and self.bits["key"] == other.bits["key"]:
            self._move(other, source, rows, [*self._codes("key"), *self._parameters("key")])
        else:
            plain = other.plain(keys[source, lanes_of(source)])
            self._write_per_token("key", self._slots(rows), self._entered_keys(plain))


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
