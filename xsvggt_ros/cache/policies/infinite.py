# SPDX-License-Identifier: Apache-2.0
"""Keep first and newest frame and the tokens whose keys differ most from the rest (InfiniteVGGT, arXiv 2601.02281).

The score of a token is -k.mu, with k its key at length 1 and mu the mean of these over all cached tokens but the first
frame's, for each layer and head. The published code prunes before the newest frame is attended to, and lets it lose
tokens too; here it stays whole until the next one comes.
"""

from torch import Tensor

from xsvggt_ros.cache.policies.base import PastTokens, Policy
from xsvggt_ros.cache.policies.diversity import diversity


class Infinite(Policy):
    """The most unlike stay."""

    chooses_by_head = True

    def scores(self, past: PastTokens) -> Tensor:
        return past.protect_ends(diversity(past))
