# SPDX-License-Identifier: Apache-2.0
"""Image sequences with what a network should say about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xsvggt_ros.evaluation.metrics import OCCLUDED
from xsvggt_ros.geometry import encode_pose, inverse


@dataclass(frozen=True)
class Batch:
    """B sequences of S frames. The world is the first camera; 1 is the mean distance of what that camera sees."""

    images: Tensor  # [B, S, 3, H, W] in [0, 1]
    depth: Tensor  # [B, S, H, W]
    T_first_cam: Tensor  # [B, S, 4, 4], float32
    pose: Tensor  # [B, S, 9], see geometry.decode_pose
    intrinsics: Tensor  # [B, 3, 3], pixel centres at integers
    confidence: Tensor | None = None  # [B, S, H, W], at least 1, of a teacher in its depth; None: this is the truth

    def points(self, pixels: Tensor, depth: Tensor) -> Tensor:
        """World points [B, S, n, 3] of pixels [n, 2] (x, y) at depth [B, S, n]."""
        homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
        rays = homogeneous @ self.intrinsics.inverse().mT  # [B, n, 3]
        points = depth[..., None] * rays[:, None]
        return points @ self.T_first_cam[..., :3, :3].mT + self.T_first_cam[..., None, :3, 3]

    def point_maps(self) -> Tensor:
        """The world point of every pixel, [B, S, H, W, 3]."""
        height, width = self.depth.shape[-2:]
        pixels = _pixels(height, width).to(self.depth).flatten(0, 1)
        return self.points(pixels, self.depth.flatten(2)).unflatten(2, (height, width))

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """World points [B, T, n, 3] in every camera s: pixels [B, T, S, n, 2] and depth [B, T, S, n]."""
        rotation, position = self.T_first_cam[..., :3, :3], self.T_first_cam[..., :3, 3]  # [B, S, 3, 3], [B, S, 3]
        in_camera = (points[:, :, None] - position[:, None, :, None]) @ rotation[:, None]
        depth = in_camera[..., 2]
        image = in_camera @ self.intrinsics.mT[:, None, None]
        return image[..., :2] / depth.clamp(min=1e-3)[..., None], depth

    def visible(self, pixels: Tensor, depth: Tensor) -> Tensor:
        """1 where a projected point is in the image and not hidden, else 0; as `project` gives them [B, T, S, n]."""
        height, width = self.depth.shape[-2:]
        column, row = pixels.round().long().unbind(-1)
        inside = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        flat = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)  # [B, T, S, n]
        maps = self.depth.flatten(2)[:, None].expand(-1, flat.shape[1], -1, -1)
        seen = maps.gather(-1, flat)
        return (inside & ((seen - depth).abs() < OCCLUDED * seen)).float()


def true_batch(
    images: Tensor, depth: Tensor, T_world_cam: NDArray[np.float64], intrinsics: NDArray[np.float64]
) -> Batch:
    """Of images and depth as Batch has them, in any unit and world: poses [B, S, 4, 4], camera matrices [B, 3, 3]."""
    height, width = images.shape[-2:]
    K = images.new_tensor(intrinsics)
    homogeneous = torch.cat([_pixels(height, width), torch.ones(height, width, 1)], -1).to(K)
    lengths = (homogeneous.flatten(0, 1) @ K.inverse().mT).norm(dim=-1).unflatten(1, (height, width))
    scale = (depth[:, 0] * lengths).mean((1, 2))  # [B]
    T_first_cam = np.linalg.inv(T_world_cam[:, :1]) @ T_world_cam
    T_first_cam[..., :3, 3] /= scale.cpu().numpy()[:, None, None]
    pose = encode_pose(inverse(T_first_cam), intrinsics[:, None], height, width)
    depth = depth / scale[:, None, None, None]
    return Batch(images, depth, K.new_tensor(T_first_cam), K.new_tensor(pose), K)


def _pixels(height: int, width: int) -> Tensor:
    """[height, width, 2], x y."""
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([u, v], -1)
