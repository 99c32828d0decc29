# SPDX-License-Identifier: Apache-2.0
"""Keep first and newest frame and a uniform choice between: the control that a score must beat."""

import torch
from torch import Tensor

from xsvggt_ros.cache.policies.base import PastTokens, Policy, floor_of_ends


class Random(Policy):
    """A choice that the seed determines."""

    _generator: torch.Generator | None = None

    def floor(self) -> int:
        """First and newest frame always stay, whatever the budget."""
        return floor_of_ends(self.config, self.shape)

    def scores(self, past: PastTokens) -> Tensor:
        device = past.frame.device
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self.config.seed)
        return past.protect_ends(torch.rand(past.frame.shape, generator=self._generator, device=device))
