# SPDX-License-Identifier: Apache-2.0
"""StreamVGGT (arXiv 2507.11539): images -> camera poses, depth, points and tracks, whole or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MethodType
from typing import Protocol

import torch
from torch import Tensor, nn

from xsvggt_ros.fusing import Fusing
from xsvggt_ros.model.aggregator import Aggregator
from xsvggt_ros.model.attention import Context, Kernel, WholeSequence, sdpa
from xsvggt_ros.model.blocks import Block
from xsvggt_ros.model.camera_head import CameraHead
from xsvggt_ros.model.config import ModelConfig
from xsvggt_ros.model.dpt_head import DPTHead, uv_embedding
from xsvggt_ros.model.encoder import BLOCKS
from xsvggt_ros.model.track_head import TrackHead
from xsvggt_ros.parts import Parts, whole

OPTIONAL_HEADS = ("point", "track")


@dataclass
class Predictions:
    """What the heads say about B sequences of S frames. None: that head was not built or not asked.

    Depth that was not asked for is NaN everywhere, and its confidence.
    """

    pose_iterations: Tensor  # [iterations, B, S, 9], world-to-camera, see geometry.decode_pose
    depth: Tensor  # [B, S, H, W], model units
    depth_confidence: Tensor  # [B, S, H, W], at least 1
    points: Tensor | None = None  # [B, S, H, W, 3], first camera's frame
    points_confidence: Tensor | None = None  # [B, S, H, W]
    tracks: Tensor | None = None  # [B, S, N, 2], pixels x y
    visibility: Tensor | None = None  # [B, S, N]
    track_confidence: Tensor | None = None  # [B, S, N]
    track_maps: Tensor | None = None  # [B, S, F, H/2, W/2], features of the track head, in a stream

    @property
    def pose(self) -> Tensor:
        """Final pose encoding [B, S, 9]."""
        return self.pose_iterations[-1]


class Past(Context, Protocol):
    """The frames of a stream so far: the global blocks attend to them and to the new ones, which they take in."""

    @property
    def frames(self) -> int:
        """How many they are."""
        ...

    @property
    def camera(self) -> Context:
        """What the camera head attends to."""
        ...

    @property
    def camera_iterations(self) -> int:
        """How many of its iterations there is room for."""
        ...

    def begin(self, patches: Tensor) -> None:
        """New frames come, of which the encoder makes patches [S, n, C]."""
        ...


class StreamVGGT(nn.Module):
    """The network. `heads` says which of the optional ones are built: one that is not needed costs no memory."""

    def __init__(self, config: ModelConfig, heads: Sequence[str] = OPTIONAL_HEADS):
        super().__init__()
        self.config = config
        self.kernel: Kernel = sdpa
        self.camera_kernel: Kernel = sdpa  # in float32, which not every kernel takes
        width = 2 * config.width
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(config)
        embed = lru_cache(maxsize=64)(uv_embedding)  # of both heads, and so many that those of a recorded graph stay
        self.depth_head = DPTHead(width, config.dpt, outputs=2, embed=embed)
        self.point_head = DPTHead(width, config.dpt, outputs=4, embed=embed) if "point" in heads else None
        self.track_head = TrackHead(width, config.track) if "track" in heads and config.track else None

    def forward(self, images: Tensor, causal: bool = True, query_points: Tensor | None = None) -> Predictions:
        """Whole sequences at once: images [B, S, 3, H, W] in [0, 1], sides multiples of the patch size.

        causal: a frame sees itself and earlier ones; otherwise every frame sees all (VGGT).
        query_points [B, N, 2]: pixels (x, y) of the first frame to follow with the track head.
        """
        batch, frames = images.shape[:2]
        grid = self.grid(images)
        inside = WholeSequence(self.kernel)
        patches = self.aggregator.encode(images.flatten(0, 1), inside).unflatten(0, (batch, frames))
        x = self.aggregator.with_specials(patches, starts=True)
        taps = self.aggregator(x, grid, inside, WholeSequence(self.kernel, x.shape[2] if causal else None))
        poses = self.camera_head(taps[-1][:, :, 0], WholeSequence(self.camera_kernel, 1 if causal else None))
        predictions = self.dense(taps, grid, poses)
        if query_points is not None:
            self._track(predictions, taps, grid, query_points)
        return predictions

    def step(
        self, images: Tensor, past: Past, mark: Callable[[str], None] = lambda stage: None, dense: bool = True
    ) -> Predictions:
        """The next frames of a stream, which see each other: images [S, 3, H, W] in [0, 1] -> predictions with B = 1.

        dense: whether depth, and points where there is their head, are asked for too, which the past does not need.
        `past` takes them in; `past.end_frames(S)`, which keeps them, is left to the caller, who may find the
        predictions to be no numbers. `mark(stage)` is called as a stage ends.
        """
        return whole(self.step_parts(images, past, mark, dense))

    def step_parts(
        self, images: Tensor, past: Past, mark: Callable[[str], None] = lambda stage: None, dense: bool = True
    ) -> Parts[Predictions]:
        """`step`, in parts of about the same work."""
        grid = self.grid(images)
        inside = WholeSequence(self.kernel)
        patches = yield from self.aggregator.encode_parts(images, inside)
        mark("encoder")
        yield
        past.begin(patches)
        x = self.aggregator.with_specials(patches[None], starts=past.frames == 0)
        taps = yield from self.aggregator.parts(x, grid, inside, past)
        mark("aggregator")
        poses = self.camera_head(taps[-1][:, :, 0], past.camera, past.camera_iterations)
        mark("camera")
        yield
        predictions = self.dense(taps, grid, poses) if dense else without_depth(poses, *images.shape[-2:])
        mark("dense")
        if self.track_head is not None:
            of_patches = [tap[0, :, self.config.specials :] for tap in taps]
            predictions.track_maps = self.track_head.feature_extractor(of_patches, grid)[None]
        return predictions

    def fuse(self, fused: Fusing) -> None:
        """Makes few kernels of what lies between attentions, and of the depth head."""
        for block in self.modules():
            if isinstance(block, Block):
                block.entering = MethodType(fused(Block.entering), block)  # type: ignore[method-assign]
                block.leaving = MethodType(fused(Block.leaving), block)  # type: ignore[method-assign]
        self.depth_head.forward = MethodType(fused(DPTHead.forward), self.depth_head)  # type: ignore[method-assign]

    @property
    def part_count(self) -> int:
        """How many parts a step has."""
        return 1 + (self.config.encoder.depth - 1) // BLOCKS + 1 + self.config.depth + 1

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patch rows and columns of images [..., H, W]. Raises ValueError if a side is not a multiple of the patch."""
        height, width = images.shape[-2:]
        patch = self.config.patch_size
        if height % patch or width % patch or not height or not width:
            raise ValueError(f"image sides must be positive multiples of {patch}, got {width}x{height}")
        return height // patch, width // patch

    def dense(self, taps: list[Tensor], grid: tuple[int, int], poses: Tensor) -> Predictions:
        """The dense heads on the aggregator's tokens, for each tap [B, S, P, 2C], beside poses already predicted."""
        shape = taps[0].shape[:2]
        patches = [tap[:, :, self.config.specials :].flatten(0, 1) for tap in taps]  # [B * S, n, 2C]
        depth, depth_confidence = self.depth_head(patches, grid).unflatten(0, shape).exp().unbind(2)
        predictions = Predictions(poses, depth, 1 + depth_confidence)
        if self.point_head is not None:
            raw = self.point_head(patches, grid).unflatten(0, shape).movedim(2, -1)  # [B, S, H, W, 4]
            predictions.points = inverse_log(raw[..., :3])
            predictions.points_confidence = 1 + raw[..., 3].exp()
        return predictions

    def _track(self, predictions: Predictions, taps: list[Tensor], grid: tuple[int, int], queries: Tensor) -> None:
        if self.track_head is None:
            raise ValueError("query_points need a track head: this StreamVGGT was configured or built without one")
        patches = [tap[:, :, self.config.specials :] for tap in taps]
        found = self.track_head(patches, grid, queries)
        predictions.tracks, predictions.visibility, predictions.track_confidence = found


def without_depth(poses: Tensor, height: int, width: int) -> Predictions:
    """Poses [iterations, B, S, 9] alone, of images of that size; what stands for depth takes no memory."""
    unknown = poses.new_full((), torch.nan).expand(*poses.shape[1:3], height, width)
    return Predictions(poses, unknown, unknown)


def inverse_log(x: Tensor) -> Tensor:
    """sign(x) (exp|x| - 1): the point head's activation."""
    return x.sign() * x.abs().expm1()
