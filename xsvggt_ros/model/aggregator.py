# SPDX-License-Identifier: Apache-2.0
"""Alternating attention inside frames and across frames (VGGT, arXiv 2503.11651, section 3.2)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from xsvggt_ros.fusing import Fusing, as_written
from xsvggt_ros.model.attention import Context
from xsvggt_ros.model.blocks import Block, rope_table
from xsvggt_ros.model.config import ModelConfig
from xsvggt_ros.model.encoder import Encoder
from xsvggt_ros.parts import Parts, whole

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@torch.inference_mode(False)
def _statistics(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the channels of ImageNet's images, [3, 1, 1]."""
    mean, std = (torch.tensor(x, device=device, dtype=dtype)[:, None, None] for x in (MEAN, STD))
    return mean, std


class Aggregator(nn.Module):
    """Images -> the tokens that the heads read."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self._statistics = lru_cache(maxsize=4)(_statistics)
        self._rope_table = lru_cache(maxsize=64)(rope_table)  # so many that those of a recorded graph stay
        self.patch_embed = Encoder(config)
        # Variant 0 marks the first frame of a sequence, variant 1 all others.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, config.width))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.registers, config.width))

        def blocks() -> nn.ModuleList:
            sizes = (config.width, config.heads, config.mlp_ratio)
            return nn.ModuleList(Block(*sizes, qk_norm=True) for _ in range(config.depth))

        self.frame_blocks = blocks()
        self.global_blocks = blocks()

    def encode(self, images: Tensor, context: Context) -> Tensor:
        """images [S, 3, H, W] in [0, 1] -> patch tokens [S, n, C]."""
        return self.patch_embed(self._normalised(images), context)

    def encode_parts(self, images: Tensor, context: Context, fused: Fusing = as_written) -> Parts[Tensor]:
        """`encode`, in parts."""
        return (yield from self.patch_embed.parts(self._normalised(images), context, fused))

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = self._statistics(images.device, images.dtype)
        return ((images - mean) / std).to(self.camera_token.dtype)

    def with_specials(self, patches: Tensor, starts: bool) -> Tensor:
        """Patch tokens [B, S, n, C] of frames, the very first of a sequence if `starts` -> [B, S, P, C]."""
        batch, frames = patches.shape[:2]
        tokens = torch.cat([self.camera_token, self.register_token], dim=2)  # [1, 2, 5, C]
        others = tokens[:, 1:].expand(-1, frames - starts, -1, -1)
        specials = torch.cat([tokens[:, :1], others], dim=1) if starts else others
        return torch.cat([specials.expand(batch, -1, -1, -1), patches], dim=2)

    def forward(self, x: Tensor, grid: tuple[int, int], inside: Context, across: Context) -> list[Tensor]:
        """Tokens [B, S, P, C] of frames with a patch grid (h, w) -> for each tap [B, S, P, 2C].

        `inside` serves the frame blocks; `across` the global ones, whose tokens are [B, S * P, ...], and so
        decides what a frame sees of the others.
        """
        return whole(self.parts(x, grid, inside, across))

    def parts(
        self, x: Tensor, grid: tuple[int, int], inside: Context, across: Context, fused: Fusing = as_written
    ) -> Parts[list[Tensor]]:
        """`forward`, a layer at a time."""
        batch, frames, per_frame, width = x.shape
        dim = width // self.config.heads
        rope = self._rope_table(grid, self.config.specials, dim, self.config.rope_base, x.device)
        rope_all = type(rope)(*(table.repeat(frames, 1, 1) for table in rope)) if frames > 1 else rope
        taps = []
        for i, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            within = frame_block(x.reshape(batch * frames, per_frame, width), inside, i, rope, fused)
            x = global_block(within.reshape(batch, frames * per_frame, width), across, i, rope_all, fused)
            x = x.reshape(batch, frames, per_frame, width)
            if i in self.config.taps:
                taps.append(torch.cat([within.reshape(x.shape), x], dim=-1))
            yield
        return taps
