# SPDX-License-Identifier: Apache-2.0
"""Keep what attention goes to, and let each token that stays stand for those like it that left.

The score of a token is STAC's (arXiv 2603.20284): score <- DECAY * score + sum over queries of attention. What is new
is what a token leaves behind: the one of the most similar key among those that stay inherits its count n, and log n is
added to the logits of a token that stands for n. Softmax attention to what is kept is then close to what attention to
everything would be, as if each token that left had taken its heir's key and value. Without that, attention moves from
the old tokens to the first and the newest frames as their number shrinks. Keys and values stay as they are: a mean
would have to be quantised anew each time.

No count is lost where settings change or a frame is abandoned; it is only where memory ends just between handing on
and taking in that a token may stay whose heir has counted it already.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import normalize

from xsvggt_ros.cache.lanes import by_lane
from xsvggt_ros.cache.policies.base import PastTokens, Policy, Seen, lowest
from xsvggt_ros.cache.policies.probes import attended
from xsvggt_ros.cache.shape import Layout

LEAVING = 1024  # tokens whose heirs are looked for at a time, to save memory


class Coreset(Policy):
    """Of the weighted tokens, those of the highest scores."""

    chooses_by_head = True
    adds_up = ("score",)

    def token_evidence(self) -> Layout:
        """left: how many tokens that left it stands for, beside itself."""
        return {"score": ((), torch.float32), "left": ((), torch.float32)}

    def bias(self, evidence: dict[str, Tensor]) -> Tensor:
        return evidence["left"].log1p()

    def observe(self, seen: Seen, evidence: dict[str, Tensor]) -> dict[str, Tensor]:
        new = attended(seen, evidence["score"], self.config.probes, self.shape, self.kernels)
        return {"score": new, "left": torch.zeros_like(new)}

    def scores(self, past: PastTokens) -> Tensor:
        return past.protect_ends(past.evidence["score"])

    def evict(self, past: PastTokens, seen: Seen, new: dict[str, Tensor], count: int) -> tuple[Tensor, None]:
        """They leave their counts to the most similar of the others, the new ones among them."""
        slots = lowest(self.scores(past), count)
        left = torch.cat([past.evidence["left"], new["left"]])
        inherit(left, seen.keys, slots, 1 + left.gather(0, slots), at_once=seen.keys.shape[0], kernels=self.kernels)
        old = past.frame.shape[0]
        past.evidence["left"].copy_(left[:old])
        new["left"].copy_(left[old:])
        return slots, None

    def leave_behind(self, past: PastTokens, kept: Tensor, unfinished: int) -> None:
        """Their counts, as when they are evicted; abandoned ones, what they had inherited."""
        left = past.evidence["left"]
        stays = torch.zeros_like(left, dtype=torch.int8).scatter_(0, kept, 1)
        slots = stays.argsort(0)[: left.shape[0] - kept.shape[0]]
        count = (past.frame < unfinished).gather(0, slots) + left.gather(0, slots)
        inherit(left, past.keys, slots, count, at_once=max(1, past.keys[0].numel() // 2))  # a small part of the layer


def inherit(
    left: Tensor, keys: Tensor, slots: Tensor, count: Tensor, at_once: int, kernels: ModuleType | None = None
) -> None:
    """Adds the counts [n, lanes] of those that go from slots [n, lanes] to those in left [T, lanes] of their heirs.

    keys [T, heads, d], `at_once` compared at a time; the heir is the one of the most similar key of those that stay.
    """
    for lane, of_lane in enumerate(by_lane(keys, left.shape[1]).flatten(2).unbind(1)):
        parts, gone = of_lane.split(at_once), slots[:, lane]
        mean = (sum(part.sum(0, dtype=torch.float32) for part in parts) / of_lane.shape[0]).to(keys.dtype)
        hidden = torch.zeros_like(left[:, lane]).index_fill_(0, gone, -torch.inf)
        at_once_leaving = gone.shape[0] if kernels else LEAVING
        for some, counts in zip(gone.split(at_once_leaving), count[:, lane].split(at_once_leaving), strict=True):
            mine = normalize(of_lane.index_select(0, some) - mean, dim=-1, eps=1e-6)  # else beyond what float16 holds
            if kernels:
                shift = (mine.float() * mean).sum(-1)
                found = kernels.nearest(mine, shift, of_lane, _lengths(of_lane - mean)[:, 0], hidden)
            else:
                found = _nearest(mine, parts, hidden.split(at_once), mean)
            likeness, place = found
            heirs = place.gather(0, likeness.argmax(0, keepdim=True))[0]
            left[:, lane].index_add_(0, heirs, counts)


def _nearest(mine: Tensor, parts: Sequence[Tensor], hidden: Sequence[Tensor], mean: Tensor) -> tuple[Tensor, Tensor]:
    """For each of mine [n, c], keys less the mean and of length 1, the most similar of each of parts [m, c].

    Its likeness, and its row in all parts, [parts, n]; hidden [m] is added to the former: -inf where a key is no heir.
    """
    found, start = [], 0
    for keys, not_these in zip(parts, hidden, strict=True):
        keys = keys - mean
        # Its rows lie aligned this way round: on GPUs eight times as fast.
        likeness, place = (keys @ mine.T).float().div_(_lengths(keys)).add_(not_these[:, None]).max(0)
        found.append((likeness, start + place))
        start += keys.shape[0]
    likeness, place = (torch.stack(x) for x in zip(*found, strict=True))
    return likeness, place


def _lengths(keys: Tensor) -> Tensor:
    """Of keys [m, c]: float32 [m, 1], not 0."""
    return torch.linalg.vector_norm(keys, dim=-1, keepdim=True, dtype=torch.float32).clamp_min_(1e-12)
