# SPDX-License-Identifier: Apache-2.0
"""Keep first and newest frame and a uniform choice between: the control that a score must beat."""

import torch

from xsvggt_ros.cache.policies.base import PastTokens


class Random:
    fragmentation = 4

    def __init__(self, seed: int):
        self.seed = seed
        self._generator: torch.Generator | None = None

    def floor(self, tokens_per_frame: int) -> int:
        return 2 * tokens_per_frame

    def scores(self, past: PastTokens) -> torch.Tensor:
        device = past.frame.device
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self.seed)
        return past.protect_ends(torch.rand(past.frame.shape, generator=self._generator, device=device))
