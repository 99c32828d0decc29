# SPDX-License-Identifier: Apache-2.0
"""Kernels of policies, in Triton: who is most alike, and what attention keys get.

They compute what coreset.py and probes.py say, which is where it is explained. Only imported where they are used:
Triton is optional.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

HEAD_DIMS = (16, 32, 64, 128, 256)
KEYS, OTHERS, CHANNELS = 128, 64, 64  # of a program of `nearest`, and at a time
SEEN = 128  # keys of a program of `masses`
MOST_QUERIES = 64
LOG2_E = tl.constexpr(1 / math.log(2))


@torch.library.custom_op("xsvggt::nearest", mutates_args=())
def nearest(mine: Tensor, shift: Tensor, keys: Tensor, length: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """For each of mine [n, c] the most alike of keys [m, c], of KEYS at a time: its likeness and row, [m / KEYS, n].

    A likeness is (keys @ mine.T - shift [n]) / length [m] + hidden [m], float32.
    """
    count, channels = mine.shape
    blocks = triton.cdiv(keys.shape[0], KEYS)
    likeness = torch.empty(blocks, count, dtype=torch.float32, device=keys.device)
    place = torch.empty(blocks, count, dtype=torch.int64, device=keys.device)
    with torch.cuda.device_of(keys):
        _nearest[(blocks, triton.cdiv(count, OTHERS))](
            *(keys, keys.stride(0), length, hidden, mine, mine.stride(0), shift, likeness, place),
            *(keys.shape[0], count, channels),
            **dict(KEYS=KEYS, OTHERS=OTHERS, CHANNELS=min(CHANNELS, channels & -channels)),
            **dict(num_warps=4, num_stages=4),
        )
    return likeness, place


@nearest.register_fake
def _(mine: Tensor, shift: Tensor, keys: Tensor, length: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    size = triton.cdiv(keys.shape[0], KEYS), mine.shape[0]
    return mine.new_empty(size, dtype=torch.float32), mine.new_empty(size, dtype=torch.int64)


@triton.jit(do_not_specialize=["keys_there", "mine_there"])
def _nearest(
    keys,
    keys_row,
    length,
    hidden,
    mine,
    mine_row,
    shift,
    likeness,
    place,
    keys_there,
    mine_there,
    channels,
    KEYS: tl.constexpr,
    OTHERS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Of some keys the best for some of mine: in a row of likeness and place for these keys."""
    row, column = tl.program_id(0) * KEYS + tl.arange(0, KEYS), tl.program_id(1) * OTHERS + tl.arange(0, OTHERS)
    inside, wanted = row < keys_there, column < mine_there
    # What lies beyond is read from the first rows instead: without masks loads run ahead.
    x = keys + tl.where(inside, row, 0)[:, None] * keys_row + tl.arange(0, CHANNELS)[None, :]
    other = mine + tl.where(wanted, column, 0)[None, :] * mine_row + tl.arange(0, CHANNELS)[:, None]
    product = tl.zeros((KEYS, OTHERS), tl.float32)
    for start in range(0, channels, CHANNELS):
        product = tl.dot(tl.load(x + start), tl.load(other + start), product, input_precision="ieee")
    product -= tl.load(shift + column, mask=wanted, other=0)[None, :]
    product /= tl.load(length + row, mask=inside, other=1)[:, None]
    product += tl.load(hidden + row, mask=inside, other=float("-inf"))[:, None]
    best, where = tl.max(product, 0, return_indices=True)
    out = tl.program_id(0) * mine_there + column
    tl.store(likeness + out, best, mask=wanted)
    tl.store(place + out, tl.program_id(0) * KEYS + where.to(tl.int64), mask=wanted)


