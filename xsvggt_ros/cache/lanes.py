# SPDX-License-Identifier: Apache-2.0
"""Lanes: the groups of heads that choose their tokens together, all heads or each alone."""

from __future__ import annotations

import torch
from torch import Tensor


def at(x: Tensor, slots: Tensor) -> Tensor:
    """x [T, lanes, ...] in slots [n, lanes]: [n, lanes, ...]."""
    if x.shape[1] == 1:
        return x.index_select(0, slots[:, 0])  # much faster than x[slots]
    return x[slots, lanes_of(slots)]


def lanes_of(slots: Tensor) -> Tensor:
    """Which lane each column of slots [n, lanes] is of."""
    return torch.arange(slots.shape[1], device=slots.device)


def lanes_in(slots: Tensor, lanes: int) -> Tensor:
    """Of slots [n, heads] those of lanes [n, lanes], whose heads have the same."""
    return slots[:, :: slots.shape[1] // lanes]


def by_lane(x: Tensor, lanes: int) -> Tensor:
    """x [n, heads, ...] as [n, lanes, heads of a lane, ...]."""
    return x.unflatten(1, (lanes, -1))
