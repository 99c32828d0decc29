# SPDX-License-Identifier: Apache-2.0
"""Linear layers of 8 and 4 bits: what they make of weights and tokens, and what a model of them takes to load."""

import weakref

import pytest
import torch
from torch import nn

from xsvggt_ros.config import StreamConfig
from xsvggt_ros.model import compact, load_model, loading
from xsvggt_ros.model.compact import COMPACT, FEW, GROUP, LARGEST_WEIGHTS, CompactLinear, largest_weight
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.model.streamvggt import StreamVGGT


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer(bits, outputs=48, inputs=128):
    weight, bias = normal(outputs, inputs) / inputs**0.5, nn.Parameter(normal(outputs, seed=1), requires_grad=False)
    return weight, bias, CompactLinear(weight, bias, bits, torch.float32)


def weight_of(linear):
    return linear.integers() * linear.scale[:, None]


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(params=LARGEST_WEIGHTS)
def integers(request, monkeypatch):
    """Products of integers as on processors with and without VNNI, exact on any: the largest ones of weights."""
    monkeypatch.setattr(compact, "largest_weight", lambda device: request.param)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.double() @ b.double()).to(torch.int32))
    return request.param


@pytest.fixture
def floats(monkeypatch):
    monkeypatch.setattr(compact, "largest_weight", lambda device: 0)


def test_at_8_bits_a_weight_is_off_by_half_a_step_at_most():
    weight, _, linear = layer(8)
    assert linear.codes.dtype == torch.int8
    assert ((weight_of(linear) - weight).abs() <= linear.scale[:, None] * 0.5001).all()


def test_at_4_bits_a_byte_has_two_codes_and_the_furthest_of_a_group_is_near(floats):
    weight, _, linear = layer(4)
    assert linear.codes.nbytes == weight.numel() // 2
    assert linear.multiples.nbytes == weight.numel() // GROUP
    assert error(weight_of(linear), weight) < 0.095
    groups, found = weight.unflatten(1, (-1, GROUP)), weight_of(linear).unflatten(1, (-1, GROUP))
    furthest = groups.abs().argmax(2, keepdim=True)
    step = linear.scale[:, None, None] * linear.multiples.abs()
    assert ((found - groups).gather(2, furthest).abs() <= step).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_zeros_and_of_one_far_weight(bits):
    weight = torch.zeros(2, 128)
    weight[1, 5] = -3.0
    linear = CompactLinear(weight, nn.Parameter(torch.zeros(2)), bits, torch.float32)
    assert torch.allclose(weight_of(linear), weight)


@pytest.mark.parametrize("bits", [8, 4])
def test_products_of_floats_are_those_of_the_weight_it_stands_for(bits, floats, monkeypatch):
    monkeypatch.setattr(compact, "PART", 300)  # rows of the weight are taken two at a time
    _, bias, linear = layer(bits)
    x = normal(2, 40, 128, seed=2)
    assert torch.allclose(linear(x), nn.functional.linear(x, weight_of(linear), bias), atol=1e-5)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("tokens", "bound"), [(FEW, 1e-4), (FEW + 1, 0.015)])
def test_products_of_integers_are_near_and_of_few_tokens_nearer(bits, tokens, bound, integers):
    _, bias, linear = layer(bits)
    x = normal(1, tokens, 128, seed=2) * torch.logspace(-3, 3, tokens)[None, :, None]  # each has its own scale
    expected = nn.functional.linear(x, weight_of(linear), bias)
    found = linear(x)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert all(error(a - bias, b - bias) < bound for a, b in zip(found[0], expected[0], strict=True))


@pytest.mark.parametrize("tokens", [1, FEW + 1])
def test_numbers_that_are_none_stay_so(tokens, integers):
    _, _, linear = layer(8)
    for number in (float("nan"), float("inf")):
        x = normal(tokens, 128)
        x[0, 3] = number
        assert not linear(x)[0].isfinite().any()


@pytest.mark.parametrize("bits", [8, 4])
def test_integers_of_weights_are_no_larger_than_products_are_exact_for(bits, integers):
    _, _, linear = layer(bits)
    largest = linear.integers().abs().max()
    assert largest == integers if bits == 8 else largest <= integers


