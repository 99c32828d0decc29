# SPDX-License-Identifier: Apache-2.0
"""Keep what attention goes to, and merge the rest by where it lies in space (STAC, arXiv 2603.20284).

Temporal tokens are those of the first frame, of a window of the newest, and the anchors: those of other frames that
attention went to most, score <- DECAY * score + sum over queries of attention. The other tokens with a known place
become spatial: `spatial.py` merges them within voxels, and they are attended to while the newest frames see the
neighbourhood, one that stands for n with log n added to its logits.

The published memory of voxels grows with the scene, and a part of what is near is taken from it. Here all is one
budget and all that is near is seen; where there is no room, what stands for least leaves first. The shares are the
paper's: beside the first frame half for the window, as far as it goes, and of the rest half for anchors, half for
spatial tokens. In the published code scores are multiplied by the number of keys per query, which changes no order;
and tokens of low score that go into no representative are dropped.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from xsvggt_ros.cache.policies.base import Geometry, PastTokens, Policy, Rewritten, Seen, lowest
from xsvggt_ros.cache.policies.patches import patch_points, per_patch
from xsvggt_ros.cache.policies.probes import attended
from xsvggt_ros.cache.policies.spatial import RAW_WEIGHT, merge, merges, own_slots
from xsvggt_ros.cache.policies.voxels import NONE, among, around, voxels_of
from xsvggt_ros.cache.shape import Layout

WINDOW = 4  # frames, the newest included, where half the budget has room for them
VOXEL = 0.05 * 37  # edge, in the first frame's median depth per column of patches; published images have 37 columns
REACH = 2  # voxels within which a spatial token is seen from what the window sees
CONFIDENT = 0.5  # of the frame's median of confidence above its least, 1: from there on a point counts
TIER = 2.0**32  # above all scores and weights


class Stac(Policy):
    """Anchors by attention, then representatives by what they stand for, then raw tokens."""

    chooses_by_head = True
    goes_by_depth = True
    adds_up = ("score",)

    # --- what it keeps ----------------------------------------------------------------------------

    def token_evidence(self) -> Layout:
        """count: of the tokens it stands for; 0: temporal, 1: raw, spatial.DEAD: as if gone. weight: Z of spatial."""
        whole, real = ((), torch.int32), ((), torch.float32)
        return {"score": real, "voxel": whole, "count": whole, "weight": real}

    def shared_evidence(self, budget: int) -> Layout:
        """The voxels' edge, 0 before the first frame, and those that the window's frames see."""
        seen = self._window(budget), math.prod(self.shape.grid)
        return {"voxel_size": ((), torch.float32), "seen": (seen, torch.int32)}

    def take_over(self, other: Policy) -> None:
        """What the newest frames of a window of another size see, too."""
        super().take_over(other)
        if isinstance(other, Stac):
            mine, theirs = self.shared["seen"], other.shared["seen"]
            rows = min(mine.shape[0], theirs.shape[0])
            mine[-rows:] = theirs[-rows:]

    def _window(self, budget: int) -> int:
        """Frames, the newest included: up to half of what the first leaves."""
        half = (budget - self.shape.tokens_per_frame) // 2 // self.shape.tokens_per_frame
        return max(self.config.chunk, min(WINDOW, half))

    # --- what it sees -----------------------------------------------------------------------------

    def begin(self, patches: Tensor, first: int) -> None:
        self._near = around(self.shared["seen"].flatten(), REACH)

    def bias(self, evidence: dict[str, Tensor]) -> Tensor:
        count = evidence["count"]
        seen = (count > 0) & among(evidence["voxel"], self._near)
        spatial = count.clamp_min(1).log().masked_fill(~seen, -torch.inf)
        return spatial.masked_fill(count == 0, 0.0)

    def observe(self, seen: Seen, evidence: dict[str, Tensor]) -> dict[str, Tensor]:
        new = attended(seen, evidence["score"], self.config.probes, self.shape, self.kernels)
        return {"score": new}

    def learn(self, geometry: Geometry) -> dict[str, Tensor]:
        size, seen = self.shared["voxel_size"], self.shared["seen"]
        self._near = seen.new_empty(0)  # all that is kept between steps is counted
        size.copy_(torch.where(size > 0, size, VOXEL / self.shape.grid[1] * geometry.depth[0].median()))
        voxels = voxels_of(patch_points(geometry.depth, geometry.pose, self.shape.grid), size)
        above = per_patch(geometry.confidence, self.shape.grid) - 1
        voxels = voxels.where(above >= CONFIDENT * above.median(1, keepdim=True).values, NONE)
        seen.copy_(torch.cat([seen, voxels])[-seen.shape[0] :])
        return {"voxel": pad(voxels, (self.shape.specials, 0), value=NONE).flatten()}

    # --- who stays --------------------------------------------------------------------------------

    def evict(self, past: PastTokens, seen: Seen, new: dict[str, Tensor], count: int) -> tuple[Tensor, Rewritten]:
        """Those that merge leave first, the most useless ones beside them."""
        self._make_spatial(past)
        target, cosine = merges(past)
        merging = target != own_slots(target)
        wanted = torch.zeros_like(target).scatter_add_(0, target, merging.long()) > 0
        scores = self.scores(past) + 8 * TIER * (wanted.double() - merging.double())
        slots = lowest(scores, count)
        return slots, merge(past, seen.values[: past.frame.shape[0]], slots, target, cosine)

    def scores(self, past: PastTokens) -> Tensor:
        """By role, and within it by score or, of representatives, weight; float64, to tell all of them apart."""
        count, score = past.evidence["count"], past.evidence["score"]
        placed = past.evidence["voxel"] != NONE
        merged = count > 1
        role = torch.where(merged, 2, torch.where(placed, 1, 0))
        role = torch.where(self._anchors(past), 3, role)
        role = torch.where(self._in_window(past), 4, role)
        scores = role * TIER + torch.where(merged, past.evidence["weight"], score).double()
        return past.protect_ends(scores.masked_fill(count < 0, -torch.inf))

    def _in_window(self, past: PastTokens) -> Tensor:
        return past.frame >= past.newest + self.config.chunk - self._window(past.budget)

    def _older(self, past: PastTokens) -> Tensor:
        """Temporal tokens of neither the first frame nor the window, [T, lanes] bool."""
        return (past.evidence["count"] == 0) & ~past.in_first_frame & ~self._in_window(past)

    def _anchors(self, past: PastTokens) -> Tensor:
        """Of the older temporal tokens those of the highest scores, [T, lanes] bool."""
        temporal = (1 + self._window(past.budget)) * self.shape.tokens_per_frame
        number = min(max(0, past.budget - temporal) // 2, past.frame.shape[0])
        older = self._older(past)
        best = past.evidence["score"].masked_fill(~older, -torch.inf).topk(number, dim=0).indices
        return older & torch.zeros_like(older).scatter_(0, best, True)

    def _make_spatial(self, past: PastTokens) -> None:
        """Of the older temporal tokens those that are no anchors and have a place."""
        chosen = self._older(past) & ~self._anchors(past) & (past.evidence["voxel"] != NONE)
        past.evidence["count"].masked_fill_(chosen, 1)
        past.evidence["weight"].masked_fill_(chosen, RAW_WEIGHT)
