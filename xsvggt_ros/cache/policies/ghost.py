# SPDX-License-Identifier: Apache-2.0
"""Keep first and newest frame and what the geometry found worth most when it came (GHOST, arXiv 2605.15852).

A token's score is fixed once: half its frame's, F, and half its own, tau.
    F   = [.55 s(|dT| + 1 - |q.q'|) + .55 s(Var |grad D|) + .25 s(t / T)] / 1.35
    tau = [.28 s(|grad of patch features|) + .45 s(depth confidence) + .35 s(point confidence)] / 1.08
with s the sigmoid and the divisors their highest values, since a score that is fixed cannot wait for those of later
frames; a special token has F + .3. Where the paper leaves it open: dT and q are of the pose encoding; D is the mean
depth of patches relative to the frame's; T, a stream's length, is the number of frames so far; patch features are the
encoder's; features and confidence count by their standard score among a frame's patches, without which the sigmoid of
numbers above 1 tells little apart; the depth's confidence stands for the points', whose head need not be there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from xsvggt_ros.cache.policies.base import Geometry, PastTokens, Policy
from xsvggt_ros.cache.policies.patches import per_patch
from xsvggt_ros.cache.shape import Layout

MOTION, SHAPE, TIME = 0.55, 0.55, 0.25
TEXTURE, CONFIDENCE = 0.28, 0.45 + 0.35
SPECIAL = 0.3  # more than their frame


class Ghost(Policy):
    """What came with motion, structure and confidence stays."""

    goes_by_depth = True

    def token_evidence(self) -> Layout:
        return {"ghost_score": ((), torch.float32)}

    def shared_evidence(self, budget: int) -> Layout:
        """Translation and quaternion of the last frame, zero before the first."""
        return {"last_pose": ((7,), torch.float32)}

    def begin(self, patches: Tensor, first: int) -> None:
        self._first = first
        self._texture = gradient(patches.float().mT.unflatten(2, self.shape.grid))  # [S, n]

    def learn(self, geometry: Geometry) -> dict[str, Tensor]:
        frame, patch = self._of_frames(geometry), self._of_patches(geometry)
        specials = (frame + SPECIAL).expand(-1, self.shape.specials)
        return {"ghost_score": torch.cat([specials, (frame + patch) / 2], 1).flatten()}

    def scores(self, past: PastTokens) -> Tensor:
        return past.protect_ends(past.evidence["ghost_score"])

    def _of_frames(self, geometry: Geometry) -> Tensor:
        """F [S, 1]."""
        depth = per_patch(geometry.depth, self.shape.grid)
        relative = (depth / depth.mean(1, keepdim=True)).unflatten(1, (1, *self.shape.grid))
        variance = gradient(relative).var(1, correction=0)
        count = torch.arange(1, depth.shape[0] + 1, device=depth.device) + self._first
        motion, shape, time = (x.sigmoid() for x in (self._motion(geometry.pose), variance, 1 - 1 / count))
        return ((MOTION * motion + SHAPE * shape + TIME * time) / (MOTION + SHAPE + TIME))[:, None]

    def _motion(self, pose: Tensor) -> Tensor:
        """|dT| + 1 - |q.q'| of each frame and the one before [S]; 0 of the first."""
        last = self.shared["last_pose"]
        now = torch.cat([pose[:, :3].float(), normalize(pose[:, 3:7].float(), dim=1)], 1)
        before = torch.cat([torch.where(last.any(), last, now[0])[None], now[:-1]])
        last.copy_(now[-1])
        turn = 1 - (now[:, 3:] * before[:, 3:]).sum(1).abs()
        return (now[:, :3] - before[:, :3]).norm(dim=1) + turn

    def _of_patches(self, geometry: Geometry) -> Tensor:
        """tau [S, n]."""
        confidence = standard_score(per_patch(geometry.confidence, self.shape.grid)).sigmoid()
        texture = standard_score(self._texture).sigmoid()
        self._texture = texture.new_empty(0)  # all that is kept between steps is counted
        return (TEXTURE * texture + CONFIDENCE * confidence) / (TEXTURE + CONFIDENCE)


def gradient(x: Tensor) -> Tensor:
    """Length of the gradient, by central differences, of x [S, C, rows, columns] at each place: [S, rows * columns]."""
    x = pad(x, (1, 1, 1, 1), mode="replicate")
    down = (x[..., 2:, 1:-1] - x[..., :-2, 1:-1]) / 2
    right = (x[..., 1:-1, 2:] - x[..., 1:-1, :-2]) / 2
    return (down.square() + right.square()).sum(1).sqrt().flatten(1)


def standard_score(x: Tensor) -> Tensor:
    """Of x [S, n] among the n."""
    return (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True).clamp_min(1e-12)
