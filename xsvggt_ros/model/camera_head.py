# SPDX-License-Identifier: Apache-2.0
"""Camera pose and field of view by iterative refinement (VGGT, arXiv 2503.11651, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xsvggt_ros.fusing import Fusing, as_written
from xsvggt_ros.model.attention import Context
from xsvggt_ros.model.blocks import Block, Mlp
from xsvggt_ros.model.config import ModelConfig

POSE_SIZE = 9  # translation (3), quaternion x y z w (4), field of view over height and width (2)
ITERATIONS = 4  # as published


class CameraHead(nn.Module):
    """Camera tokens -> pose encodings."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, sizes = 2 * config.width, config.camera
        self.token_norm = nn.LayerNorm(width)
        self.trunk = nn.ModuleList(Block(width, sizes.heads, sizes.mlp_ratio) for _ in range(sizes.depth))
        self.trunk_norm = nn.LayerNorm(width)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_SIZE))
        self.embed_pose = nn.Linear(POSE_SIZE, width)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.pose_branch = Mlp(width, width // 2, POSE_SIZE)

    def forward(
        self, tokens: Tensor, context: Context, iterations: int = ITERATIONS, fused: Fusing = as_written
    ) -> Tensor:
        """Camera tokens [B, S, 2C] -> pose encodings of all iterations [iterations, B, S, 9], the last the best.

        Every iteration attends anew: a streaming `context` therefore holds one key per iteration, which is how
        the published model runs.
        """
        tokens = self.token_norm(tokens.to(self.token_norm.weight.dtype))  # [B, S, 2C]
        empty = self.empty_pose_tokens.expand(*tokens.shape[:2], -1)
        pose, poses = torch.zeros_like(empty), []
        for iteration in range(iterations):
            pose = pose + self.delta(tokens, pose if iteration else empty, context, fused)
            poses.append(activate_pose(pose))
        return torch.stack(poses)

    def delta(self, tokens: Tensor, pose: Tensor, context: Context, fused: Fusing = as_written) -> Tensor:
        """What one iteration adds to poses [B, S, 9], before activation; tokens [B, S, 2C] are normalised."""
        shift, scale, gate = self.poseLN_modulation(self.embed_pose(pose)).chunk(3, dim=-1)
        x = tokens + gate * (F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        for i, block in enumerate(self.trunk):
            x = block(x, context, i, fused=fused)
        return self.pose_branch(self.trunk_norm(x))


def activate_pose(pose: Tensor) -> Tensor:
    """Raw pose encoding [..., 9] -> with the fields of view made non-negative."""
    return torch.cat([pose[..., :7], pose[..., 7:].relu()], dim=-1)
