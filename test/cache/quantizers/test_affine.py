# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from xsvggt_ros.cache.quantizers.affine import dequantize, quantize_per_channel, quantize_per_token
from xsvggt_ros.cache.quantizers.packing import pack, unpack

LOW_BITS = (2, 3, 4, 8)


def through_channels(x: torch.Tensor, bits: int, size: int = 64) -> torch.Tensor:
    """Keys [T, heads, d] quantised in groups of `size` consecutive tokens, and back."""
    groups = -(-x.shape[0] // size)
    rows = torch.arange(groups * size).clamp_max(x.shape[0] - 1).view(groups, size)
    codes, scale, offset = quantize_per_channel(x, rows, bits)
    group = torch.arange(x.shape[0]) // size
    return dequantize(codes, scale[group], offset[group], bits, torch.empty_like(x))


def through_tokens(x: torch.Tensor, bits: int) -> torch.Tensor:
    codes, scale, offset = quantize_per_token(x, bits)
    return dequantize(codes, scale[..., None], offset[..., None], bits, torch.empty_like(x))


@pytest.mark.parametrize("bits", LOW_BITS)
def test_packing_is_lossless_and_as_small_as_it_says(bits):
    codes = torch.randint(0, 2**bits, (7, 3, 64), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.nbytes * 8 == codes.numel() * bits
    assert torch.equal(unpack(packed, bits, torch.empty(7, 3, 64)), codes.float())


@pytest.mark.parametrize("bits", LOW_BITS)
def test_error_is_at_most_half_a_step(bits):
    x = torch.randn(150, 2, 64, generator=torch.Generator().manual_seed(0))
    step = (x.amax(-1) - x.amin(-1)) / 2**bits
    assert ((through_tokens(x, bits) - x).abs() <= 0.5 * step[..., None] + 6e-3).all()
    for start in range(0, 150, 64):
        group = x[start : start + 64]
        step = (group.amax(0) - group.amin(0)) / 2**bits
        assert ((through_channels(group, bits) - group).abs() <= 0.5 * step + 6e-3).all()


def test_an_offset_costs_nothing_but_float16_rounding():
    """A channel far from zero is as exact as one around it (a clamped zero point would lose it)."""
    x = torch.rand(64, 1, 64, generator=torch.Generator().manual_seed(0))
    for offset in (0.0, 10.0, -10.0, 100.0):
        error = (through_channels(x + offset, 4) - (x + offset)).abs().max()
        assert error <= 0.5 / 16 + abs(offset) * 2**-11 + 1e-3


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-9, 1e-9, 6e4])
def test_a_constant_group_survives(value):
    x = torch.full((64, 1, 64), value)
    for back in (through_channels(x, 2), through_tokens(x, 2)):
        torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-7)


def test_numbers_beyond_float16_stay_finite():
    x = torch.linspace(-1e6, 1e6, 64 * 64).view(64, 1, 64)
    assert through_channels(x, 4).isfinite().all()
    assert through_tokens(x, 4).isfinite().all()


def test_groups_need_not_be_consecutive():
    x = torch.randn(6, 1, 64, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([[4, 0, 2], [5, 1, 1], [3, 3, 3]])
    codes, scale, offset = quantize_per_channel(x, rows, 8)
    group = torch.tensor([0, 1, 0, 2, 0, 1])
    back = dequantize(codes, scale[group], offset[group], 8, torch.empty_like(x))
    assert (back - x).abs().max() < 0.01
    torch.testing.assert_close(back[3], x[3], rtol=1e-3, atol=1e-3)  # alone in its group


@pytest.mark.parametrize("bits", LOW_BITS)
def test_what_is_read_in_bfloat16_is_the_float32_number_rounded_once(bits):
    """Arithmetic in bfloat16 would double the error of 8 bits."""
    x = 10 + torch.randn(150, 2, 64, generator=torch.Generator().manual_seed(0))
    codes, scale, offset = (part if part.ndim == 3 else part[..., None] for part in quantize_per_token(x, bits))
    exact = dequantize(codes, scale, offset, bits, torch.empty_like(x))
    assert torch.equal(dequantize(codes, scale, offset, bits, torch.empty_like(x).bfloat16()), exact.bfloat16())
    plain = torch.empty(150, 2, 64, dtype=torch.float64)
    plain = offset.double() + scale.double() * unpack(codes, bits, plain)
    torch.testing.assert_close(exact.double(), plain, rtol=1e-6, atol=1e-6)
