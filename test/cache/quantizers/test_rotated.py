# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from support.caches import CPU, cache_of, shape_of

from xsvggt_ros.cache import KVCache
from xsvggt_ros.cache.quantizers.packing import unpack
from xsvggt_ros.cache.quantizers.rotated import DRAWN, encoded, hadamard, middle, signs
from xsvggt_ros.config import CacheConfig, StreamConfig
from xsvggt_ros.model import load_model
from xsvggt_ros.rooms import stream
from xsvggt_ros.stream import cache_shape

LOW_BITS = (1, 2, 3, 4, 8)
ERROR = {1: 0.57, 2: 0.132, 3: 0.038, 4: 0.0105, 8: 5e-5}  # of normal numbers, a little above those of an endless row


def back(x: torch.Tensor, bits: int) -> torch.Tensor:
    packed, scale = encoded(x, bits)
    return (unpack(packed, bits, torch.empty_like(x)) - middle(bits)) * scale[..., None].float()


@pytest.mark.parametrize("d", [64, 32, 48, 6, 1])
def test_the_rotation_is_its_own_inverse(d):
    H = hadamard(d, CPU)
    torch.testing.assert_close(H @ H, torch.eye(d))
    assert torch.equal(H, H.T)


def test_signs_are_even_and_independent():
    drawn = signs(64, CPU)
    assert drawn.shape == (DRAWN, 64) and set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert drawn.mean().abs() < 0.01
    products = drawn @ drawn.T / 64
    assert products.fill_diagonal_(0).square().mean().sqrt() == pytest.approx(1 / 8, rel=0.02)


@pytest.mark.parametrize("bits", LOW_BITS)
def test_no_vector_gets_shorter(bits):
    """x.y = x.x for what comes back, whatever the numbers are, to float16's rounding of the scale."""
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    for vectors in (x, 1e-3 * x.exp(), 100 * x**3):
        y = back(vectors, bits)
        torch.testing.assert_close((vectors * y).sum(-1), vectors.square().sum(-1), rtol=1e-3, atol=0)
    assert (back(x, bits) - x).square().mean() < ERROR[bits]


@pytest.mark.parametrize("bits", LOW_BITS)
def test_numbers_at_the_ends_stay_what_they_are(bits):
    assert (back(torch.zeros(2, 64), bits) == 0).all()
    assert back(torch.full((1, 64), 1e30), bits).isfinite().all()
    torch.testing.assert_close(back(torch.full((1, 64), 3.0), bits), torch.full((1, 64), 3.0), rtol=1e-3, atol=0)


def test_equal_tokens_have_different_errors():
    """Which average out: the mean over tokens of what comes back is far closer than any one of them."""
    shape = shape_of(200, layers=1)
    cache = cache_of(shape, CacheConfig(policy="full", key_bits=2, value_bits=1))
    key, value = torch.randn(2, 1, 1, 2, 64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 200, 2, 64)  # so that the mean key is not each of them
    cache.attend(0, noise, key + noise, value.expand(1, 200, -1, -1))
    out = torch.zeros(2, 200, 2, 64)
    cache.layers[0].read(out)
    one, mean = (x.square().mean() for x in (out[1] - value, out[1].mean(0) - value))
    assert one > 0.3 and mean < one / 100


class Recording(KVCache):
    """Notes what each layer was given."""

    def attend(self, layer, q, k, v):
        self.__dict__.setdefault("given", []).append((layer, q.clone(), k.clone(), v.clone()))
        return super().attend(layer, q, k, v)


@pytest.fixture(scope="module", params=[100, 107])
def given(request):
    """Queries, keys and values of the demo model in 24 frames of a room, and the cache's shape."""
    model = load_model(StreamConfig(dtype="float32"))
    shape = cache_shape(model.config, 84, 112, torch.float32, torch.float32)
    exact = CacheConfig(policy="full", key_bits=16, value_bits=16, camera_window=0)
    cache = cache_of(shape, exact, kind=Recording)
    with torch.inference_mode():
        for frame in stream(request.param, 24, 112, 84, "robot", 4.0):
            model.step(torch.tensor(frame.rgb).permute(2, 0, 1)[None] / 255, cache)
            cache.end_frames(1)
    return cache.given, shape


def outputs(given, shape, **settings) -> torch.Tensor:
    """Of the last frame's attention in every layer."""
    cache = cache_of(shape, CacheConfig(policy="full", camera_window=0, **settings))
    found = []
    for n, (layer, q, k, v) in enumerate(given):
        out = cache.attend(layer, q, k, v)
        if layer == shape.layers - 1:
            cache.end_frames(1)
        if n >= len(given) - shape.layers:
            found.append(out)
    return torch.stack(found)


@torch.inference_mode()
def test_attention_on_the_models_own_keys_is_closer_than_with_the_published_scheme(given):
    """Both are packed here; a prototype with min-max codes had .2 to .8 of the published scheme's error."""
    exact = outputs(*given, key_bits=16, value_bits=16)

    def error(quantizer, bits):
        found = outputs(*given, key_bits=bits, value_bits=bits, quantizer=quantizer)
        return ((found - exact).square().sum((1, 2, 3, 4)) / exact.square().sum((1, 2, 3, 4))).mean().item()

    assert error("rotated", 4) < error("channel", 4)
    assert error("rotated", 2) < 0.6 * error("channel", 2)
    assert not math.isnan(error("rotated", 1))
