# SPDX-License-Identifier: Apache-2.0
"""What the network's own outputs are trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BETA = 0.05  # error from which the loss of a pose grows linearly
LOST = 0.2  # error of a pose beyond which less and less is gained: what is lost should not drown what can be learned
TRANSLATION = 4.0  # cameras move by less than the scene's scale, in which translations are
ITERATION_WEIGHT = 0.6  # of an iteration of the camera head, for each that follows it
FIELD_OF_VIEW_WEIGHT = 0.5
CONFIDENCE = 0.1  # an error of this size is the largest for which any confidence pays
APART = 5  # distances, each twice the one before, between frames whose relative motion is compared
STRIDES = (1, 2, 4)  # pixels between which depth is compared


def pose_loss(iterations: Tensor, truth: Tensor) -> Tensor:
    """Pose encodings [iterations, B, S, 9] against [B, S, 9]; later iterations count more."""
    weight = ITERATION_WEIGHT ** torch.arange(len(iterations) - 1, -1, -1, device=truth.device)
    error = relative_pose_loss(iterations[..., :7], truth[..., :7])
    error = error + FIELD_OF_VIEW_WEIGHT * _size(iterations[..., 7:] - truth[..., 7:])
    return (weight * error.mean((1, 2))).sum() / weight.sum()


def motion_loss(poses: Tensor, truth: Tensor) -> Tensor:
    """Pose encodings [B, S, 9]: motion between frames 1, 2, 4, ... apart, as the poses have it, against the truth.

    What is wrong with all poses of a stretch alike costs nothing; what comes in from frame to frame does.
    """
    losses = []
    for apart in (2**k for k in range(APART) if 2**k < poses.shape[1]):
        (turn, shift), (true_turn, true_shift) = _between(poses, apart), _between(truth, apart)
        far = true_shift.norm(dim=-1, keepdim=True).clamp(min=1)
        turned = (turn - true_turn).flatten(-2) / math.sqrt(2)  # its length is about the angle
        losses.append(_robust(_size(turned) + _size(TRANSLATION * (shift - true_shift) / far)).mean())
    return torch.stack(losses).mean()


def _between(pose: Tensor, apart: int) -> tuple[Tensor, Tensor]:
    """Rotations [B, n, 3, 3] and translations [B, n, 3] from each frame to the one `apart` later."""
    R, t = rotation_matrices(pose[..., 3:7]), pose[..., :3]
    turn = R[:, apart:] @ R[:, :-apart].mT
    return turn, t[:, apart:] - (turn @ t[:, :-apart, :, None])[..., 0]


def rotation_matrices(q: Tensor) -> Tensor:
    """Of quaternions (x, y, z, w) of any length, [..., 4] -> [..., 3, 3]."""
    x, y, z, w = (q / q.norm(dim=-1, keepdim=True).clamp(min=1e-6)).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def relative_pose_loss(pose: Tensor, truth: Tensor) -> Tensor:
    """Translation and quaternion [..., 7] -> [...]. q and -q are the same rotation: the nearer one is the truth."""
    sign = (pose[..., 3:] * truth[..., 3:]).sum(-1, keepdim=True).sign().detach()
    far = truth[..., :3].norm(dim=-1, keepdim=True).clamp(min=1)  # a start close to a wall makes the unit small
    translation, rotation = (pose[..., :3] - truth[..., :3]) / far, pose[..., 3:] - sign * truth[..., 3:]
    return _robust(_size(TRANSLATION * translation) + _size(2 * rotation))


def _robust(error: Tensor) -> Tensor:
    """The error where it is small, its logarithm where it is large."""
    return LOST * (error / LOST).log1p()


def _size(error: Tensor) -> Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error), beta=BETA, reduction="none").sum(-1)


def depth_loss(depth: Tensor, confidence: Tensor, truth: Tensor, taught: Tensor | None = None) -> Tensor:
    """Depth and confidence [..., H, W]: c |d log z| - 0.1 log c, and the error's gradient. taught: see `_weighted`."""
    error = depth.log() - truth.log()
    loss = _weighted(error.abs(), confidence, taught)
    for stride in STRIDES:
        down = error[..., stride:, :] - error[..., :-stride, :]
        right = error[..., stride:] - error[..., :-stride]
        loss = loss + (down.abs().mean() + right.abs().mean()) / (2 * len(STRIDES))
    return loss


def points_loss(points: Tensor, confidence: Tensor, truth: Tensor, taught: Tensor | None = None) -> Tensor:
    """Points [..., 3] and confidence [...]: c ||dP|| - 0.1 log c; far points' errors count by their distance."""
    return _weighted((points - truth).norm(dim=-1) / truth.norm(dim=-1).clamp(min=1), confidence, taught)


def _weighted(error: Tensor, confidence: Tensor, taught: Tensor | None) -> Tensor:
    """c e - 0.1 log c, or with a teacher's confidence instead of the truth: errors by that, which c is to equal."""
    if taught is None:
        return (confidence * error - CONFIDENCE * confidence.log()).mean()
    share = taught / taught.mean()
    return (share * error + CONFIDENCE * (confidence.log() - taught.log()).abs()).mean()
