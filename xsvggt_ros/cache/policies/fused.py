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

KEYS, OTHERS, CHANNELS = 128, 64, 64  # of a program of `nearest`, and at a time
SEEN, BLOCKS = 128, 64  # keys of a program of `masses`, and how many such are summed up at a time
MOST_QUERIES = 64
LEAST = tl.constexpr(-1e30)  # logit, where all keys may be hidden
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
            **dict(num_warps=4, num_stages=4 if keys.element_size() == 2 else 2),  # what fits into 99 KiB
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
    row = tl.program_id(0).to(tl.int64) * KEYS + tl.arange(0, KEYS)  # int64: keys may take more than 2 GiB
    column = tl.program_id(1) * OTHERS + tl.arange(0, OTHERS)
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
    tl.store(place + out, tl.minimum(tl.program_id(0) * KEYS + where, keys_there - 1).to(tl.int64), mask=wanted)


@torch.library.custom_op("xsvggt::masses", mutates_args=())
def masses(q: Tensor, weights: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
    """The attention that keys [T, heads, d] get from queries q [R, heads, d], R <= MOST_QUERIES: [heads, T] float32.

    Each query counts as many times as weights [R] say; bias [heads, T], float32, is added to logits.
    """
    queries, heads, d = q.shape
    seen = keys.shape[0]
    blocks, padded = triton.cdiv(seen, SEEN), max(16, triton.next_power_of_2(queries))
    levels = torch.empty(heads, blocks, padded, dtype=torch.float32, device=keys.device)
    out = torch.empty(heads, seen, dtype=torch.float32, device=keys.device)
    given = [q, q.stride(0), q.stride(1), queries, keys, keys.stride(0), keys.stride(1), seen]
    given += [bias, bias.stride(0) if bias is not None else 0, d**-0.5 * LOG2_E.value]
    sizes = dict(D=d, SEEN=SEEN, QUERIES=padded)
    with torch.cuda.device_of(keys):
        _levels[(blocks, heads)](*given, levels, blocks, **sizes)
        _masses[(blocks, heads)](*given, levels, blocks, weights, out, **sizes, BLOCKS=BLOCKS)
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
    scale,
    levels,
    blocks,
    D: tl.constexpr,
    SEEN: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """The logarithm, to base 2, of the sum of each query's weights on some keys: levels [heads, blocks, queries]."""
    logits, _ = _logits(
        q, q_token, q_head, queries, keys, key_token, key_head, seen, bias, bias_head, scale, D, SEEN, QUERIES
    )
    most = tl.maximum(tl.max(logits, 0), LEAST)
    level = most + tl.math.log2(tl.sum(tl.math.exp2(logits - most[None, :]), 0))
    tl.store(levels + (tl.program_id(1) * blocks + tl.program_id(0)) * QUERIES + tl.arange(0, QUERIES), level)


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
    scale,
    levels,
    blocks,
    weights,
    out,
    D: tl.constexpr,
    SEEN: tl.constexpr,
    QUERIES: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """What some keys get: out [heads, seen]."""
    logits, key = _logits(
        q, q_token, q_head, queries, keys, key_token, key_head, seen, bias, bias_head, scale, D, SEEN, QUERIES
    )
    head, query = tl.program_id(1), tl.arange(0, QUERIES)
    most, total = tl.full((QUERIES,), LEAST, tl.float32), tl.zeros((QUERIES,), tl.float32)
    for start in range(0, blocks, BLOCKS):
        block = start + tl.arange(0, BLOCKS)[:, None]
        level = tl.load(levels + (head * blocks + block) * QUERIES + query, mask=block < blocks, other=float("-inf"))
        higher = tl.maximum(most, tl.max(level, 0))
        total = total * tl.math.exp2(most - higher) + tl.sum(tl.math.exp2(level - higher[None, :]), 0)
        most = higher
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
    """Of some of a head's keys and all queries, in powers of 2 [SEEN, QUERIES], and which keys they are."""
    head, query, channel = tl.program_id(1), tl.arange(0, QUERIES)[None, :], tl.arange(0, D)
    key = tl.program_id(0).to(tl.int64) * SEEN + tl.arange(0, SEEN)
    inside, asked = key < seen, query < queries
    x = tl.load(keys + key[:, None] * key_token + head * key_head + channel[None, :], mask=inside[:, None], other=0)
    y = tl.load(q + query * q_token + head * q_head + channel[:, None], mask=asked, other=0)
    logits = tl.dot(x, y, input_precision="ieee") * scale
    if bias is not None:
        logits += tl.load(bias + head * bias_head + key, mask=inside, other=0)[:, None] * LOG2_E
    return tl.where(inside[:, None], logits, float("-inf")), key
