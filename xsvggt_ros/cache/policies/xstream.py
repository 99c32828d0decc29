# SPDX-License-Identifier: Apache-2.0
"""Keep first and newest frame and the middle tokens that the newest frame asks for (XStreamVGGT, arXiv 2601.01204).

The published score averages, over heads and pooled queries, a matrix of query-key products. By linearity it
is one vector per layer: score_j = q_mean . mean over heads of k_j, and no matrix is formed.
"""

import torch
from torch import Tensor

from xsvggt_ros.cache.policies.base import PastTokens, Policy, Seen
from xsvggt_ros.cache.shape import Layout

AT_ONCE = 1024  # keys


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


class XStream(Policy):
    """What is closest to the query stays."""

    def layer_evidence(self) -> Layout:
        """The summary of the newest frames' queries; zero until there is one."""
        return {"query": ((self.shape.head_dim,), torch.float32)}

    def observe(self, seen: Seen, evidence: dict[str, Tensor]) -> dict[str, Tensor]:
        frames = seen.q.split(self.shape.tokens_per_frame)
        summaries = [query_summary(q, self.shape.specials, self.config.query_pool) for q in frames]
        evidence["query"].copy_(torch.stack(summaries).mean(0))
        return {}

    def scores(self, past: PastTokens) -> Tensor:
        parts = past.keys.split(AT_ONCE)  # since the mean of bfloat16 makes a float32 copy of them
        closeness = torch.cat([keys.mean(1, dtype=torch.float32) for keys in parts]) @ past.evidence["query"]
        return past.protect_ends(closeness[:, None])
