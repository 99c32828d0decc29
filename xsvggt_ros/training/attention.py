# SPDX-License-Identifier: Apache-2.0
"""Attention with the gradients that training needs, by plain products: for few tokens they are faster than kernels."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, as model.attention.Kernel."""
    q, k, v = (x.transpose(1, 2).to(v.dtype) for x in (q * q.shape[-1] ** -0.5, k, v))
    scores = q @ k.mT
    if bias is not None:
        scores = scores + bias[:, None].to(scores.dtype)
    with torch.autocast(q.device.type, enabled=False):  # it would make a float32 copy of all scores
        return (scores.softmax(-1) @ v).transpose(1, 2)


class CausalFrames(NamedTuple):
    """As model.attention.WholeSequence: a frame sees itself and all earlier ones. Half the time, forward and back."""

    tokens_per_frame: int

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As Context."""
        shape = (q.shape[0], q.shape[2])
        by_head = (x.transpose(1, 2).to(v.dtype).flatten(0, 1) for x in (q * q.shape[-1] ** -0.5, k, v))
        out: Tensor = _CausalFrames.apply(*by_head, self.tokens_per_frame)
        return out.unflatten(0, shape).transpose(1, 2)

    def added(self, layer: int, scale: Tensor, residual: Tensor) -> None:
        """As Context: of no interest here."""


class _CausalFrames(torch.autograd.Function):
    """q, scaled, k and v [N, T, d] -> [N, T, d].

    Autograd by itself would make the gradient of each frame's part of q, k and v as large as the whole.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, size: int) -> Tensor:
        out, weights = torch.empty_like(v), []
        with torch.autocast(q.device.type, enabled=False):
            for own, seen in _frames(q.shape[1], size):
                weight = (q[:, own] @ k[:, seen].mT).softmax(-1)
                out[:, own] = weight @ v[:, seen]
                weights.append(weight)
        ctx.save_for_backward(q, k, v, *weights)
        ctx.size = size
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *weights = ctx.saved_tensors
        d_out = d_out.contiguous()
        dq = torch.empty_like(q)
        dk, dv = (torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
        for (own, seen), weight in zip(_frames(q.shape[1], ctx.size), weights, strict=True):
            dv[:, seen] += weight.mT @ d_out[:, own]
            d_weight = d_out[:, own] @ v[:, seen].mT
            d_score = torch.ops.aten._softmax_backward_data(d_weight, weight, -1, weight.dtype)
            dq[:, own] = d_score @ k[:, seen]
            dk[:, seen] += d_score.mT @ q[:, own]
        return dq, dk.to(k.dtype), dv.to(v.dtype), None


def _frames(total: int, size: int) -> list[tuple[slice, slice]]:
    """Which tokens each frame has, and which it sees."""
    return [(slice(end - size, end), slice(end)) for end in range(size, total + 1, size)]
