# SPDX-License-Identifier: Apache-2.0
"""Softmax attention, softmax(q k^T / sqrt(d)) v, by the fastest kernel of the machine."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from xsvggt_ros.model.blocks import Attend

MANY = 256  # queries from which matmul_by_head pays


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's own kernel. q [B, T, heads, d], k and v [B, N, heads, d] -> [B, T, heads, d]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return out.transpose(1, 2)


def matmul_by_head(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same, one head at a time, so that the scores of a head stay in the processor's cache.

    On CPUs with bf16 instructions but without matrix tiles, PyTorch's kernel runs at a quarter of the
    matrix product's speed; for many queries this is about twice as fast there.
    """
    if q.shape[1] < MANY:
        return sdpa(q, k, v)
    q = q / math.sqrt(q.shape[-1])
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h] @ k[b, :, h].T  # [T, N]
            out[b, :, h] = scores.softmax(-1) @ v[b, :, h]
    return out


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """FlashAttention (Dao, arXiv 2307.08691), from the optional package flash-attn."""
    from flash_attn import flash_attn_func

    return flash_attn_func(q, k, v)


def attention_backend(name: str, device: torch.device, dtype: torch.dtype) -> Attend:
    """The kernel for a name of `StreamConfig.attention`.

    Raises ValueError if flash is asked for and cannot run here.
    """
    half = dtype in (torch.bfloat16, torch.float16)
    missing = _flash_missing(device, half)
    if name == "flash" and missing:
        raise ValueError(f"attention flash {missing}; use attention:=auto")
    if name == "sdpa":
        return sdpa
    if not missing:
        return flash
    return matmul_by_head if device.type == "cpu" and half and not cpu_supports("amx_tile") else sdpa


def _flash_missing(device: torch.device, half: bool) -> str:
    """Why flash-attn cannot run here; empty if it can."""
    if device.type != "cuda":
        return f"needs a CUDA device, this is {device.type}"
    if not half:
        return "needs dtype bfloat16 or float16"
    try:
        import flash_attn  # noqa: F401
    except ImportError as error:
        return f"needs the package flash-attn ({error}; pip install 'xsvggt_ros[flash]')"
    return ""


def cpu_supports(feature: str) -> bool:
    """Whether the CPU has "amx_tile", "avx512_bf16", ...; False where this version of torch cannot tell."""
    ask = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return ask is not None and ask()


def frame_causal(attend: Attend, tokens_per_frame: int) -> Attend:
    """Attention in which a frame sees itself and all earlier frames, without building a mask.

    Whole sequences only: the tokens of all frames lie one after the other in q, k and v.
    """

    def attend_frames(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ends = range(tokens_per_frame, q.shape[1] + 1, tokens_per_frame)
        return torch.cat([attend(q[:, e - tokens_per_frame : e], k[:, :e], v[:, :e]) for e in ends], dim=1)

    return attend_frames
