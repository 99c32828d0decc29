# SPDX-License-Identifier: Apache-2.0
"""What a few of the new tokens attend to: the explicit attention that fused kernels do not give out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from xsvggt_ros.cache.policies.base import Seen, summed
from xsvggt_ros.cache.shape import CacheShape

DECAY = 0.9  # of scores, with each step
AT_ONCE = 64  # queries, to save memory


@lru_cache(maxsize=64)  # so many that those of a recorded graph stay
@torch.inference_mode(False)
def probes(
    frames: int, tokens_per_frame: int, specials: int, patches: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows of the queries asked, of `frames` new frames, and how many queries each stands for: [R] both.

    They are each frame's special tokens and `patches` of its patches, spread evenly, 0: all of them; a patch stands for
    its share of all.
    """
    count = tokens_per_frame - specials
    chosen = min(patches, count) or count
    spread = (torch.arange(chosen, device=device) * count) // max(1, chosen)
    rows = torch.cat([torch.arange(specials, device=device), specials + spread])
    weights = torch.ones(specials + chosen, device=device)
    weights[specials:] = count / max(1, chosen)
    starts = tokens_per_frame * torch.arange(frames, device=device)
    return (rows + starts[:, None]).flatten(), weights.repeat(frames)


def attended(seen: Seen, score: Tensor, patches: int, shape: CacheShape, kernels: ModuleType | None = None) -> Tensor:
    """The scores of new tokens [N, lanes], and in place those of the cached ones [T, lanes], by STAC's rule.

    score <- DECAY * score + what attention a token gets in this step, as `attention_mass` says.
    """
    mass, new = attention_mass(seen, patches, shape, score.shape[1], kernels)
    score.mul_(DECAY).add_(mass)
    return new


def attention_mass(
    seen: Seen, patches: int, shape: CacheShape, lanes: int, kernels: ModuleType | None = None
) -> tuple[Tensor, Tensor]:
    """What attention the T cached and the N new tokens get from all new queries, summed over the heads of a lane.

    [T, lanes] and [N, lanes] float32, by those of `probes`.
    """
    new = seen.q.shape[0]
    per_frame = shape.tokens_per_frame
    rows, weights = probes(new // per_frame, per_frame, shape.specials, patches, seen.q.device)
    if kernels and len(rows) <= kernels.MOST_QUERIES:
        mass = kernels.masses(seen.q[rows], weights, seen.keys, seen.bias)  # [heads, T + N]
    else:
        parts = zip(attention(seen, rows), weights.split(AT_ONCE), strict=True)
        mass = sum(weight @ probabilities for probabilities, weight in parts)
    old, of_new = summed(mass.T, lanes).split([seen.keys.shape[0] - new, new])
    return old, of_new


def attention(seen: Seen, rows: Tensor) -> Iterator[Tensor]:
    """softmax(q k^T / sqrt(d) + bias) of the queries in rows [R], some at a time: float32 [heads, AT_ONCE, T + N]."""
    keys = seen.keys.permute(1, 2, 0).float()
    for some in rows.split(AT_ONCE):
        logits = seen.q[some].transpose(0, 1).float() / math.sqrt(seen.q.shape[-1]) @ keys
        if seen.bias is not None:
            logits += seen.bias[:, None]
        yield logits.softmax(-1)
