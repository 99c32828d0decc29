# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose weights take 8 or 4 bits; where the processor has the instructions, products of 8-bit integers.

A weight is a code times its row's scale. At 4 bits each group of a row's weights has a whole multiple of that scale
(two levels, as in QServe, arXiv 2405.04532), and code times multiple is an 8-bit integer too: the product is the same.

Without VNNI oneDNN adds two products in 16 bits, of integers of x from 0 to 255: they hold 2 * 255 * 64. There these
integers of a weight are 64 at most, about 7 bits, and sums are exact again (what oneDNN's manual advises).
"""

from __future__ import annotations

import re
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xsvggt_ros.memory import trim_heap
from xsvggt_ros.model.attention import cpu_supports
from xsvggt_ros.model.weights import assign

LINEAR = r"\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])\.weight$"  # of a block
COMPACT = re.compile(r"^(aggregator\..*blocks|camera_head\.trunk)" + LINEAR)
POSE = "camera_head."  # has 8 bits at least
LARGEST = 127  # 8-bit integer
LARGEST_WEIGHTS = (LARGEST, 64)  # with VNNI, and without
GROUP = 32  # weights of a row that share a multiple, at 4 bits
CODES = (-8, 7)  # at 4 bits
LEAST = 1e-30  # scale
FEW = 16  # tokens, up to which it is the weights that a product waits for
PART = 2**20  # weights that are made floats at a time: they stay in the processor's cache


class CompactLinear(nn.Module):
    """nn.Linear with a weight of few bits."""

    codes: Tensor  # int8 [N, K]; at 4 bits [N, K / 2], of two columns half a row apart
    scale: Tensor  # float32 [N]
    multiples: Tensor | None  # int8 [N, K / GROUP, 1], at 4 bits

    def __init__(self, weight: Tensor, bias: nn.Parameter, bits: int, dtype: torch.dtype):
        """weight [N, K], float32. Computes in `dtype`. Raises ValueError for 4 bits of rows that make no groups."""
        super().__init__()
        self.weight = torch.empty(weight.shape, dtype=dtype, device="meta")  # what it stands for, without numbers
        self.bias = bias
        largest = largest_weight(weight.device.type) or LARGEST
        codes, scale, multiples = _in_8_bits(weight, largest) if bits == 8 else _in_4_bits(weight, largest)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("multiples", multiples)

    def integers(self) -> Tensor:
        """int8 [N, K]: the weight is these times its rows' scales."""
        if self.multiples is None:
            return self.codes
        codes = torch.cat([self.codes << 4 >> 4, self.codes >> 4], 1).unflatten(1, (-1, GROUP))
        return codes.mul_(self.multiples).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., K] -> [..., N]."""
        if not largest_weight(x.device.type):
            return self._of_floats(x)
        product = self._of_integers(x.flatten(0, -2).float())
        return product.add_(self.bias).to(x.dtype).unflatten(0, x.shape[:-1])

    def _of_integers(self, x: Tensor) -> Tensor:
        """float32 [T, K] -> [T, N], by codes of x with a scale for each token; of few tokens by 16 bits."""
        scale = x.abs().amax(1, keepdim=True).clamp_(min=LEAST).div_(LARGEST)
        x = x * scale.reciprocal()
        codes, weight = x.round(), self.integers().t()
        if len(x) > FEW:
            return (torch._int_mm(codes.to(torch.int8), weight) * scale).mul_(self.scale)
        rest = x.sub_(codes).mul_(2 * LARGEST).round_()
        sums, finer = torch._int_mm(torch.cat([codes, rest]).to(torch.int8), weight).double().chunk(2)
        return finer.div_(2 * LARGEST).add_(sums).mul_(scale).mul_(self.scale).float()

    def _of_floats(self, x: Tensor) -> Tensor:
        rows = max(1, PART // x.shape[-1])
        parts = zip(self.integers().split(rows), self.scale.split(rows), self.bias.split(rows), strict=True)
        return torch.cat([F.linear(x, (codes * scale[:, None]).to(x.dtype), bias) for codes, scale, bias in parts], -1)


@lru_cache
def largest_weight(device: str) -> int:
    """The largest integers of weights whose products such a device makes faster than of floats, and adds up exactly.

    0: of none. What ONEDNN_MAX_CPU_ISA hides shows in the sums.
    """
    if device != "cpu" or not cpu_supports("avx2"):
        return 0
    return next((largest for largest in LARGEST_WEIGHTS if _exact(largest)), 0)


def _exact(largest: int) -> bool:
    tokens = torch.full((64, 64), LARGEST, dtype=torch.int8)
    weight = torch.full((64, 64), largest, dtype=torch.int8)
    weight[:, ::2].neg_()
    expected = 64 * LARGEST * weight[:1].int()
    return bool(
        (torch._int_mm(tokens, weight) == expected).all() and (torch._int_mm(-tokens, weight) == -expected).all()
    )


def assign_compact(model: nn.Module, name: str, tensor: Tensor, bits: int, dtype: torch.dtype) -> None:
    """As `assign`; a weight whose name is COMPACT makes its layer a CompactLinear that computes in `dtype`."""
    if not COMPACT.match(name):
        return assign(model, name, tensor)
    owner = name.rpartition(".")[0]
    bits = 8 if name.startswith(POSE) else bits
    linear = model.get_submodule(owner)
    assert isinstance(linear, nn.Linear)
    model.set_submodule(owner, CompactLinear(tensor, linear.bias, bits, dtype))
    trim_heap()  # else what lay between the codes, ever larger than the next tensor needs, comes to all the floats


def _in_8_bits(weight: Tensor, largest: int) -> tuple[Tensor, Tensor, None]:
    """Codes, at most that large, and scales."""
    scale = weight.abs().amax(1).clamp_(min=LEAST).div_(largest)
    return (weight / scale[:, None]).round_().to(torch.int8), scale, None


def _in_4_bits(weight: Tensor, largest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales, multiples; a code times its multiple is at most that large."""
    if weight.shape[1] % (2 * GROUP):
        raise ValueError(
            f"weight_bits 4 needs layers whose inputs are a multiple of {2 * GROUP}, got {weight.shape[1]}; "
            "set weight_bits to 8 or 16"
        )
    groups = weight.unflatten(1, (-1, GROUP))
    furthest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    step = furthest / CODES[0]  # [N, K / GROUP, 1], of either sign: the longer side of the codes is the furthest's
    scale = step.abs().amax((1, 2)).clamp_(min=LEAST).div_(largest // -CODES[0])
    multiples = (step / scale[:, None, None]).round_()
    multiples.masked_fill_(multiples == 0, 1)
    codes = (groups / (multiples * scale[:, None, None])).round_().clamp_(*CODES)
    low, high = codes.to(torch.int8).flatten(1).chunk(2, 1)
    return (low & 15) | (high << 4), scale, multiples.to(torch.int8)
