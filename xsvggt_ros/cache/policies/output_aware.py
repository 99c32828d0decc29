# SPDX-License-Identifier: Apache-2.0
"""Keep first and newest frame and the tokens that moved the attention's output most.

It is the value score of OBCache (arXiv 2510.07651). What a token j adds to the output of query q is A_qj v_j, so its
score is (sum over queries of A_qj) * ||v_j||_1 with A = softmax(q k^T / sqrt(d)), summed over the frames since it came,
without decay. A few queries are asked.
"""

import torch
from torch import Tensor

from xsvggt_ros.cache.policies.base import PastTokens, Policy, Seen, summed
from xsvggt_ros.cache.policies.probes import attention, probes
from xsvggt_ros.cache.shape import Layout


class OutputAware(Policy):
    """What weighed most in the outputs so far stays."""

    chooses_by_head = True
    adds_up = ("output_score",)

    def token_evidence(self) -> Layout:
        """The score so far."""
        return {"output_score": ((), torch.float32)}

    def observe(self, seen: Seen, evidence: dict[str, Tensor]) -> dict[str, Tensor]:
        shape, new = self.shape, seen.q.shape[0]
        frames = new // shape.tokens_per_frame
        rows, _ = probes(frames, shape.tokens_per_frame, shape.specials, self.config.probes, seen.q.device)
        lengths = seen.values.abs().sum(-1, dtype=torch.float32)  # [T + N, heads]
        mass = torch.stack([part.sum(1) for part in attention(seen, rows)]).sum(0)  # [heads, T + N]
        score = summed(mass.T * lengths, self.lanes)
        evidence["output_score"] += score[:-new]
        return {"output_score": score[-new:]}

    def scores(self, past: PastTokens) -> Tensor:
        return past.protect_ends(past.evidence["output_score"])
