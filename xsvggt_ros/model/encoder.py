# SPDX-License-Identifier: Apache-2.0
"""The image encoder: DINOv2 ViT with registers (arXiv 2304.07193, 2309.16588)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xsvggt_ros.fusing import Fusing, as_written
from xsvggt_ros.model.attention import Context
from xsvggt_ros.model.blocks import Block
from xsvggt_ros.model.config import ModelConfig
from xsvggt_ros.parts import Parts, whole

BLOCKS = 4  # of a part: as much work as a layer of the aggregator, about


class PatchProjection(nn.Module):
    def __init__(self, patch_size: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """images [S, 3, 14h, 14w] -> [S, h*w, C], rows outer."""
        return self.proj(images).flatten(2).transpose(1, 2)


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position table [1, 1 + g*g, C], class entry first, resized to a grid (h, w): [1, 1 + h*w, C].

    Bicubic with antialiasing, in float32; the table's own grid is returned as it is.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return table
    patches = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


class Encoder(nn.Module):
    """Normalised images -> one token per patch."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, sizes = config.width, config.encoder
        self.patch_size = config.patch_size
        self.patch_embed = PatchProjection(config.patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (config.image_size // config.patch_size) ** 2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # only in checkpoints
        self.blocks = nn.ModuleList(Block(width, sizes.heads, sizes.mlp_ratio, eps=1e-6) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._positions: tuple[tuple, Tensor] | None = None

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table for a grid, resized once per grid and state of the weights."""
        if torch.is_grad_enabled():
            return resize_positions(self.pos_embed, grid)
        version = 0 if self.pos_embed.is_inference() else self.pos_embed._version  # inference tensors have none
        key = (grid, self.pos_embed.device, self.pos_embed.dtype, version)
        if self._positions is None or self._positions[0] != key:
            self._positions = key, resize_positions(self.pos_embed, grid)
        return self._positions[1]

    def forward(self, images: Tensor, context: Context) -> Tensor:
        """images [S, 3, 14h, 14w], normalised -> patch tokens [S, h*w, C]."""
        return whole(self.parts(images, context))

    def parts(self, images: Tensor, context: Context, fused: Fusing = as_written) -> Parts[Tensor]:
        """`forward`, in parts."""
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        frames = images.shape[0]
        x = torch.cat([self.cls_token.expand(frames, -1, -1), self.patch_embed(images)], dim=1) + self.positions(grid)
        x = torch.cat([x[:, :1], self.register_tokens.expand(frames, -1, -1), x[:, 1:]], dim=1)
        for layer, block in enumerate(self.blocks):
            if layer and layer % BLOCKS == 0:
                yield
            x = block(x, context, layer, fused=fused)
        return self.norm(x[:, 1 + self.register_tokens.shape[1] :])
