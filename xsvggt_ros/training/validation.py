# SPDX-License-Identifier: Apache-2.0
"""Errors of predictions in the first frame's scale and pose, without any alignment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xsvggt_ros.geometry import decode_pose, inverse
from xsvggt_ros.training.batches import Batch


def errors(depth: Tensor, pose: Tensor, batch: Batch) -> dict[str, float]:
    """depth [B, S, H, W], pose [B, S, 9] -> depth's abs_rel and delta_125; rotation in degrees; the camera's place as
    a share of its mean distance from the first; rotation between adjacent frames, and how far they truly turn."""
    ratio = depth / batch.depth
    T, T_true = _centred(_poses(pose, batch)), _centred(batch.T_world_cam.double().cpu().numpy())
    place, place_true = T[:, 1:, :3, 3], T_true[:, 1:, :3, 3]
    step, step_true = _steps(T), _steps(T_true)
    return {
        "abs_rel": (ratio - 1).abs().mean().item(),
        "delta_125": ((ratio < 1.25) & (ratio > 0.8)).float().mean().item(),
        "rotation": _degrees(T[:, 1:], T_true[:, 1:]).mean(),
        "centre": np.linalg.norm(place - place_true, axis=-1).mean() / np.linalg.norm(place_true, axis=-1).mean(),
        "adjacent_rotation": _degrees(step, step_true).mean(),
        "adjacent_motion": _degrees(np.eye(4), step_true).mean(),
        "pose_spread": pose.flatten(0, 1)[:, :7].std(0).mean().item(),  # 0: the camera head is dead
    }


def _poses(pose: Tensor, batch: Batch) -> NDArray[np.float64]:
    height, width = batch.images.shape[-2:]
    decoded = [inverse(decode_pose(p, height, width)[0]) for p in pose.flatten(0, 1).cpu().numpy()]
    return np.stack(decoded).reshape(*pose.shape[:2], 4, 4)


def _centred(T_world_cam: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.inv(T_world_cam[:, :1]) @ T_world_cam


def _steps(T_world_cam: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.inv(T_world_cam[:, :-1]) @ T_world_cam[:, 1:]


def _degrees(T: NDArray[np.float64], T_true: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angle between rotations."""
    trace = np.trace(T[..., :3, :3].swapaxes(-1, -2) @ T_true[..., :3, :3], axis1=-2, axis2=-1)
    return np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
