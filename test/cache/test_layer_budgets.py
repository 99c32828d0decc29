# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import torch
from support.streams import RandomStream

from xsvggt_ros.cache.budget import divided
from xsvggt_ros.cache.policies import BY_NAME
from xsvggt_ros.config import CacheConfig

CONFIG = CacheConfig(policy="infinite", budget_tokens=120, key_bits=16, value_bits=16, layer_budgets="adaptive")


class UnevenStream(RandomStream):
    """The later a layer, the more alike its keys."""

    def _normal(self, *size: int) -> torch.Tensor:
        x = super()._normal(*size)
        if len(size) == 5:  # queries, keys and values [3, layers, ...]
            x[1, :, :, :, 0] += 3 * torch.arange(size[1])[:, None, None]
        return x


def stored(stream: RandomStream) -> list[int]:
    return [store.tokens for store in stream.cache.layers]


@pytest.mark.parametrize(
    ("total", "weights", "least", "parts"),
    [
        (100, [1, 1, 2], 10, [25, 25, 50]),
        (100, [1, 9, 90], 10, [10, 10, 80]),  # 1 and 9 would have less than 10
        (101, [1, 1, 1], 0, [34, 34, 33]),
        (30, [1, 2, 3], 10, [10, 10, 10]),
        (100, [0.1, 4, 5], 20, [20, 36, 44]),  # of the 80 that are left, 4/9 and 5/9, rounded so that none is lost
    ],
)
def test_shares_keep_the_sum_and_the_floor(total, weights, least, parts):
    assert divided(total, weights, least) == parts


def test_layers_whose_keys_differ_more_get_more():
    stream = UnevenStream(CONFIG, layers=3)
    for _ in range(5):
        stream.step()
    assert stored(stream) == [120, 120, 120]  # equal until the budget has filled
    stream.step()
    likeness = stream.cache._likeness
    weights = [math.exp((1 - m) / 0.5) for m in likeness]
    shares = [w / sum(weights) for w in weights]
    assert likeness[0] < 0.3 and likeness[0] < likeness[1] < likeness[2] and likeness[2] > 0.5
    capacities = [store.capacity for store in stream.cache.layers]
    assert sum(capacities) == 3 * 120
    assert capacities == pytest.approx([max(50, 360 * share) for share in shares], abs=1.01)
    for _ in range(8):
        stream.step()
    assert stored(stream) == capacities
    assert stream.cache.tokens == 120
    assert [store.capacity for store in stream.cache.layers] == capacities  # measured once


def test_likeness_is_the_cosine_to_the_mean():
    stream = UnevenStream(replace(CONFIG, budget_tokens=100), layers=2)
    for _ in range(5):
        stream.step()  # the fourth fills the budget with nothing gone yet, and then they are measured
    for layer in range(2):
        of_heads = []
        for head in range(2):
            keys = torch.cat([k[layer, :, head] for k in stream.keys[1:4]])
            directions = keys / keys.norm(dim=-1, keepdim=True)
            mean = directions.mean(0)
            of_heads.append(torch.cosine_similarity(directions, mean[None]).mean())
        assert stream.cache._likeness[layer] == pytest.approx(float(sum(of_heads)) / 2, abs=1e-5)


@pytest.mark.parametrize("policy", [name for name in BY_NAME if name not in ("full", "frame_bank")])
@pytest.mark.parametrize(("bits", "quantizer", "chunk"), [(2, "rotated", 1), (2, "channel", 1), (16, "rotated", 3)])
def test_every_policy_works_with_layers_of_their_own_size(policy, bits, quantizer, chunk):
    config = replace(CONFIG, policy=policy, key_bits=bits, value_bits=bits, quantizer=quantizer, chunk=chunk)
    stream = UnevenStream(replace(config, budget_tokens=150), layers=3)
    for _ in range(14):
        stream.step(chunk)
    cache = stream.cache
    assert len(set(stored(stream))) > 1 and cache.tokens == 150 and sum(stored(stream)) == 450
    assert cache.evicted == 25 * chunk
    for layer in range(3):
        ends = {(f, t) for f in (0, *range(13 * chunk, 14 * chunk)) for t in range(25)}
        assert ends <= set(stream.places(layer))
    cache.reconfigure(replace(config, budget_tokens=130))
    assert sum(stored(stream)) == 390 and len(set(stored(stream))) > 1
    cache.reconfigure(replace(config, budget_tokens=130, layer_budgets="equal"))
    for _ in range(4):
        stream.step(chunk)
    assert stored(stream) == [130, 130, 130]


def test_layers_of_their_own_size_have_windows_and_specials_of_their_own():
    """Each layer is as in a cache in which all have that many tokens."""
    for policy in ("stac", "window_specials"):
        config = replace(CONFIG, policy=policy, budget_tokens=400)
        stream = UnevenStream(config, layers=2)
        for _ in range(40):
            stream.step()
        small, large = (store.capacity for store in reversed(stream.cache.layers))
        assert small < 300 < 500 < large
        for layer, capacity in ((1, small), (0, large)):
            frames = [frame for frame, _ in stream.places(layer)]
            whole = sum(frames.count(frame) == 25 for frame in range(30, 40))
            if policy == "stac":  # the newest, and a window of what was newest before, of up to half the budget
                assert whole >= 1 + min(3, (capacity - 25) // 2 // 25)
                assert len([frame for frame in frames if 0 < frame < 36]) > capacity // 5
            else:
                special = {f for f, t in stream.places(layer) if t < 5}
                assert len(special) == pytest.approx(capacity // 4 // 5 + 2, abs=2)


@pytest.mark.parametrize(("bits", "quantizer"), [(2, "rotated"), (2, "channel"), (4, "channel"), (16, "rotated")])
@pytest.mark.parametrize("mib", [0.25, 0.4])
def test_a_budget_in_bytes_holds(bits, quantizer, mib):
    config = replace(CONFIG, budget_tokens=0, budget_mib=mib, key_bits=bits, value_bits=bits, quantizer=quantizer)
    stream = UnevenStream(replace(config, camera_window=2), layers=3)
    while stream.cache._likeness is None:
        stream.step()
        assert stream.cache.nbytes <= mib * 2**20
    while any(store.tokens < store.capacity for store in stream.cache.layers):
        stream.step()
        assert stream.cache.nbytes <= mib * 2**20
    assert len(set(stored(stream))) > 1
    assert 0.97 * mib * 2**20 < stream.cache.nbytes <= mib * 2**20
    assert stream.cache.nbytes == sum(tensor.nbytes for tensor in stream.cache.tensors)


def test_whole_frames_are_the_same_in_all_layers():
    stream = UnevenStream(replace(CONFIG, policy="frame_bank"), layers=2)
    for _ in range(8):
        stream.step()
    assert stream.places(0) == stream.places(1)
    assert stored(stream) == [100, 100]
