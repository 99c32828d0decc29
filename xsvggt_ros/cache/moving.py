# SPDX-License-Identifier: Apache-2.0
"""From one store to another with other settings: what its policy keeps of what there is."""

from __future__ import annotations

import torch
from torch import Tensor

from xsvggt_ros.cache.lanes import at, lanes_in
from xsvggt_ros.cache.policies import PastTokens, Policy
from xsvggt_ros.cache.policies.base import highest
from xsvggt_ros.cache.store import Store


def move(old: Store, new: Store, policy: Policy, newest: int, unfinished: int, scratch: Tensor) -> None:
    """Fills `new`, which is empty, with what its policy keeps of `old`.

    newest: as PastTokens. Tokens of frames from `unfinished` on are left out. scratch [2, >= tokens, heads, d].
    """
    new.take_over_layer(old)
    if not old.tokens:
        return
    old.read(scratch)
    keys, values = scratch[:, : old.tokens]
    source = _candidates(old, new.lanes)
    if not source.shape[0]:
        return
    evidence = new.evidence_from(old)
    per_frame = new.shape.tokens_per_frame
    if new.lanes < old.lanes and source.shape[0] < old.tokens:
        apart = PastTokens(*old.places(), keys, newest, per_frame, new.capacity, evidence)
        policy.leave_behind(apart, lanes_in(source, old.lanes), unfinished)
    frame, token = old.places_in(lanes_in(source, new.lanes))
    candidates = keys if new.lanes >= old.lanes else at(keys, source)
    past = PastTokens(frame, token, candidates, newest, per_frame, new.capacity, new.of_lanes(evidence, source))
    rows = _best(policy, past, new, unfinished)
    if rows.shape[0] < source.shape[0]:
        policy.leave_behind(past, rows, unfinished)
    kept = {name: at(past.evidence[name], rows) for name in evidence}
    heads = rows.repeat_interleave(new.shape.heads // new.lanes, 1)
    new.take_over(old, source.gather(0, heads), keys, values, kept)


def _candidates(old: Store, lanes: int) -> Tensor:
    """Which slot of each head makes up each token for a store of `lanes` lanes: [n, heads].

    Where heads chose apart and shall no longer, those that all of them kept.
    """
    slots = torch.arange(old.tokens, device=old.tensors["frame"].device)
    if lanes >= old.lanes:
        return slots[:, None].expand(-1, old.shape.heads)
    frame, token = old.places()
    ids = frame.long() * old.shape.tokens_per_frame + token  # [T, heads]
    found, count = ids.unique(return_counts=True)
    common = found[count == old.lanes]
    ordered, order = ids.sort(0)
    where = torch.searchsorted(ordered.T.contiguous(), common.expand(old.lanes, -1).contiguous()).T
    return order.gather(0, where)


def _best(policy: Policy, past: PastTokens, new: Store, unfinished: int) -> Tensor:
    """The rows of those that stay [n, lanes], as many in every lane, the oldest first."""
    there = past.frame < unfinished
    scores = policy.scores(past).masked_fill(~there, -torch.inf)
    return highest(scores, past, count=min(new.capacity, int(there.sum(0).min())))
