# SPDX-License-Identifier: Apache-2.0
"""The caches that are there for comparison do what their names say."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.caches import cache_of, shape_of
from support.paths import SHARED

from xsvggt_ros.cache import KVCache
from xsvggt_ros.config import CacheConfig, StreamConfig
from xsvggt_ros.evaluation.caches import ComparedStream, CurrentFrameOnly, PublishedQuantiser, quantised
from xsvggt_ros.model import load_model

GOLDENS = SHARED / "reference/goldens/units.safetensors"
TOKENS = 17  # of a frame


@pytest.fixture(scope="module")
def model():
    return load_model(StreamConfig(weights="random", dtype="float32"))


def stream(model, cache, kind):
    return ComparedStream(StreamConfig(weights="random", image_width=56, dtype="float32", cache=cache), model, kind)


def images(seed, count=3):
    return np.random.default_rng(seed).integers(0, 256, (count, 42, 56, 3), dtype=np.uint8)


def test_current_frame_only_forgets_what_came_before(model):
    def last_depth(first):
        compared = stream(model, CacheConfig(policy="full", camera_window=0), CurrentFrameOnly)
        frames = [compared.step(image) for image in (*images(first, 2), *images(7, 1))]
        assert compared.global_bytes == 0 and frames[-1].index == 2
        assert frames[-1].status.cache_bytes > 0  # the camera head's
        return frames[-1].depth

    assert np.array_equal(last_depth(0), last_depth(1))


def test_a_group_of_one_sign_loses_its_offset():
    x = torch.linspace(10, 11, 64).view(64, 1, 1)
    assert torch.allclose(quantised(x, channels=False), torch.ones_like(x))


def test_codes_by_hand():
    x = torch.zeros(1, 1, 64)
    x[..., :4] = torch.tensor([-5.0, 10.0, 2.4, 2.6])  # scale 1, zero point 5
    assert quantised(x, channels=True)[0, 0, :5].tolist() == [-5.0, 10.0, 2.0, 3.0, 0.0]


@pytest.mark.skipif(not GOLDENS.exists(), reason=f"needs {GOLDENS}")
def test_the_published_scheme_gives_the_published_numbers():
    units = {name: x.transpose(0, 1) for name, x in load_file(GOLDENS).items() if name.startswith("q_")}
    keys = units["q_k"]
    torch.testing.assert_close(quantised(keys, channels=False), units["q_k_perchannel"], rtol=0, atol=2e-6)
    torch.testing.assert_close(quantised(units["q_v"], channels=True), units["q_v_pertoken"], rtol=0, atol=2e-6)
    for _ in range(5):
        keys = quantised(keys, channels=False)
    torch.testing.assert_close(keys, units["q_k_perchannel_x5"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", ["full", "xstream"])
def test_every_token_is_quantised_again_in_every_frame(policy):
    shape = shape_of(TOKENS, layers=1)
    config = CacheConfig(policy=policy, budget_tokens=4 * TOKENS, key_bits=16, value_bits=16)
    cache = cache_of(shape, config, kind=PublishedQuantiser)
    generator = torch.Generator().manual_seed(0)
    keys = values = torch.zeros(0, 2, 64)  # by age
    ids = torch.zeros(0, dtype=torch.long)
    for frame in range(8):
        q, k, v = torch.randn(3, TOKENS, 2, 64, generator=generator) + torch.linspace(-2, 2, 64)
        cache.attend(0, q[None], k[None], v[None])
        cache.end_frames(1)
        ids = torch.cat([ids, torch.arange(TOKENS) + frame * TOKENS])
        kept = torch.isin(ids, cache.token_ids(0))
        keys, values = quantised(torch.cat([keys, k]), False)[kept], quantised(torch.cat([values, v]), True)[kept]
        ids = ids[kept]
        assert torch.equal(ids, cache.token_ids(0))
        (store,) = cache.layers
        stored = torch.zeros(2, store.tokens, 2, 64)
        store.read(stored)
        order = cache._by_age(store, store.tokens)
        assert torch.equal(stored[0][order], keys) and torch.equal(stored[1][order], values)
    assert cache.tokens == (8 if policy == "full" else 4) * TOKENS


def test_the_published_scheme_moves_what_a_stream_says(model):
    cache = CacheConfig(policy="full", key_bits=16, value_bits=16, camera_window=0)
    exact, published = (
        [s.step(image).depth for image in images(3)][-1]
        for s in (stream(model, cache, kind) for kind in (KVCache, PublishedQuantiser))
    )
    assert 0 < np.abs(exact - published).max() < 0.5 * np.abs(exact).max()
