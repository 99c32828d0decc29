# SPDX-License-Identifier: Apache-2.0
"""Keep what attention goes to, and let each token that stays stand for those like it that left.

The score of a token is STAC's (arXiv 2603.20284): score <- DECAY * score + sum over queries of attention. What is new
is what a token leaves behind: the one of the most similar key among those that stay inherits its count n, and log n is
added to the logits of a token that stands for n. Softmax attention to what is kept is then close to what attention to
everything would be, as if each token that left had taken its heir's key and value. Without that, attention moves from
the old tokens to the first and the newest frames as their number shrinks. Keys and values stay as they are: a mean
would have to be quantised anew each time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from xsvggt_ros.cache.policies.base import PastTokens, Policy, Seen, lowest
from xsvggt_ros.cache.policies.probes import attention_mass
from xsvggt_ros.cache.shape import Layout

DECAY = 0.9  # of scores, with each step


class Coreset(Policy):
    """Of the weighted tokens, those of the highest scores."""

    chooses_by_head = True

    def token_evidence(self) -> Layout:
        """left: how many tokens that left it stands for, beside itself."""
        return {"score": ((), torch.float32), "left": ((), torch.float32)}

    def bias(self, evidence: dict[str, Tensor]) -> Tensor:
        return evidence["left"].log1p()

    def observe(self, seen: Seen, evidence: dict[str, Tensor]) -> dict[str, Tensor]:
        mass, new = attention_mass(seen, self.config.probes, self.shape, self.lanes)
        evidence["score"].mul_(DECAY).add_(mass)
        return {"score": new, "left": torch.zeros_like(new)}

    def scores(self, past: PastTokens) -> Tensor:
        return past.protect_ends(past.evidence["score"])

    def evict(self, past: PastTokens, seen: Seen, new: dict[str, Tensor], count: int) -> tuple[Tensor, None]:
        """They leave their counts to the most similar of the others, the new ones among them."""
        slots = lowest(self.scores(past), count)
        left = torch.cat([past.evidence["left"], new["left"]])
        for lane, keys in enumerate(_directions(seen.keys, self.lanes)):
            gone = slots[:, lane]
            likeness = (keys[gone] @ keys.T).index_fill_(1, gone, -torch.inf)
            left[:, lane].index_add_(0, likeness.argmax(1), 1 + left[gone, lane])
        old = past.frame.shape[0]
        past.evidence["left"].copy_(left[:old])
        new["left"].copy_(left[old:])
        return slots, None


def _directions(keys: Tensor, lanes: int) -> Tensor:
    """Keys [T, heads, d], a lane together, less their mean, of length 1: [lanes, T, heads of a lane * d]."""
    keys = keys.unflatten(1, (lanes, -1)).flatten(2).transpose(0, 1)
    return normalize(keys - keys.mean(1, keepdim=True), dim=-1)
