# SPDX-License-Identifier: Apache-2.0
"""A network that sees whole sequences says what one that sees the past only should have said.

StreamVGGT, arXiv 2507.11539, section 3.3: poses, depth, points and confidence of a frozen bidirectional teacher take
the place of the truth.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from xsvggt_ros.config import StreamConfig
from xsvggt_ros.geometry import decode_pose, inverse
from xsvggt_ros.model import load_model
from xsvggt_ros.training.batches import Batch, true_batch


class Teacher:
    """Frozen; its weights are a checkpoint's of this or the published form (VGGT's too).

    It sees images as wide as those it was trained on, enlarged where they are not. Points are its depth, unprojected.
    """

    def __init__(self, weights: Path, model: str, device: torch.device) -> None:
        config = StreamConfig(weights=str(weights), model=model, device=str(device))
        self._model = load_model(config, heads=(), causal=False)

    @torch.no_grad()
    def lesson(self, images: Tensor) -> Batch:
        """What it says of images [B, S, 3, H, W], as if it were true. A sequence's frames have one camera matrix."""
        height, width = images.shape[-2:]
        said = self._model(self._enlarged(images), causal=False)
        depth, confidence = (
            F.interpolate(x.float(), (height, width), mode="nearest-exact") for x in (said.depth, said.depth_confidence)
        )
        poses = [[decode_pose(pose, height, width) for pose in sequence] for sequence in said.pose.cpu().numpy()]
        T_world_cam = np.array([[inverse(T) for T, _ in sequence] for sequence in poses])
        intrinsics = np.array([np.mean([K for _, K in sequence], 0) for sequence in poses])
        return replace(true_batch(images, depth, T_world_cam, intrinsics), confidence=confidence)

    def _enlarged(self, images: Tensor) -> Tensor:
        config, (height, width) = self._model.config, images.shape[-2:]
        rows = round(height * config.image_size / width / config.patch_size)
        size = (max(1, rows) * config.patch_size, config.image_size)
        if size[1] <= width:
            return images
        large = F.interpolate(images.flatten(0, 1), size, mode="bilinear", align_corners=False)
        return large.unflatten(0, images.shape[:2])
