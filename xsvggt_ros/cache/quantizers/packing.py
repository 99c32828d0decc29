# SPDX-License-Identifier: Apache-2.0
"""Codes of few bits in bytes."""

from __future__ import annotations

import torch
from torch import Tensor

PARAMETER_DTYPE = torch.float16
SMALLEST_SCALE = 2.0**-24  # the smallest positive float16


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., d] -> uint8 bytes [..., d * bits / 8]; byte j holds channels j, j + d*bits/8, ...

    3 bits are packed as their lower two and, after those, their highest.
    """
    if bits == 3:
        return torch.cat([pack(codes & 3, 2), pack(codes >> 2, 1)], -1)
    parts = codes.unflatten(-1, (8 // bits, -1)).unbind(-2)
    packed = parts[0].clone()
    for i, part in enumerate(parts[1:], start=1):
        packed |= part << (i * bits)
    return packed


def parts_of(packed: Tensor, bits: int) -> list[Tensor]:
    """The codes of each run of d * bits / 8 channels, uint8; not for 3 bits."""
    return [(packed >> start) & (2**bits - 1) for start in range(0, 8, bits)]


def unpack(packed: Tensor, bits: int, out: Tensor) -> Tensor:
    """Bytes [..., d * bits / 8] -> codes [..., d], written as numbers of out's dtype."""
    if bits == 3:
        lower, highest = packed.split([out.shape[-1] // 4, out.shape[-1] // 8], -1)
        return unpack(lower, 2, out).add_(unpack(highest, 1, torch.empty_like(out)), alpha=4)
    return joined(parts_of(packed, bits), out)


def joined(parts: list[Tensor], out: Tensor) -> Tensor:
    """Writes parts [..., d / n], n of them, beside each other to out [..., d]."""
    for part, place in zip(parts, out.unflatten(-1, (len(parts), -1)).unbind(-2), strict=True):
        place.copy_(part)
    return out
