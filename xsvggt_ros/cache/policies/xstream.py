# SPDX-License-Identifier: Apache-2.0
"""Keep first and newest frame and the middle tokens that the newest frame asks for (XStreamVGGT, arXiv 2601.01204).

The published score averages, over heads and pooled queries, a matrix of query-key products. By linearity it
is one vector per layer: score_j = q_mean . mean over heads of k_j, and no matrix is formed.
"""

import torch
from torch import Tensor

from xsvggt_ros.cache.policies.base import PastTokens


def query_summary(q: Tensor, specials: int, pool: int) -> Tensor:
    """Queries q [P, heads, d] of one frame, normalised and rotated -> their weighted mean [d], float32.

    Each special token is one row; patches are averaged in runs of `pool`, a shorter last run included;
    the rows are averaged. A special therefore weighs as much as a full run.
    """
    q = q.float().mean(1)  # [P, d]
    patches = q[specials:]
    if patches.shape[0] <= 1:
        return q.mean(0)
    full = patches.shape[0] // pool * pool
    rows = [q[:specials], patches[:full].unflatten(0, (full // pool, pool)).mean(1)]
    if full < patches.shape[0]:
        rows.append(patches[full:].mean(0, keepdim=True))
    return torch.cat(rows).mean(0)


class XStream:
    fragmentation = 4

    def floor(self, tokens_per_frame: int) -> int:
        """First and newest frame always stay, whatever the budget."""
        return 2 * tokens_per_frame

    def scores(self, past: PastTokens) -> Tensor:
        return past.protect_ends(past.keys.mean(1, dtype=torch.float32) @ past.query)
