# SPDX-License-Identifier: Apache-2.0
"""Tokens that are kept by where they lie in space, and merged there (STAC, arXiv 2603.20284, spatial memory).

A voxel holds raw tokens and representatives, which stand for several. A token a merges into another, b, with the
weight w = Z_a exp(cos(a, b) - 1):
    b <- (Z_b b + w a) / (Z_b + w),  Z_b <- Z_b + w,  n_b <- n_b + n_a,
keys and values alike. Z of a raw token is e and its n is 1, so that w is the paper's exp(cos).
* A raw token whose key has a cosine above SIMILAR to a representative of its voxel merges into the most similar one.
* Where BUFFER others or more are left in a voxel, they merge into the one of the highest score: a representative.
* A voxel's representatives beyond the REPRESENTATIVES of the highest Z merge into the most similar of those.
All at once, from what there is before; a representative that is one too many therefore waits for the next time. A
representative's key is its mean, as in the paper; the published code compares with that of its best member.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from xsvggt_ros.cache.lanes import at, by_lane, lanes_of
from xsvggt_ros.cache.policies.base import PastTokens

SIMILAR = 0.8
BUFFER = 8
REPRESENTATIVES = 4

RAW_WEIGHT = math.e
DEAD = -1  # count of a token that has merged into another or has to leave for another reason
ROWS = 1024  # tokens whose keys are compared at a time, to save memory


class VoxelGroups:
    """Of the tokens that `which` says, those in the same voxel as each token; the highest value first. [T, lanes]."""

    def __init__(self, voxel: Tensor, which: Tensor, value: Tensor):
        nowhere = torch.iinfo(voxel.dtype).max
        code = voxel.masked_fill(~which, nowhere)
        order = value.argsort(dim=0, descending=True, stable=True)
        self._order = order.gather(0, code.gather(0, order).argsort(dim=0, stable=True))
        ordered, wanted = code.gather(0, self._order).T.contiguous(), voxel.T.contiguous()
        self._first = torch.searchsorted(ordered, wanted).T
        self.count = torch.searchsorted(ordered, wanted, right=True).T - self._first

    def member(self, n: int) -> Tensor:
        """The slots of those at place n of their voxel; of others where there are not as many."""
        return self._order.gather(0, (self._first + n).clamp_max(self._order.shape[0] - 1))

    @property
    def place(self) -> Tensor:
        """Of each token that is in a group, how many come before it."""
        ranks = torch.arange(self._order.shape[0], device=self._order.device)[:, None].expand_as(self._order)
        return torch.empty_like(self._order).scatter_(0, self._order, ranks) - self._first


def merges(past: PastTokens) -> tuple[Tensor, Tensor]:
    """The slot [T, lanes] that each token should merge into, its own where into none; and their keys' cosine."""
    evidence = past.evidence
    voxel, raw, merged = evidence["voxel"], evidence["count"] == 1, evidence["count"] > 1
    representatives = VoxelGroups(voxel, merged, evidence["weight"])
    nearest, cosine = _most_similar(past, representatives)
    joins = (raw & (cosine > SIMILAR)) | (merged & (representatives.place >= REPRESENTATIVES))
    left = raw & ~joins
    buffers = VoxelGroups(voxel, left, evidence["score"])
    pivot = buffers.member(0)
    target = own_slots(voxel)
    target = torch.where(left & (buffers.count >= BUFFER), pivot, target)
    return torch.where(joins, nearest, target), torch.where(joins, cosine, _cosines(past, pivot))


def merge(
    past: PastTokens, values: Tensor, leaving: Tensor, target: Tensor, cosine: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Merges the tokens in slots `leaving` [n, lanes] into their targets, where they have one. They are dead then.

    Returns slots [n, lanes] and the keys and values [n, heads, d] to put there. These are all different slots, and
    those of no target are dead ones, where it does not matter what is put.
    """
    evidence, into = past.evidence, target.gather(0, leaving)
    merging, rows = into != leaving, own_slots(leaving)
    first = torch.full_like(target, rows.shape[0]).scatter_reduce(0, into, rows, "amin").gather(0, into)
    slots = torch.where(merging & (first == rows), into, leaving)
    own = evidence["weight"].gather(0, into).where(merging, 1.0)
    weight = evidence["weight"].gather(0, leaving) * (cosine.gather(0, leaving) - 1).exp()
    sums = _summed(weight, first)

    def mean(x: Tensor) -> Tensor:
        x = by_lane(x, leaving.shape[1])
        added = _summed(at(x, leaving) * weight[..., None, None], first)
        found = own[..., None, None] * at(x, into) + added
        return (found / (own + sums)[..., None, None]).to(x.dtype).flatten(1, 2)

    count = evidence["count"]
    counts = count.gather(0, into) + _summed(count.gather(0, leaving), first).to(count.dtype)
    evidence["weight"].scatter_(0, slots, (own + sums).float())
    count.scatter_(0, slots, counts).scatter_(0, leaving, DEAD)
    return slots, mean(past.keys), mean(values)


def own_slots(x: Tensor) -> Tensor:
    """Of each entry of x [T, lanes], int64."""
    return torch.arange(x.shape[0], device=x.device)[:, None].expand_as(x)


def _most_similar(past: PastTokens, representatives: VoxelGroups) -> tuple[Tensor, Tensor]:
    """Of each token's voxel: its slot and the keys' cosine, -inf where there is none."""
    best = torch.full(past.frame.shape, -torch.inf, device=past.frame.device)
    nearest = own_slots(past.frame)
    for n in range(REPRESENTATIVES):
        slots = representatives.member(n)
        cosine = _cosines(past, slots).masked_fill(representatives.count <= n, -torch.inf)
        best, nearest = torch.maximum(best, cosine), torch.where(cosine > best, slots, nearest)
    return nearest, best


def _cosines(past: PastTokens, slots: Tensor) -> Tensor:
    """Of each token's key, over the heads of its lane, and that in another slot [T, lanes]."""
    keys = by_lane(past.keys, slots.shape[1])  # [T, lanes, heads, d]

    def whole(x: Tensor) -> Tensor:
        return x.float().flatten(2)

    parts = zip(keys.split(ROWS), slots.split(ROWS), strict=True)
    return torch.cat([cosine_similarity(whole(mine), whole(at(keys, other)), dim=2) for mine, other in parts])


def _summed(x: Tensor, rows: Tensor) -> Tensor:
    """x [n, lanes, ...], each added to what there is in a row [n, lanes]; float64, and the same on every run."""
    there = rows, lanes_of(rows).expand_as(rows)
    return torch.zeros(x.shape, dtype=torch.float64, device=x.device).index_put_(there, x.double(), True)
