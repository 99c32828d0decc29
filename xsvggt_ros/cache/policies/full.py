# SPDX-License-Identifier: Apache-2.0
"""Keep everything (StreamVGGT, arXiv 2507.11539): the baseline, whose memory grows with every frame."""

import torch

from xsvggt_ros.cache.policies.base import PROTECTED, PastTokens


class Full:
    fragmentation = 1

    def floor(self, tokens_per_frame: int) -> int:
        return 0

    def scores(self, past: PastTokens) -> torch.Tensor:
        return torch.full(past.frame.shape, PROTECTED, device=past.frame.device)
