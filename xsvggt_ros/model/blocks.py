# SPDX-License-Identifier: Apache-2.0
"""Transformer parts shared by the encoder, the aggregator and the camera head.

Tensors are token-major, [B, T, heads, d], so that a token's keys lie together, as the cache stores them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from xsvggt_ros.model.attention import Context


class Rope(NamedTuple):
    """Rotation of each token's queries and keys by its row and column in the patch grid."""

    cos: Tensor  # [T, 1, d]
    sin: Tensor  # [T, 1, d], negated where the partner is subtracted

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., T, heads, d], rotated. Halves of d turn by row and column; partners lie d/4 apart.

        The tables are float32, so that half precision is rounded once, at the end.
        """
        partner = x.unflatten(-1, (2, -1)).roll(x.shape[-1] // 4, -1).flatten(-2)
        return torch.addcmul(x * self.cos, partner, self.sin).to(x.dtype)


@torch.inference_mode(False)  # a table made by a stream must also serve in training
def rope_table(
    grid: tuple[int, int],
    specials: int,
    dim: int,
    base: float,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Rope:
    """2-D rotary embedding of one frame: `specials` tokens at (0, 0), then patch (y, x) at (y + 1, x + 1)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    patches = torch.stack([rows.flatten(), columns.flatten()], dim=-1) + 1
    positions = torch.cat([patches.new_zeros(specials, 2), patches])  # [T, 2]
    frequencies = base ** -(torch.arange(0, dim // 2, 2, dtype=torch.float32) / (dim // 2))  # [d/4]
    angles = positions[:, :, None] * frequencies  # [T, 2, d/4]
    cos = angles.cos().repeat_interleave(2, dim=1).flatten(1)
    sin = torch.stack([-angles.sin(), angles.sin()], dim=2).flatten(1)
    return Rope(cos[:, None].to(device, dtype), sin[:, None].to(device, dtype))


class Attention(nn.Module):
    """What surrounds multi-head attention: projections into it and out of it."""

    def __init__(self, width: int, heads: int, qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor, rope: Rope | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys (normalised and rotated) and values of x [B, T, C], each [B, T, heads, d]."""
        q, k, v = self.qkv(x.to(self.qkv.weight.dtype)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = self.q_norm(q), self.k_norm(k)
        return (rope(q), rope(k), v) if rope else (q, k, v)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, out: int | None = None):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out or width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x.to(self.fc1.weight.dtype))))


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return torch.addcmul(x, self.gamma, residual)


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale (SPEC of DINOv2 and VGGT blocks; eps differs between them).

    x keeps the type of norms and scales, which may be float32 where the products are in half precision: x is a sum over
    all layers, each of which would round it.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, qk_norm: bool = False, eps: float = 1e-5):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, qk_norm)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, context: Context, layer: int, rope: Rope | None = None) -> Tensor:
        """x [B, T, C] -> [B, T, C], as layer `layer` of its stack; `context` is what its queries attend to."""
        attended = context.attend(layer, *self.entering(x, rope))
        x, residual = self.leaving(x, attended)
        context.added(layer, self.ls2.gamma, residual)
        return x

    def entering(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor, Tensor]:
        """Up to attention: its queries, keys and values [B, T, heads, d]."""
        return self.attn.project(self.norm1(x), rope)

    def leaving(self, x: Tensor, attended: Tensor) -> tuple[Tensor, Tensor]:
        """From attention [B, T, heads, d] on: the tokens [B, T, C], and of these what the MLP adds, before ls2."""
        x = self.ls1(x, self.attn.proj(attended.flatten(2)))
        residual = self.mlp(self.norm2(x))
        return self.ls2(x, residual), residual
