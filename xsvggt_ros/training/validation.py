# SPDX-License-Identifier: Apache-2.0
"""Errors of predictions in the first frame's scale and pose, without any alignment."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from xsvggt_ros.evaluation.metrics import depth_errors, first_frame_errors, motion_errors
from xsvggt_ros.geometry import Array, decode_pose, inverse
from xsvggt_ros.training.batches import Batch


def errors(depth: Tensor, pose: Tensor, batch: Batch) -> dict[str, float]:
    """depth [B, S, H, W], pose [B, S, 9] -> depth's abs_rel and delta_125; rotation in degrees; the camera's place as
    a share of its mean distance from the first; rotation between adjacent frames, and how far they truly turn."""
    of_depth = depth_errors(depth.flatten().float().cpu().numpy(), batch.depth.flatten().cpu().numpy())
    T, T_true = _poses(pose, batch), batch.T_first_cam.double().cpu().numpy()
    pairs, still = list(zip(T, T_true, strict=True)), np.tile(np.eye(4), (T.shape[1], 1, 1))
    # [B, 2, S - 1]: rotation and place, without the first frame, where they are 0 by definition
    off = np.array([first_frame_errors(*pair, 1.0) for pair in pairs])[..., 1:]
    moved = np.array([first_frame_errors(still, true, 1.0) for true in T_true])[..., 1:]
    return {
        "abs_rel": of_depth.abs_rel,
        "delta_125": of_depth.delta_125,
        "rotation": off[:, 0].mean(),
        "centre": off[:, 1].mean() / moved[:, 1].mean(),
        "adjacent_rotation": np.mean([motion_errors(*pair)[0] for pair in pairs]),
        "adjacent_motion": np.mean([motion_errors(still, true)[0] for true in T_true]),
        "pose_spread": pose.flatten(0, 1)[:, :7].std(0).mean().item(),  # 0: the camera head is dead
    }


def _poses(pose: Tensor, batch: Batch) -> Array:
    """Camera-to-world [B, S, 4, 4]."""
    height, width = batch.images.shape[-2:]
    decoded = [inverse(decode_pose(p, height, width)[0]) for p in pose.flatten(0, 1).cpu().numpy()]
    return np.stack(decoded).reshape(*pose.shape[:2], 4, 4)
