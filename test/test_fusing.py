# SPDX-License-Identifier: Apache-2.0
"""What torch.compile is given it can take whole, and the numbers are the same."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from support.small import small_model
from test_step_graph import CONFIG, FULL, QUANTIZER, REPEATING, image

from xsvggt_ros import GeometryStream
from xsvggt_ros.fusing import as_written, compiled

STEPS = FULL + 4


@lru_cache
def traced(function):
    """As `compiled`, without a compiler; an error where it could not be one piece."""
    compiled(function)  # warns of nothing
    return torch.compile(function, dynamic=False, backend="aot_eager", fullgraph=True)


@pytest.fixture(scope="module")
def model():
    return small_model(CONFIG)


@pytest.fixture(autouse=True)
def forgotten():
    """What was compiled: of each function only so much is."""
    yield
    torch._dynamo.reset()


def stream_of(model, fused, **cache):
    stream = GeometryStream(replace(CONFIG, cache=replace(CONFIG.cache, **cache)), model)
    stream._fused = fused
    return stream


def both(model, steps, **cache):
    """Two streams of the same model, one fused, one not, give the same."""
    streams = [stream_of(model, fused, **cache) for fused in (traced, as_written)]
    for i in range(steps):
        mine, theirs = (stream.step(image(i)) for stream in streams)
        np.testing.assert_allclose(mine.depth, theirs.depth, rtol=1e-4)
        np.testing.assert_allclose(mine.T_first_cam, theirs.T_first_cam, atol=1e-4)
    return streams


@pytest.mark.parametrize("policy", REPEATING)
def test_a_step_of_a_full_cache_is_the_same(model, policy):
    both(model, FULL + 4, policy=policy, key_bits=4, value_bits=4, quantizer=QUANTIZER[4])


def test_so_is_one_of_heads_apart_and_of_other_bits(model):
    both(model, FULL + 4, per_head=True, key_bits=2, value_bits=2)


@pytest.mark.parametrize(
    "settings", [dict(policy="full"), dict(adaptive=True), dict(layer_budgets="adaptive")], ids=str
)
def test_sizes_that_do_not_last_are_not_compiled(model, settings):
    fused, _ = both(model, FULL + 2, **settings)
    assert fused._cache.fused is traced
    assert fused._cache._fused_if(True) is as_written


def test_a_cache_that_is_adopted_is_fused_as_its_stream_is(model):
    fused, other = both(model, FULL + 1)
    fused.adopt(other)
    assert fused._cache.fused is traced
    assert fused.step(image(9)).depth.shape == (42, 56)


def test_without_a_gpu_it_is_refused(model):
    with pytest.raises(ValueError, match="compile compile needs a CUDA device, this is cpu; use compile:=auto"):
        GeometryStream(replace(CONFIG, compile="compile"), model)