@torch.library.custom_op("xsvggt::masses", mutates_args=())
def masses(q: Tensor, weights: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """The attention that keys [T, heads, d] get from queries q [R, heads, d], R <= MOST_QUERIES: [heads, T] float32.

    Each query counts as many times as weights [R] say; bias [heads, T] is added to logits.
    """
    queries, heads, d = q.shape
    seen = keys.shape[0]
    blocks, padded = triton.cdiv(seen, SEEN), max(16, triton.next_power_of_2(queries))
    levels = torch.empty(2, heads, blocks, padded, dtype=torch.float32, device=keys.device)
    out = torch.empty(heads, seen, dtype=torch.float32, device=keys.device)
    given = [q, q.stride(0), q.stride(1), queries, keys, keys.stride(0), keys.stride(1), seen]
    given += [bias, bias.stride(0) if bias is not None else 0, levels, blocks, d**-0.5 * LOG2_E.value]
    sizes = dict(HEADS=heads, D=d, SEEN=SEEN, QUERIES=padded)
    with torch.cuda.device_of(keys):
        _levels[(blocks, heads)](*given, **sizes)
        _masses[(blocks, heads)](*given, weights, out, **sizes, BLOCKS=triton.next_power_of_2(blocks))
    return out


@masses.register_fake
def _(q: Tensor, weights: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    return q.new_empty(q.shape[1], keys.shape[0], dtype=torch.float32)


@triton.jit(do_not_specialize=["seen", "blocks"])
def _levels(
    q,
    q_token,
    q_head,
    queries,
    keys,
    key_token,
    key_head,
    seen,
    bias,
    bias_head,
    levels,
    blocks,
    scale,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    SEEN: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """Of some keys the largest logit of each query, and the sum of all less that: [2, heads, blocks, queries]."""
    logits = _logits(
        q, q_token, q_head, queries, keys, key_token, key_head, seen, bias, bias_head, scale, D, SEEN, QUERIES
    )
    most = tl.maximum(tl.max(logits, 0), -1e30)
    out = levels + (tl.program_id(1) * blocks + tl.program_id(0)) * QUERIES + tl.arange(0, QUERIES)
    tl.store(out, most)
    tl.store(out + HEADS * blocks * QUERIES, tl.sum(tl.math.exp2(logits - most[None, :]), 0))


@triton.jit(do_not_specialize=["seen", "blocks"])
def _masses(
    q,
    q_token,
    q_head,
    queries,
    keys,
    key_token,
    key_head,
    seen,
    bias,
    bias_head,
    levels,
    blocks,
    scale,
    weights,
    out,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    SEEN: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    head, key, query, block = (
        tl.program_id(1),
        tl.program_id(0) * SEEN + tl.arange(0, SEEN),
        tl.arange(0, QUERIES),
        tl.arange(0, BLOCKS),
    )
    logits = _logits(
        q, q_token, q_head, queries, keys, key_token, key_head, seen, bias, bias_head, scale, D, SEEN, QUERIES
    )
    at = levels + (head * blocks + block[:, None]) * QUERIES + query[None, :]
    there = block[:, None] < blocks
    levels_of_parts = tl.load(at, mask=there, other=-1e30)
    sums = tl.load(at + HEADS * blocks * QUERIES, mask=there, other=0)
    most = tl.max(levels_of_parts, 0)
    total = tl.sum(sums * tl.math.exp2(levels_of_parts - most[None, :]), 0)
    share = tl.load(weights + query, mask=query < queries, other=0) / total
    mass = tl.sum(tl.math.exp2(logits - most[None, :]) * share[None, :], 1)
    tl.store(out + head * seen + key, mass, mask=key < seen)


@triton.jit
def _logits(
    q,
    q_token,
    q_head,
    queries,
    keys,
    key_token,
    key_head,
    seen,
    bias,
    bias_head,
    scale,
    D: tl.constexpr,
    SEEN: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """Of a head's keys and all queries, in powers of 2: [SEEN, QUERIES]."""
    head, key, query, channel = (
        tl.program_id(1),
        tl.program_id(0) * SEEN + tl.arange(0, SEEN),
        tl.arange(0, QUERIES),
        tl.arange(0, D),
    )
    inside = key < seen
    x = tl.load(keys + key[:, None] * key_token + head * key_head + channel[None, :], mask=inside[:, None], other=0)
    asked = tl.load(
        q + query[None, :] * q_token + head * q_head + channel[:, None], mask=query[None, :] < queries, other=0
    )
    logits = tl.dot(x, asked, input_precision="ieee") * scale
    if bias is not None:
        logits += tl.load(bias + head * bias_head + key, mask=inside, other=0)[:, None] * LOG2_E
    return tl.where(inside[:, None], logits, float("-inf"))
