# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import torch
from support.caches import cache_of, shape_of
from support.streams import RandomStream

from xsvggt_ros.cache.policies import PastTokens, Seen, coreset, make_policy
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.model.attention import sdpa

CONFIG = CacheConfig(policy="coreset", budget_tokens=70, key_bits=16, value_bits=16, probes=0)


def feed(cache, k, v, q):
    found = [cache.attend(layer, q, k, v) for layer in range(cache.shape.layers)]
    cache.end_frames(k.shape[1] // cache.shape.tokens_per_frame)
    return torch.stack(found)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("chunk", [1, 2])
def test_tokens_that_come_again_are_as_good_as_kept(per_head, chunk):
    """What left has an heir of the same key and value, so that attention is what it would be to everything."""
    shape = shape_of(20)
    cache = cache_of(shape, CacheConfig(**vars(CONFIG) | dict(per_head=per_head, chunk=chunk)))
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 1, 20, 2, 64, generator=generator).repeat(1, 1, chunk, 1, 1)
    for frames in range(chunk, 12, chunk):
        q = torch.randn(1, 20 * chunk, 2, 64, generator=generator)
        everything = (x.repeat(1, frames // chunk, 1, 1) for x in (k, v))
        torch.testing.assert_close(feed(cache, k, v, q), sdpa(q, *everything).expand(2, -1, -1, -1, -1))
    assert cache.tokens == 70


def test_no_token_is_forgotten():
    """Each stands for itself and for those that left to it: together, for all that came."""
    cache = cache_of(shape_of(20), CONFIG)
    for frames in range(1, 30):
        q, k, v = torch.randn(3, 1, 20, 2, 64, generator=torch.Generator().manual_seed(frames))
        feed(cache, k, v, q)
        for store in cache.layers:
            assert (1 + store.evidence()["left"]).sum() == pytest.approx(20 * frames)


def stands_for(cache) -> list[float]:
    """How many tokens, of each layer and lane."""
    return [float(x) for store in cache.layers for x in (1 + store.evidence()["left"]).sum(0)]


def full_stream(**settings) -> RandomStream:
    stream = RandomStream(replace(CONFIG, budget_tokens=200, **settings))
    for _ in range(20):
        stream.step()
    return stream


@pytest.mark.parametrize("change", [dict(budget_tokens=110), dict(key_bits=2), dict(layer_budgets="adaptive")])
@pytest.mark.parametrize("per_head", [False, True])
def test_no_token_is_forgotten_when_settings_change(change, per_head):
    stream = full_stream(per_head=per_head)
    stream.cache.reconfigure(replace(stream.cache.config, **change))
    assert stands_for(stream.cache) == pytest.approx([20 * 25] * (4 if per_head else 2))
    stream.step()
    assert stands_for(stream.cache) == pytest.approx([21 * 25] * (4 if per_head else 2))


@pytest.mark.parametrize("per_head", [False, True])
def test_no_token_is_forgotten_where_heads_choose_apart_from_now_on_or_no_longer(per_head):
    stream = full_stream(per_head=per_head)
    before = stream.evidence(0, "score")
    for apart in (not per_head, per_head):
        stream.cache.reconfigure(replace(stream.cache.config, per_head=apart))
        assert stands_for(stream.cache) == pytest.approx([20 * 25] * (4 if apart else 2))
        if apart:  # it is what both heads together had
            after = stream.evidence(0, "score")
            assert all(
                after[f, t, 0] + after[f, t, 1] == pytest.approx(before[f, t, 0]) for f, t, _ in after if not per_head
            )


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_no_token_is_forgotten_when_a_frame_is_abandoned(layers):
    """What the new tokens had inherited goes to others."""
    stream = full_stream()
    stream.feed(stream.draw(1), layers)
    stream.cache.abandon_frames(replace(stream.cache.config, budget_tokens=150))
    assert stands_for(stream.cache) == pytest.approx([20 * 25] * 2)


@pytest.mark.parametrize("at_once", [300, 16])
def test_heirs_are_found_some_at_a_time_as_all_at_once(at_once, monkeypatch):
    monkeypatch.setattr(coreset, "LEAVING", 50)
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(300, 2, 8, generator=generator)
    slots = torch.randperm(300, generator=generator)[:120, None]
    left = torch.zeros(300, 1)
    coreset.inherit(left, keys, slots, 1.0 + torch.arange(120)[:, None], at_once)
    whole = keys.flatten(1) - keys.flatten(1).mean(0)
    likeness = torch.nn.functional.cosine_similarity(whole[slots], whole[None], dim=2)
    likeness[:, slots[:, 0]] = -2
    expected = torch.zeros(300)
    for row, heir in enumerate(likeness.argmax(1).tolist()):
        expected[heir] += 1 + row
    assert torch.equal(left[:, 0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [0.0, 1e-2, 1.0, 1e3])
def test_those_that_stay_inherit_however_long_keys_are(dtype, length):
    """Products of the longest are more than float16 holds."""
    generator = torch.Generator().manual_seed(0)
    keys = length * torch.nn.functional.normalize(torch.randn(60, 4, 16, generator=generator), dim=-1)
    left = torch.zeros(60, 1)
    coreset.inherit(left, keys.to(dtype), torch.arange(20)[:, None], torch.ones(20, 1), at_once=60)
    assert (left[:20].sum(), left[20:].sum()) == (0, 20)


def test_the_most_similar_inherits_and_the_new_may():
    """Keys along axes, their mean taken off; by hand."""
    policy = make_policy(CONFIG, shape_of(2))
    axis = torch.eye(64)
    # First frame: 0, 1; older: 2 (like 3 of the new frame), 3 (like 0), 4.
    keys = torch.stack([axis[0], axis[1], 2 * axis[2], 3 * axis[0], axis[4], axis[5], axis[2]])[:, None].expand(
        -1, 2, -1
    )
    frame = torch.tensor([0, 0, 1, 1, 2])[:, None]
    evidence = {"score": torch.tensor([9.0, 9, 0.1, 0.2, 5])[:, None], "left": torch.tensor([0.0, 0, 1, 0, 0])[:, None]}
    past = PastTokens(frame, torch.tensor([0, 1, 0, 1, 0])[:, None], keys[:5], 3, 2, 7, evidence)
    new = {"left": torch.zeros(2, 1)}
    slots, rewritten = policy.evict(past, Seen(keys[5:], keys, keys, None), new, 2)
    assert (sorted(slots[:, 0].tolist()), rewritten) == ([2, 3], None)
    assert evidence["left"][:, 0].tolist() == [1, 0, 1, 0, 0]  # of those that leave it no longer matters
    assert new["left"][:, 0].tolist() == [0, 2]
    bias = policy.bias(evidence)[:, 0]
    torch.testing.assert_close(bias, torch.tensor([2.0, 1, 2, 1, 1]).log())


def test_scores_are_sums_of_attention_that_fade():
    shape = shape_of(10, layers=1)
    cache = cache_of(shape, CONFIG)
    q, k, v = torch.randn(3, 3, 1, 10, 2, 64, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(0)
    for t in range(3):
        keys = torch.cat([*k[: t + 1]], 1)[0]
        mass = torch.einsum("qhd,thd->hqt", q[t, 0], keys).div(8).softmax(-1).sum((0, 1))
        expected = torch.cat([0.9 * expected, torch.zeros(10)]) + mass
        feed(cache, k[t], v[t], q[t])
        torch.testing.assert_close(cache.layers[0].evidence()["score"][:, 0], expected)
