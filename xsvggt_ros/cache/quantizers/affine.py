# SPDX-License-Identifier: Apache-2.0
"""Affine quantisation in few bits, really packed into bytes.

value = offset + scale * code, code in 0 .. 2^bits - 1. A group's range is cut into 2^bits equal bins and a code
stands for its bin's centre: scale = (max - min) / 2^bits, offset = min + scale / 2. The offset is kept in full
(float16), not as a clamped integer zero point, so that a group whose values all have one sign loses nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xsvggt_ros.cache.quantizers.packing import PARAMETER_DTYPE, SMALLEST_SCALE, pack, unpack


def affine_parameters(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(scale, offset), float16, of groups with the given extremes."""
    limit = torch.finfo(PARAMETER_DTYPE).max
    bin_width = (high.float() - low.float()) / 2**bits
    offset = low.float() + bin_width / 2
    return bin_width.clamp_max(limit).to(PARAMETER_DTYPE), offset.clamp(-limit, limit).to(PARAMETER_DTYPE)


def encode(x: Tensor, scale: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Codes of x, uint8 and not yet packed; scale and offset broadcast to x."""
    codes = (x.float() - offset.float()) / scale.float().clamp_min(SMALLEST_SCALE)
    return codes.round_().clamp_(0, 2**bits - 1).to(torch.uint8)


def quantize_per_channel(x: Tensor, rows: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys x [T, heads, d]: one scale and offset per group of tokens, head and channel.

    rows [G, n] lists each group's tokens; a group with fewer than n repeats one of its own.
    Returns packed codes [T, heads, d * bits / 8], scale and offset [G, heads, d].
    """
    groups = x[rows]  # [G, n, heads, d]
    scale, offset = affine_parameters(groups.amin(1), groups.amax(1), bits)
    codes = pack(encode(groups, scale[:, None], offset[:, None], bits), bits)
    packed = codes.new_empty(x.shape[0], *codes.shape[2:])
    packed[rows.flatten()] = codes.flatten(0, 1)
    return packed, scale, offset


def quantize_per_token(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values x [T, heads, d]: one scale and offset per token and head, over its channels.

    Returns packed codes [T, heads, d * bits / 8], scale and offset [T, heads].
    """
    scale, offset = affine_parameters(x.amin(-1), x.amax(-1), bits)
    return pack(encode(x, scale[..., None], offset[..., None], bits), bits), scale, offset


def dequantize(packed: Tensor, scale: Tensor, offset: Tensor, bits: int, out: Tensor) -> Tensor:
    """Writes offset + scale * code to out [T, heads, d]; scale and offset broadcast to it.

    Computed in float32 and rounded once: in bfloat16 the arithmetic alone would double the error of 8 bits.
    """
    codes = unpack(packed, bits, out if out.dtype == torch.float32 else torch.empty(out.shape, device=out.device))
    return out.copy_(codes.mul_(scale.float()).add_(offset.float()))  # faster than addcmul, which broadcasts slowly
