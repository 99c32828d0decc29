# SPDX-License-Identifier: Apache-2.0
"""Kernels of `rotated`, in Triton: one launch reads keys and values of a layer, one writes them.

They compute what rotated.py says, which is where it is explained. A row is a token and head, its channels are [D].
Only imported where they are used: Triton is optional.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

HEAD_DIMS = (8, 16, 32, 64, 128, 256)  # powers of two, from a whole byte of 1 bit each on
READ_AT_ONCE, WRITE_AT_ONCE = 4096, 512  # numbers of a program: of the latter one warp's, which need not wait
TINY = tl.constexpr(torch.finfo(torch.float32).tiny)
LARGEST_SCALE = tl.constexpr(torch.finfo(torch.float16).max)


def read(
    tensors: dict[str, Tensor], bits: dict[str, int], signs: Tensor, tokens_per_frame: int, keys: Tensor, values: Tensor
) -> None:
    """Unpacks the first slots of a store's tensors into keys and values [tokens, heads, d]."""
    arguments = _arguments(tensors, bits, signs, tokens_per_frame, keys, values)
    block = READ_AT_ONCE // keys.shape[-1]
    with torch.cuda.device_of(keys):
        _read[(triton.cdiv(arguments["rows"], block),)](**arguments, BLOCK=block)


def write(
    tensors: dict[str, Tensor],
    bits: dict[str, int],
    reach: dict[int, float],
    signs: Tensor,
    tokens_per_frame: int,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
) -> None:
    """Packs keys and values [n, heads, d] into slots [n, lanes] of a store's tensors; reach: as REACH."""
    arguments = _arguments(tensors, bits, signs, tokens_per_frame, keys, values)
    arguments |= {"slots": slots, "slot_token": slots.stride(0), "slot_lane": slots.stride(1)}
    arguments |= {f"{kind.upper()}_REACH": reach.get(bits[kind]) for kind in bits}
    block = WRITE_AT_ONCE // keys.shape[-1]
    with torch.cuda.device_of(keys):
        _write[(triton.cdiv(arguments["rows"], block),)](**arguments, BLOCK=block, num_warps=1)


def _arguments(
    tensors: dict[str, Tensor], bits: dict[str, int], signs: Tensor, tokens_per_frame: int, keys: Tensor, values: Tensor
) -> dict[str, Any]:
    """Of both kernels, by name; None: what there is not of numbers in 16 bits."""
    tokens, heads, d = keys.shape
    found = {"frame": tensors["frame"], "token": tensors["token"], "signs": signs, "tokens_per_frame": tokens_per_frame}
    found |= {"rows": tokens * heads, "key_centre": tensors.get("key_centre"), "keys": keys, "values": values}
    for kind, x in (("key", keys), ("value", values)):
        found |= {f"packed_{kind}s": tensors[f"{kind}s"], f"{kind}_scale": tensors.get(f"{kind}_scale")}
        found |= dict(zip((f"{kind}_token", f"{kind}_head", f"{kind}_channel"), x.stride(), strict=True))
        found[f"{kind.upper()}_BITS"] = bits[kind]
    return found | {"HEADS": heads, "LANES": tensors["frame"].shape[1], "D": d, "DRAWN": signs.shape[0]}


