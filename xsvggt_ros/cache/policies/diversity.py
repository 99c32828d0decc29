# SPDX-License-Identifier: Apache-2.0
"""How much a key differs from the others (InfiniteVGGT, arXiv 2601.02281)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from xsvggt_ros.cache.policies.base import PastTokens


def directions(past: PastTokens) -> Tensor:
    """The keys as the model made them, of length 1: [T, heads, d] float32."""
    return normalize(past.keys.float(), dim=-1)


def mean_direction(keys: Tensor, which: Tensor) -> Tensor:
    """The mean [heads, d] of keys [T, heads, d] of length 1, over those that `which` [T, lanes] says; 0 of none."""
    weight = of_heads(which, keys.shape[1]).float()
    return torch.einsum("th,thd->hd", weight, keys) / weight.sum(0).clamp_min(1)[:, None]


def diversity(past: PastTokens) -> Tensor:
    """-k.mu of each token [T, lanes], the mean over the heads of a lane; mu: the mean over all but the first frame."""
    keys = directions(past)
    mu = mean_direction(keys, ~past.in_first_frame)
    return -torch.einsum("thd,hd->th", keys, mu).unflatten(1, (past.frame.shape[1], -1)).mean(2)


def likeness(past: PastTokens) -> Tensor:
    """Mean cosine between the keys and their mean, but the first frame's: a scalar, the mean over heads.

    That is the length of the mean of directions: 1 where all are the same.
    """
    return mean_direction(directions(past), ~past.in_first_frame).norm(dim=-1).mean()


def of_heads(x: Tensor, heads: int) -> Tensor:
    """x [T, lanes] of each head, [T, heads]."""
    return x.repeat_interleave(heads // x.shape[1], 1)
