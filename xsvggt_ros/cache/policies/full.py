# SPDX-License-Identifier: Apache-2.0
"""Keep everything (StreamVGGT, arXiv 2507.11539): the baseline, whose memory grows with every frame."""

import torch
from torch import Tensor

from xsvggt_ros.cache.policies.base import PROTECTED, PastTokens, Policy


class Full(Policy):
    """Nothing goes."""

    def floor(self) -> int:
        """It has no budget."""
        return 0

    def scores(self, past: PastTokens) -> Tensor:
        return torch.full(past.frame.shape, PROTECTED, device=past.frame.device)
