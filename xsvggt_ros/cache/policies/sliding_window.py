# SPDX-License-Identifier: Apache-2.0
"""Keep the newest tokens, and the first frame if it is pinned: without it the stream loses its scale."""

from torch import Tensor

from xsvggt_ros.cache.policies.base import PROTECTED, PastTokens, Policy


class SlidingWindow(Policy):
    """The newest stay."""

    def floor(self) -> int:
        """First and newest frame if pinned; otherwise any, and the window may cut through a frame."""
        return super().floor() if self.config.pin_first_frame else 1

    def scores(self, past: PastTokens) -> Tensor:
        pinned = self.config.pin_first_frame
        return past.recency.masked_fill(past.in_first_frame, PROTECTED) if pinned else past.recency
