# SPDX-License-Identifier: Apache-2.0
"""Keep the newest tokens, and the first frame if it is pinned: without it the stream loses its scale."""

import torch

from xsvggt_ros.cache.policies.base import PROTECTED, PastTokens


class SlidingWindow:
    fragmentation = 1

    def __init__(self, pin_first_frame: bool):
        self.pin_first_frame = pin_first_frame

    def floor(self, tokens_per_frame: int) -> int:
        """First and newest frame if pinned; otherwise any, and the window may cut through a frame."""
        return 2 * tokens_per_frame if self.pin_first_frame else 1

    def scores(self, past: PastTokens) -> torch.Tensor:
        # Relative to the newest frame, so that float32 stays exact however long the stream is.
        recency = ((past.frame - past.newest) * past.tokens_per_frame + past.token).float()
        return recency.masked_fill(past.in_first_frame, PROTECTED) if self.pin_first_frame else recency
