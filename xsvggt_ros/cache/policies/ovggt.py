# SPDX-License-Identifier: Apache-2.0
"""Keep salient new tokens and unlike old ones, and what is left of anchor frames (OVGGT, arXiv 2603.05959).

The salience of a token is the length of what the layer's MLP added to it, smoothed over neighbouring patches. It is
known once the layer has taken the token in; since the newest frames stay whole, their salience competes when the next
ones come. (The published code prunes before attention, by the salience that the layer before found.)

An anchor frame is one in whose view few of the last anchor's points lie. Its most salient tokens stay while it is one
of the last few anchors. (The published code protects tokens by their position in the cache, which are the oldest that
are left, and anchors in the camera head alone.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from xsvggt_ros.cache.policies.base import Geometry, PastTokens, Policy
from xsvggt_ros.cache.policies.diversity import diversity
from xsvggt_ros.cache.policies.patches import patch_points, share_in_view
from xsvggt_ros.cache.shape import Layout

ANCHORS = 3  # beside the first frame; the oldest leaves for a fourth
ANCHORED = 0.05  # share of an anchor's tokens that stay
OVERLAP = 0.2  # share of the last anchor's points; where fewer are in view, the frame is a new anchor
ABOVE_ALL = 2.0  # others lie between 0 and 1


class Ovggt(Policy):
    """Each in its group, scaled to the same range: the newest before by salience, those before them by unlikeness."""

    wants_residual = True
    goes_by_depth = True

    def token_evidence(self) -> Layout:
        return {"salience": ((), torch.float32)}

    def shared_evidence(self, budget: int) -> Layout:
        """The anchors' frames, 0 where there is none but the first, and the points of the last one's patches."""
        points = math.prod(self.shape.grid), 3
        return {"anchors": ((ANCHORS,), torch.int32), "anchor_points": (points, torch.float32)}

    def begin(self, patches: Tensor, first: int) -> None:
        self._first = first

    def weigh(self, residual: Tensor) -> dict[str, Tensor]:
        """Half the length itself, half its mean over 3x3 patches, weighted 1 2 1; special tokens: the length."""
        of_frames = residual.unflatten(0, (-1, self.shape.tokens_per_frame))
        specials, patches = of_frames.tensor_split([self.shape.specials], dim=1)
        grid = pad(patches.unflatten(1, self.shape.grid), (1, 1, 1, 1), mode="replicate")
        smooth = avg_pool2d(avg_pool2d(grid, 2, 1), 2, 1).flatten(1)  # 1 2 1 is 1 1 twice
        return {"salience": torch.cat([specials, (patches + smooth) / 2], 1).flatten()}

    def learn(self, geometry: Geometry) -> dict[str, Tensor]:
        """Finds new anchors."""
        points = patch_points(geometry.depth, geometry.pose, self.shape.grid)
        for frame, (pose, points_of_frame) in enumerate(zip(geometry.pose, points, strict=True), self._first):
            self._consider(frame, pose, points_of_frame)
        return {}

    def _consider(self, frame: int, pose: Tensor, points: Tensor) -> None:
        anchors, last = self.shared["anchors"], self.shared["anchor_points"]
        promoted = (share_in_view(last, pose) < OVERLAP) | ~last.any()
        anchors.copy_(torch.where(promoted, pad(anchors[1:], (0, 1), value=frame), anchors))
        last.copy_(torch.where(promoted, points, last))

    def scores(self, past: PastTokens) -> Tensor:
        recent = (past.frame >= past.newest - self.config.chunk) & (past.frame < past.newest)
        old = ~recent & ~past.in_first_frame & (past.frame < past.newest)
        salience, unlike = min_max(past.evidence["salience"], recent), min_max(diversity(past), old)
        return past.protect_ends(torch.where(recent, salience, unlike) + ABOVE_ALL * self._anchored(past))

    def _anchored(self, past: PastTokens) -> Tensor:
        """[T, 1] bool: the most salient tokens of each anchor frame."""
        count = min(math.ceil(ANCHORED * past.tokens_per_frame), past.frame.shape[0])
        found = torch.zeros_like(past.frame, dtype=torch.bool)
        for anchor in self.shared["anchors"]:
            there = past.frame == anchor
            salience = past.evidence["salience"].masked_fill(~there, -torch.inf)
            found |= there & (salience >= salience.topk(count, dim=0).values[-1])
        return found


def min_max(x: Tensor, which: Tensor) -> Tensor:
    """x [T, lanes], scaled so that those that `which` says lie between 0 and 1."""
    low = x.masked_fill(~which, torch.inf).amin(0)
    high = x.masked_fill(~which, -torch.inf).amax(0)
    return (x - low) / (high - low).clamp_min(1e-12)
