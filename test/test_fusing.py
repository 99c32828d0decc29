# SPDX-License-Identifier: Apache-2.0
"""What torch.compile is given it can take whole, and the numbers are the same."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from test_step_graph import CONFIG, FULL, QUANTIZER, REPEATING, image

from xsvggt_ros import GeometryStream
from xsvggt_ros.fusing import as_written, compiled
from xsvggt_ros.model import load_model

STEPS = FULL + 4


@lru_cache
def traced(function):
    """As `compiled`, without a compiler; an error where it could not be one piece."""
    compiled(function)  # warns of nothing
    return torch.compile(function, dynamic=False, backend="aot_eager", fullgraph=True)


@pytest.fixture(scope="module")
def models():
    """One that is fused, and one as written."""
    fused, plain = load_model(CONFIG), load_model(CONFIG)
    fused.fuse(traced)
    return fused, plain


@pytest.fixture(autouse=True)
def forgotten():
    """What was compiled: of each function only so much is."""
    yield
    torch._dynamo.reset()


def frames(model, fused, **cache):
    stream = GeometryStream(replace(CONFIG, cache=replace(CONFIG.cache, **cache)), model)
    stream._fused = fused
    return [stream.step(image(i)) for i in range(FULL + 4)]


def same(a, b):
    for mine, theirs in zip(a, b, strict=True):
        np.testing.assert_allclose(mine.depth, theirs.depth, rtol=1e-4)
        np.testing.assert_allclose(mine.T_first_cam, theirs.T_first_cam, atol=1e-4)


@pytest.mark.parametrize("policy", REPEATING)
def test_a_step_of_a_full_cache_is_the_same(models, policy):
    settings = dict(policy=policy, key_bits=4, value_bits=4, quantizer=QUANTIZER[4])
    same(frames(models[0], traced, **settings), frames(models[1], as_written, **settings))


def test_so_is_one_of_heads_apart_and_of_other_bits(models):
    settings = dict(per_head=True, key_bits=2, value_bits=2)
    same(frames(models[0], traced, **settings), frames(models[1], as_written, **settings))


def test_without_being_asked_nothing_is_compiled():
    model = load_model(CONFIG)
    model.fuse(as_written)
    assert as_written(frames) is frames
    with pytest.raises(ValueError, match="compile compile needs a CUDA device, this is cpu; use compile:=auto"):
        GeometryStream(replace(CONFIG, compile="compile"), model)
