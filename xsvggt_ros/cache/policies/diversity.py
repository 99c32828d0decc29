# SPDX-License-Identifier: Apache-2.0
"""How much a key differs from the others (InfiniteVGGT, arXiv 2601.02281)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from xsvggt_ros.cache.policies.base import PastTokens

AT_ONCE = 1024  # tokens, since keys of length 1 are float32 copies


def diversity(past: PastTokens) -> Tensor:
    """-k.mu of each token [T, lanes], the mean over the heads of a lane; mu: the mean over all but the first frame."""
    mu = mean_direction(past)
    unlike = torch.cat([-torch.einsum("thd,hd->th", keys, mu) for keys in _directions(past.keys)])
    return unlike.unflatten(1, (past.frame.shape[1], -1)).mean(2)


def likeness(past: PastTokens) -> Tensor:
    """Mean cosine between the keys and their mean, but the first frame's: a scalar, the mean over heads.

    That is the length of the mean of directions: 1 where all are the same.
    """
    return mean_direction(past).norm(dim=-1).mean()


def mean_direction(past: PastTokens) -> Tensor:
    """The mean [heads, d] of the keys at length 1, of all but the first frame's; 0 of none."""
    weights = of_heads(~past.in_first_frame, past.keys.shape[1]).float()
    parts = zip(weights.split(AT_ONCE), _directions(past.keys), strict=True)
    total = torch.stack([torch.einsum("th,thd->hd", weight, keys) for weight, keys in parts]).sum(0)
    return total / weights.sum(0).clamp_min(1)[:, None]


def _directions(keys: Tensor) -> Iterator[Tensor]:
    """The keys [T, heads, d] as the model made them, of length 1, float32, a few at a time."""
    return (normalize(some.float(), dim=-1) for some in keys.split(AT_ONCE))


def of_heads(x: Tensor, heads: int) -> Tensor:
    """x [T, lanes] of each head, [T, heads]."""
    return x.repeat_interleave(heads // x.shape[1], 1)
