# SPDX-License-Identifier: Apache-2.0
"""Softmax attention, softmax(q k^T / sqrt(d)) v: what is attended to, and the fastest kernel of the machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import wraps
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from xsvggt_ros.fusing import triton_runs

MANY = 256  # queries from which matmul_by_head pays


class Kernel(Protocol):
    """Softmax attention."""

    __name__: str

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """q [B, T, heads, d], k and v [B, N, heads, d] -> [B, T, heads, d].

        bias [heads, N] is added to every query's logits: log n for a key that stands for n, -inf for a hidden one.
        """
        ...


class Context(Protocol):
    """What the queries of a stack of layers attend to."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k and v of the layer's own tokens, each [B, T, heads, d] -> [B, T, heads, d]."""
        ...

    def added(self, layer: int, scale: Tensor, residual: Tensor) -> None:
        """The layer's MLP adds scale [C] * residual [B, T, C] to those tokens."""
        ...


@dataclass(frozen=True)
class WholeSequence:
    """The tokens given, and no others: a batch of whole sequences."""

    kernel: Kernel
    tokens_per_frame: int | None = None
    """None: all see each other. Otherwise a frame sees itself and all earlier ones, the frames lying in order.

    Frames that come in chunks, which see each other, are as one frame of all their tokens.
    """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As Context. Frames need no mask: each attends to a prefix."""
        size = self.tokens_per_frame
        if size is None:
            return self.kernel(q, k, v)
        ends = range(size, q.shape[1] + size, size)
        return torch.cat([self.kernel(q[:, e - size : e], k[:, :e], v[:, :e]) for e in ends], dim=1)

    def added(self, layer: int, scale: Tensor, residual: Tensor) -> None:
        """As Context: of no interest here."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """PyTorch's own kernel."""
    # [1, heads, 1, N], for all queries: with three dimensions the fused kernel of CPUs would not take it.
    mask = None if bias is None else bias[None, :, None].to(q.dtype)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
    return out.transpose(1, 2)


def matmul_by_head(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, one head at a time, so that the scores of a head stay in the processor's cache.

    On CPUs with bf16 instructions but without matrix tiles, PyTorch's kernel runs at a quarter of the
    matrix product's speed; for many queries this is about twice as fast there.
    """
    if q.shape[1] < MANY:
        return sdpa(q, k, v, bias)
    q = q / math.sqrt(q.shape[-1])
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h] @ k[b, :, h].T  # [T, N]
            if bias is not None:
                scores += bias[h]
            out[b, :, h] = scores.softmax(-1) @ v[b, :, h]
    return out


def flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """FlashAttention (Dao, arXiv 2307.08691), from the optional package flash-attn, which takes no bias."""
    if bias is not None:
        return sdpa(q, k, v, bias)
    from flash_attn import flash_attn_func

    return flash_attn_func(q, k, v)


def attention_backend(name: str, device: torch.device, dtype: torch.dtype) -> Kernel:
    """The kernel for a name of `StreamConfig.attention`.

    Raises ValueError if flash is asked for and cannot run here.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    missing = _flash_missing(device, half)
    if name == "flash" and missing:
        raise ValueError(f"attention flash {missing}; use attention:=auto")
    if name == "sdpa":
        return sdpa
    if device.type == "cpu":
        return matmul_by_head if half and not cpu_supports("amx_tile") else sdpa
    fastest = sdpa if missing else flash
    return weighing(fastest) if half and triton_runs(device) else fastest


def weighing(kernel: Kernel) -> Kernel:
    """A kernel that leaves keys with a bias to ours in Triton, which takes a third of the time of PyTorch's."""
    from xsvggt_ros.model import weighted

    @wraps(kernel)
    def either(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        if bias is None or q.shape[-1] not in weighted.HEAD_DIMS:
            return kernel(q, k, v, bias)
        return weighted.attend(q, k, v, bias)

    return either


def _flash_missing(device: torch.device, half: bool) -> str:
    """Why flash-attn cannot run here; empty if it can."""
    if device.type != "cuda":
        return f"needs a CUDA device, this is {device.type}"
    if not half:
        return "needs dtype bfloat16 or float16"
    try:
        import flash_attn  # noqa: F401
    except ImportError as error:
        return f"needs the package flash-attn ({error}; pip install flash-attn)"
    return ""


def cpu_supports(feature: str) -> bool:
    """Whether the CPU has "amx_tile", "avx512_bf16", ...; False where this version of torch cannot tell."""
    ask = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return ask is not None and ask()