@pytest.mark.parametrize(("most", "largest"), [(None, 127), (2**15, 64), (2**14, 0)])
def test_sums_that_overflow_are_found_out(most, largest, monkeypatch):
    """Of two products each, as those of processors without VNNI, whose tokens are made positive for it."""

    def product(a, b):
        pairs = ((a.double() + 128).unflatten(1, (-1, 2, 1)) * b.double().unflatten(0, (-1, 2))).sum(2)
        held = pairs if most is None else pairs.clamp(-most, most - 1)
        return (held.sum(1) - 128 * b.double().sum(0)).to(torch.int32)

    monkeypatch.setattr(torch, "_int_mm", product)
    monkeypatch.setattr(compact, "cpu_supports", lambda feature: feature == "avx2")
    assert largest_weight.__wrapped__("cpu") == largest
    assert not largest_weight.__wrapped__("cuda")
    monkeypatch.setattr(compact, "cpu_supports", lambda feature: False)
    assert not largest_weight.__wrapped__("cpu")


def test_the_layers_of_encoder_aggregator_and_camera_head_are_compact():
    sizes = MODELS["streamvggt"]
    with torch.device("meta"):
        found = {name: tensor for name, tensor in StreamVGGT(sizes).state_dict().items() if COMPACT.match(name)}
    assert len(found) == 4 * (sizes.encoder.depth + 2 * sizes.depth + sizes.camera.depth)
    assert all(tensor.dim() == 2 and tensor.shape[1] % (2 * GROUP) == 0 for tensor in found.values())


def test_rows_that_make_no_groups_are_refused():
    with pytest.raises(ValueError, match=r"weight_bits 4 needs .* a multiple of 64, got 96; set weight_bits to 8"):
        layer(4, inputs=96)


def test_other_numbers_of_bits_are_refused():
    with pytest.raises(ValueError, match="weight_bits"):
        StreamConfig(weight_bits=5)


# --- a model ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("bits", "depth", "pose"), [(8, 0.01, 0.01), (4, 0.05, 0.1)])
def test_the_demo_model_says_nearly_the_same(bits, depth, pose, dtype, integers):
    images = torch.rand(1, 3, 3, 84, 112, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load_model(StreamConfig(dtype="float32", device="cpu"))(images)
        found = load_model(StreamConfig(dtype=dtype, device="cpu", weight_bits=bits))(images)
    assert ((found.depth - expected.depth).abs() / expected.depth).mean() < depth
    assert (found.pose - expected.pose).abs().max() < pose


@pytest.mark.parametrize("weights", ["", "random"])
@pytest.mark.parametrize(("bits", "nbytes"), [(8, 1), (4, 0.5 + 1 / GROUP)])
def test_while_it_loads_one_weight_at_a_time_is_there_in_floats(weights, bits, nbytes, monkeypatch):
    whole = []

    def watched(model, name, tensor, *form):
        assert not [ref for ref in whole if ref() is not None]
        assign_compact(model, name, tensor, *form)
        if COMPACT.match(name):
            assert tensor.dtype == torch.float32
            whole.append(weakref.ref(tensor))

    assign_compact = loading.assign_compact
    monkeypatch.setattr(loading, "assign_compact", watched)
    model = load_model(StreamConfig(dtype="float32", device="cpu", weights=weights, weight_bits=bits))
    layers = [module for module in model.modules() if isinstance(module, CompactLinear)]
    assert len(layers) == len(whole) == 4 * (4 + 2 * 6 + 2)
    for module in (m for m in model.aggregator.modules() if isinstance(m, CompactLinear)):
        kept = sum(buffer.nbytes for buffer in module.buffers()) - module.scale.nbytes
        assert kept == nbytes * module.weight.numel()
    assert all(m.multiples is None for m in model.camera_head.modules() if isinstance(m, CompactLinear))


def test_at_16_bits_nothing_is_compact():
    model = load_model(StreamConfig(dtype="float32", device="cpu"))
    assert not any(isinstance(module, CompactLinear) for module in model.modules())
