# SPDX-License-Identifier: Apache-2.0
"""What the network's own outputs are trained on."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BETA = 0.05  # error from which the loss of a pose grows linearly
TRANSLATION = 4.0  # cameras move by less than the scene's scale, in which translations are
ITERATION_WEIGHT = 0.6  # of an iteration of the camera head, for each that follows it
FIELD_OF_VIEW_WEIGHT = 0.5
CONFIDENCE = 0.1  # an error of this size is the largest for which any confidence pays
STRIDES = (1, 2, 4)  # pixels between which depth is compared


def pose_loss(iterations: Tensor, truth: Tensor) -> Tensor:
    """Pose encodings [iterations, B, S, 9] against [B, S, 9]; later iterations count more."""
    weight = ITERATION_WEIGHT ** torch.arange(len(iterations) - 1, -1, -1, device=truth.device)
    error = relative_pose_loss(iterations[..., :7], truth[..., :7])
    error = error + FIELD_OF_VIEW_WEIGHT * _size(iterations[..., 7:] - truth[..., 7:])
    return (weight * error.mean((1, 2))).sum() / weight.sum()


def relative_pose_loss(pose: Tensor, truth: Tensor) -> Tensor:
    """Translation and quaternion [..., 7] -> [...]. q and -q are the same rotation: the nearer one is the truth."""
    sign = (pose[..., 3:] * truth[..., 3:]).sum(-1, keepdim=True).sign().detach()
    far = truth[..., :3].norm(dim=-1, keepdim=True).clamp(min=1)  # a start close to a wall makes the unit small
    translation, rotation = (pose[..., :3] - truth[..., :3]) / far, pose[..., 3:] - sign * truth[..., 3:]
    return _size(TRANSLATION * translation) + _size(2 * rotation)


def _size(error: Tensor) -> Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error), beta=BETA, reduction="none").sum(-1)


def depth_loss(depth: Tensor, confidence: Tensor, truth: Tensor) -> Tensor:
    """Depth and confidence [..., H, W]: c |d log z| - 0.1 log c, and the error's gradient."""
    error = depth.log() - truth.log()
    loss = (confidence * error.abs() - CONFIDENCE * confidence.log()).mean()
    for stride in STRIDES:
        down = error[..., stride:, :] - error[..., :-stride, :]
        right = error[..., stride:] - error[..., :-stride]
        loss = loss + (down.abs().mean() + right.abs().mean()) / (2 * len(STRIDES))
    return loss


def points_loss(points: Tensor, confidence: Tensor, truth: Tensor) -> Tensor:
    """Points [..., 3] and confidence [...]: c ||dP|| - 0.1 log c; far points' errors count by their distance."""
    error = (points - truth).norm(dim=-1) / truth.norm(dim=-1).clamp(min=1)
    return (confidence * error - CONFIDENCE * confidence.log()).mean()
