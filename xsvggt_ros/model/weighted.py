# SPDX-License-Identifier: Apache-2.0
"""Softmax attention with a weight for each key, in Triton: softmax(q k^T / sqrt(d) + bias) v.

FlashAttention-2's order of work (Dao, arXiv 2307.08691): a program has some queries of a head and goes through all
keys, with the largest logit and the sum of its rows so far. Only imported where it is used: Triton is optional.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

HEAD_DIMS = (16, 32, 64, 128)
QUERIES, KEYS = 64, 64  # of a program, and at a time
LOG2_E = tl.constexpr(1 / math.log(2))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """As model.attention.Kernel: q [B, T, heads, d], k and v [B, N, heads, d], bias [heads, N] -> [B, T, heads, d]."""
    batch, queries, heads, d = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    strides = [stride for x in (q, k, v, out) for stride in x.stride()[:3]]
    with torch.cuda.device_of(q):
        _attend[(triton.cdiv(queries, QUERIES), batch * heads)](
            *(q, k, v, out, bias.float()),
            *strides,
            *(bias.stride(0), queries, k.shape[1], d**-0.5 * LOG2_E.value),
            **dict(HEADS=heads, D=d, QUERIES=QUERIES, KEYS=KEYS),
        )
    return out


@triton.jit(do_not_specialize=["keys_there", "bias_head"])  # which grow with the cache: it would be compiled anew
def _attend(
    q,
    k,
    v,
    out,
    bias,
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    k_head,
    v_batch,
    v_token,
    v_head,
    out_batch,
    out_token,
    out_head,
    bias_head,
    queries_there,
    keys_there,
    scale,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    """Some queries of a head; logits are in powers of 2."""
    batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    row, channel = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, D)[None, :]
    inside = row[:, None] < queries_there
    x = tl.load(q + batch * q_batch + head * q_head + row[:, None] * q_token + channel, mask=inside, other=0)
    k += batch * k_batch + head * k_head + tl.arange(0, D)[:, None]
    v += batch * v_batch + head * v_head + channel
    bias += head * bias_head
    most = tl.full((QUERIES,), -1e30, tl.float32)  # finite: it may be all that there is
    total = tl.zeros((QUERIES,), tl.float32)
    found = tl.zeros((QUERIES, D), tl.float32)
    whole = keys_there // KEYS * KEYS
    for start in range(0, whole, KEYS):  # without masks, which would keep loads from running ahead
        key = start + tl.arange(0, KEYS)
        keys, values = tl.load(k + key[None, :] * k_token), tl.load(v + key[:, None] * v_token)
        most, total, found = _onward(x, keys, values, tl.load(bias + key), most, total, found, scale)
    if whole < keys_there:
        key = whole + tl.arange(0, KEYS)
        keys = tl.load(k + key[None, :] * k_token, mask=key[None, :] < keys_there, other=0)
        values = tl.load(v + key[:, None] * v_token, mask=key[:, None] < keys_there, other=0)
        added = tl.load(bias + key, mask=key < keys_there, other=float("-inf"))
        most, total, found = _onward(x, keys, values, added, most, total, found, scale)
    found /= total[:, None]
    out += batch * out_batch + head * out_head
    tl.store(out + row[:, None] * out_token + channel, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _onward(x, keys, values, added, most, total, found, scale):
    """Largest logits, sums and outputs after some keys more."""
    logits = tl.dot(x, keys, input_precision="ieee") * scale + added[None, :] * LOG2_E
    higher = tl.maximum(most, tl.max(logits, 1))
    weight = tl.math.exp2(logits - higher[:, None])
    shrunk = tl.math.exp2(most - higher)
    found = tl.dot(weight.to(values.dtype), values, found * shrunk[:, None], input_precision="ieee")
    return higher, total * shrunk + tl.sum(weight, 1), found
