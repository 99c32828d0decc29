# SPDX-License-Identifier: Apache-2.0
"""Keep the first frame, the newest, and the special tokens of every frame (LingBot-Map's layout, arXiv 2604.14141)."""

from __future__ import annotations

from torch import Tensor

from xsvggt_ros.cache.policies.base import PastTokens, Policy

SHARE = 0.25  # of the budget that special tokens of frames beyond the window may fill


class WindowSpecials(Policy):
    """The newest stay, special tokens longer: those of as many frames as fill a share of the budget."""

    def scores(self, past: PastTokens) -> Tensor:
        """A patch counts by its recency, which is negative; a special token as if it were that many frames newer."""
        frames = int(SHARE * past.budget) // self.shape.specials
        kept = (past.token < self.shape.specials) & (past.frame >= past.newest - frames)
        return past.protect_ends(past.recency + kept * (frames * past.tokens_per_frame))
