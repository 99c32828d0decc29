# SPDX-License-Identifier: Apache-2.0
"""What the model's geometry says about patches, on the device: geometry.py's cameras for tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize, pad

from xsvggt_ros.geometry import FOV_LIMITS

Grid = tuple[int, int]  # rows and columns of patches


def per_patch(x: Tensor, grid: Grid) -> Tensor:
    """Pixels [S, H, W] -> the mean of each patch [S, n], float32."""
    return adaptive_avg_pool2d(x[:, None].float(), grid).flatten(1)


def cameras(pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pose encodings [S, 9], see geometry.decode_pose -> R_cam_world [S, 3, 3], its translation [S, 3], and the slopes
    x / z and y / z of the image's edges [S, 2].
    """
    pose = pose.float()
    x, y, z, w = normalize(pose[:, 3:7], dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    low, high = FOV_LIMITS.tolist()
    slopes = (pose[:, 7:9].clamp(low, high) / 2).tan().flip(-1)
    return torch.stack([torch.stack(row, -1) for row in rows], -2), pose[:, :3], slopes


def patch_points(depth: Tensor, pose: Tensor, grid: Grid) -> Tensor:
    """The points of patches, at their mean depth, in the world's frame: [S, n, 3]. depth [S, H, W], pose [S, 9]."""
    R, t, slopes = cameras(pose)
    rows, columns = ((torch.arange(n, device=pose.device) + 0.5) * 2 / n - 1 for n in grid)  # -1 to 1
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    rays = torch.stack([x, y], -1).flatten(0, 1) * slopes[:, None]  # [S, n, 2]
    points = pad(rays, (0, 1), value=1.0) * per_patch(depth, grid)[..., None]
    return (points - t[:, None]) @ R


def share_in_view(points: Tensor, pose: Tensor) -> Tensor:
    """Which share of the points [n, 3] lies in the image of a camera of pose [9]; a scalar on the device."""
    R, t, slopes = (part[0] for part in cameras(pose[None]))
    seen = points @ R.T + t
    return (seen[:, :2].abs() <= slopes * seen[:, 2:]).all(-1).float().mean()