# --- kernels ------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows"])  # which grow with the cache: it would be compiled anew
def _read(
    frame,
    token,
    signs,
    tokens_per_frame,
    rows,
    packed_keys,
    key_scale,
    key_centre,
    packed_values,
    value_scale,
    keys,
    key_token,
    key_head,
    key_channel,
    values,
    value_token,
    value_head,
    value_channel,
    HEADS: tl.constexpr,
    LANES: tl.constexpr,
    D: tl.constexpr,
    DRAWN: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of each kind its tensors; of keys and values the strides too. Slots lie in order: the row is the token's."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # int64: a cache may be larger than 2 GiB
    inside, slot, head = row < rows, row // HEADS, row % HEADS
    place = slot * LANES + head // (HEADS // LANES)
    drawn = _signs_at(frame, token, signs, tokens_per_frame, place, inside, DRAWN, D)
    channel, mask = tl.arange(0, D)[None, :], inside[:, None]

    x = _unpacked(packed_keys, key_scale, drawn, row, inside, KEY_BITS, D)
    if KEY_BITS < 16:
        x += tl.load(key_centre + head[:, None] * D + channel)
    out = keys + (slot * key_token + head * key_head)[:, None] + channel * key_channel
    tl.store(out, x.to(keys.dtype.element_ty), mask=mask)  # rounded once

    x = _unpacked(packed_values, value_scale, drawn, row, inside, VALUE_BITS, D)
    out = values + (slot * value_token + head * value_head)[:, None] + channel * value_channel
    tl.store(out, x.to(values.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _write(
    frame,
    token,
    signs,
    tokens_per_frame,
    rows,
    packed_keys,
    key_scale,
    key_centre,
    packed_values,
    value_scale,
    keys,
    key_token,
    key_head,
    key_channel,
    values,
    value_token,
    value_head,
    value_channel,
    slots,
    slot_token,
    slot_lane,
    HEADS: tl.constexpr,
    LANES: tl.constexpr,
    D: tl.constexpr,
    DRAWN: tl.constexpr,
    KEY_BITS: tl.constexpr,
    KEY_REACH: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    VALUE_REACH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As `_read`; the strides of slots [n, lanes] too."""
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside, new, head = row < rows, row // HEADS, row % HEADS
    lane = head // (HEADS // LANES)
    slot = tl.load(slots + new * slot_token + lane * slot_lane, mask=inside, other=0)
    drawn = _signs_at(frame, token, signs, tokens_per_frame, slot * LANES + lane, inside, DRAWN, D)
    channel, mask = tl.arange(0, D)[None, :], inside[:, None]

    given = keys + (new * key_token + head * key_head)[:, None] + channel * key_channel
    x = tl.load(given, mask=mask, other=0).to(tl.float32)
    if KEY_BITS < 16:
        x -= tl.load(key_centre + head[:, None] * D + channel)
    _pack(x, drawn, packed_keys, key_scale, slot * HEADS + head, inside, KEY_BITS, KEY_REACH, D)

    given = values + (new * value_token + head * value_head)[:, None] + channel * value_channel
    x = tl.load(given, mask=mask, other=0).to(tl.float32)
    _pack(x, drawn, packed_values, value_scale, slot * HEADS + head, inside, VALUE_BITS, VALUE_REACH, D)


@triton.jit
def _signs_at(frame, token, signs, tokens_per_frame, place, inside, DRAWN: tl.constexpr, D: tl.constexpr):
    """Of the tokens at these places [rows]: [rows, D]."""
    number = tl.load(frame + place, mask=inside, other=0) * tokens_per_frame
    number += tl.load(token + place, mask=inside, other=0)
    drawn = (number % DRAWN + DRAWN) % DRAWN  # not negative, as in torch: in a long stream the product overflows
    return tl.load(signs + drawn[:, None] * D + tl.arange(0, D)[None, :])


@triton.jit
def _rotated(x, D: tl.constexpr):
    """x [rows, D] times the Hadamard matrix of +-1.

    Each round puts the sums of neighbours into the first half and their differences into the second: that moves the
    bits of a channel's number by one place, so that after as many rounds as it has bits all are back in theirs.
    """
    for i in tl.static_range(8):
        if D >> i > 1:
            even, odd = tl.split(tl.reshape(x, (x.shape[0], D // 2, 2)))
            x = tl.reshape(tl.permute(tl.join(even + odd, even - odd), (0, 2, 1)), (x.shape[0], D))
    return x


# --- reading ------------------------------------------------------------------------------------------


@triton.jit
def _unpacked(packed, scale, drawn, row, inside, BITS: tl.constexpr, D: tl.constexpr):
    """The numbers in these rows, float32 [rows, D], but for the centre."""
    if BITS == 16:
        numbers = packed + row[:, None] * D + tl.arange(0, D)[None, :]
        x = tl.load(numbers, mask=inside[:, None], other=0).to(tl.float32)
    else:
        start = packed + row[:, None] * (D * BITS // 8)
        if BITS == 3:
            codes = _codes_at(start, inside, 2, D) + 4 * _codes_at(start + D // 4, inside, 1, D)
        else:
            codes = _codes_at(start, inside, BITS, D)
        x = _rotated(2 * codes - ((1 << BITS) - 1), D).to(tl.float32)  # twice code - middle: whole numbers
        x *= tl.load(scale + row, mask=inside, other=0).to(tl.float32)[:, None] * (0.5 * D**-0.5)
        x *= drawn
    return x


@triton.jit
def _codes_at(start, inside, BITS: tl.constexpr, D: tl.constexpr):
    """Codes, int32 [rows, D], of the bytes from start [rows, 1] on; not of 3 bits."""
    run: tl.constexpr = D * BITS // 8
    channel = tl.arange(0, D)[None, :]
    byte = tl.load(start + channel % run, mask=inside[:, None], other=0).to(tl.int32)
    return (byte >> (channel // run * BITS)) & ((1 << BITS) - 1)


# --- writing ------------------------------------------------------------------------------------------


@triton.jit
def _pack(x, drawn, packed, scale, row, inside, BITS: tl.constexpr, REACH: tl.constexpr, D: tl.constexpr):
    """Stores numbers x, float32 [rows, D], in these rows."""
    if BITS == 16:
        numbers = packed + row[:, None] * D + tl.arange(0, D)[None, :]
        tl.store(numbers, x.to(packed.dtype.element_ty), mask=inside[:, None])
    else:
        x = _rotated(x * drawn, D) * D**-0.5
        squares = tl.sum(x * x, axis=1)
        reach = tl.minimum(tl.max(tl.abs(x), axis=1), REACH * tl.sqrt_rn(squares * (1 / D)))
        reach = tl.maximum(reach, TINY)[:, None]
        codes = tl.floor((tl.div_rn(x, tl.broadcast_to(reach, x.shape)) + 1) * (1 << (BITS - 1)))
        codes = tl.minimum(tl.maximum(codes, 0.0), (1 << BITS) - 1.0)
        product = tl.sum((codes - ((1 << BITS) - 1) / 2) * x, axis=1)
        found = tl.minimum(tl.div_rn(squares, tl.maximum(product, TINY)), LARGEST_SCALE)
        tl.store(scale + row, found.to(tl.float16), mask=inside)
        start = packed + row[:, None] * (D * BITS // 8)
        if BITS == 3:
            _put_codes(codes.to(tl.int32) & 3, start, inside, 2, D)
            _put_codes(codes.to(tl.int32) >> 2, start + D // 4, inside, 1, D)
        else:
            _put_codes(codes.to(tl.int32), start, inside, BITS, D)


@triton.jit
def _put_codes(codes, start, inside, BITS: tl.constexpr, D: tl.constexpr):
    """Packs codes, int32 [rows, D], into the bytes from start [rows, 1] on; not of 3 bits."""
    run: tl.constexpr = D * BITS // 8
    parts = tl.reshape(codes, (codes.shape[0], 8 // BITS, run))
    shift = tl.arange(0, 8 // BITS)[None, :, None] * BITS
    byte = tl.sum(parts << shift, axis=1)  # which have no bits in common
    tl.store(start + tl.arange(0, run)[None, :], byte.to(tl.uint8), mask=inside[:, None])
