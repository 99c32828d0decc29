# SPDX-License-Identifier: Apache-2.0
"""Keep first and newest frame and a uniform choice between: the control that a score must beat."""

import torch
from torch import Tensor

from xsvggt_ros.cache.policies.base import PastTokens, Policy


class Random(Policy):
    """A choice that the seed determines."""

    repeats = False  # it draws anew
    _generator: torch.Generator | None = None

    def scores(self, past: PastTokens) -> Tensor:
        device = past.frame.device
        if self._generator is None:
            self._generator = torch.Generator(device).manual_seed(self.config.seed)
        return past.protect_ends(torch.rand(past.frame.shape, generator=self._generator, device=device))
