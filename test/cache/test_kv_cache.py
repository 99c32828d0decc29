# SPDX-License-Identifier: Apache-2.0
"""The cache beside a plain one (support/twin.py): what it holds, and what it costs. What stays: test_choice.py."""

from dataclasses import replace

import pytest
import torch
from support.caches import cache_of, shape_of
from support.twin import Twin

from xsvggt_ros.cache.budget import budget_in_force
from xsvggt_ros.cache.policies import BY_NAME, make_policy
from xsvggt_ros.cache.policies.xstream import query_summary
from xsvggt_ros.config import BITS, QUANTIZERS, CacheConfig
from xsvggt_ros.model.attention import sdpa
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.stream import cache_shape

BUDGETED = [name for name in BY_NAME if name != "full"]
META = torch.device("meta")


@pytest.mark.parametrize("change", [dict(budget_tokens=64), dict(budget_tokens=260), dict(policy="xstream")])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_window_that_cuts_through_a_frame_keeps_its_groups_when_settings_change(bits, change):
    """Its groups begin where the window cuts, not where those of a whole frame do."""
    config = CacheConfig(
        policy="sliding_window", quantizer="channel", pin_first_frame=False, budget_tokens=65, key_bits=bits
    )
    twin = Twin(config, 130)
    for _ in range(3):
        twin.step()
    twin.reconfigure(replace(config, **change))


def test_without_budget_and_quantisation_attention_is_exact():
    cache = cache_of(shape_of(30), CacheConfig(policy="full", key_bits=16, value_bits=16))
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(20):  # beyond the capacity it starts with
        q, k, v = torch.randn((3, 1, 30, 2, 64), generator=generator)
        seen.append((k, v))
        keys, values = (torch.cat(part, dim=1) for part in zip(*seen, strict=True))
        for layer in range(2):
            torch.testing.assert_close(cache.attend(layer, q, k, v), sdpa(q, keys, values))
        cache.end_frames(1)
    assert cache.tokens == 20 * 30


@pytest.mark.parametrize("policy", BUDGETED)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_full_budget_neither_grows_nor_moves(policy, quantizer):
    config = CacheConfig(policy=policy, quantizer=quantizer, budget_tokens=160, key_bits=2, camera_window=2)
    twin = Twin(config, 40)
    for _ in range(6):
        twin.step()
    cache = twin.cache
    places, size = [tensor.data_ptr() for tensor in cache.tensors], cache.nbytes
    for _ in range(10):
        twin.step()
        assert [tensor.data_ptr() for tensor in cache.tensors] == places
        assert cache.nbytes == size
        assert (cache.tokens, cache.evicted) == (160, 40)


def test_pruning_never_requantises():
    twin = Twin(CacheConfig(budget_tokens=300), 70)
    for _ in range(5):
        twin.step()
    store, before, after = twin.cache.layers[0], *torch.zeros(2, 2, 300, 2, 64)
    store.read(before)
    first = [(twin.order(0)[:, 0] == row).nonzero().item() for row in range(70)]
    for _ in range(25):
        twin.step()
    store.read(after)
    assert torch.equal(after[:, first], before[:, first])  # the first frame, 25 prunings later
    assert twin.cache.reencoded == 0


def test_a_smaller_budget_prunes_by_the_policy_at_once():
    """What stays are the best-scored tokens under the newest frame's queries, and first and newest frame."""
    shape = shape_of(40, layers=1)
    config = CacheConfig(budget_tokens=400, key_bits=16, value_bits=16)
    cache = cache_of(shape, config)
    generator = torch.Generator().manual_seed(0)
    keys = []
    for _ in range(8):
        q, k, v = torch.randn((3, 1, 40, 2, 64), generator=generator)
        keys.append(k[0])
        cache.attend(0, q, k, v)
        cache.end_frames(1)
    scores = torch.cat(keys).mean(1) @ query_summary(q[0], specials=5, pool=config.query_pool)
    middle = 40 + scores[40:-40].topk(20).indices
    expected = torch.cat([torch.arange(40), middle.sort().values, torch.arange(280, 320)])
    cache.reconfigure(CacheConfig(budget_tokens=100, key_bits=16, value_bits=16))
    assert torch.equal(cache.token_ids(0), expected)


@pytest.mark.parametrize("policy", BY_NAME)
def test_a_cache_keeps_the_evidence_that_its_policy_asks_for_and_no_other(policy):
    cache = cache_of(shape_of(40), CacheConfig(policy=policy))
    wanted = {*cache.policy.layer_evidence(), *cache.policy.token_evidence()}
    assert {*cache.layers[0].evidence()} == wanted
    assert {*cache.layers[0].tensors} - wanted == {
        *("frame", "token", "keys", "key_scale", "key_centre", "values", "value_scale")
    }


def test_the_query_that_xstream_saw_goes_into_another_store():
    twin = Twin(CacheConfig(), 40)
    twin.step()
    before = [twin.cache.layers[layer].evidence()["query"].clone() for layer in range(2)]
    twin.reconfigure(CacheConfig(budget_tokens=100, query_pool=4))
    for layer, query in enumerate(before):
        assert query.any() and torch.equal(twin.cache.layers[layer].evidence()["query"], query)


def test_xstream_after_another_policy_goes_by_recency_until_it_has_seen_a_query():
    twin = Twin(CacheConfig(policy="random", budget_tokens=400), 40)
    for _ in range(8):
        twin.step()
    twin.reconfigure(CacheConfig(policy="xstream", budget_tokens=100))
    expected = torch.cat([torch.arange(40), torch.arange(260, 320)])  # the first frame, and the newest tokens
    for layer in range(2):
        assert torch.equal(twin.cache.token_ids(layer), expected)
    twin.step()
    assert twin.cache.layers[0].evidence()["query"].any()


def test_a_budget_below_the_floor_is_raised_to_it():
    for config, raised in (
        (CacheConfig(budget_tokens=10), True),
        (CacheConfig(budget_tokens=80), False),
        (CacheConfig(budget_tokens=0, budget_mib=0.01), True),
    ):
        cache = cache_of(shape_of(40), config)
        assert (cache.budget, cache.floor, cache.budget_raised) == (80, 80, raised)
    assert not cache_of(shape_of(40), CacheConfig(policy="full")).budget_raised


@pytest.mark.parametrize("policy", BUDGETED)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", BITS)
def test_a_budget_in_mib_is_used_and_never_exceeded(policy, quantizer, bits):
    shape = cache_shape(MODELS["demo"], 84, 112, torch.bfloat16, torch.float32)
    for mib in (1.5, 3.7, 20.0):
        config = CacheConfig(policy, 0, mib, bits, bits, quantizer, per_head=bits == 2, camera_window=4)
        cache = cache_of(shape, config, META)
        frame = cache.nbytes / cache.budget * shape.tokens_per_frame  # a policy may use whole frames only
        assert mib * 2**20 - 1.2 * frame < cache.nbytes <= mib * 2**20


def test_of_two_budgets_the_tighter_holds():
    shape = shape_of(40)
    policy = make_policy(CacheConfig(), shape)
    tokens, _ = budget_in_force(shape, CacheConfig(budget_tokens=0, budget_mib=1.0), policy)
    for asked, expected in ((tokens + 1, tokens), (tokens - 1, tokens - 1)):
        config = CacheConfig(budget_tokens=asked, budget_mib=1.0)
        assert budget_in_force(shape, config, policy) == (expected, False)


@pytest.mark.parametrize("policy", BUDGETED)
def test_a_full_size_cache_at_the_published_budget_fits(policy):
    """What the policy keeps between frames included; the camera head's cache, which is apart, not."""
    shape = cache_shape(MODELS["streamvggt"], 392, 518, torch.bfloat16, torch.float32)
    for bits, limit in ((4, 58.3e6), (2, 33e6)):
        cache = cache_of(shape, CacheConfig(policy=policy, budget_tokens=2082, key_bits=bits, value_bits=bits), META)
        assert cache.budget == 2082
        assert cache.nbytes - cache.camera.buffer.nbytes <= limit


def test_random_is_repeatable_and_depends_on_the_seed():
    def ids(seed: int) -> list[int]:
        twin = Twin(CacheConfig(policy="random", budget_tokens=120, seed=seed), 40)
        for _ in range(6):
            twin.step()
        return twin.cache.token_ids(0).tolist()

    assert ids(1) == ids(1) != ids(2)


@pytest.mark.parametrize("budget", [520, 575, 625, 975])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_window_of_few_bits_holds_as_many_tokens_as_one_of_16(budget, quantizer):
    for bits in (4, 16):
        config = CacheConfig(policy="sliding_window", quantizer=quantizer, budget_tokens=budget, key_bits=bits)
        twin = Twin(config, 130, layers=1)
        for _ in range(9):
            twin.step()
            assert twin.cache.tokens == min(budget, 130 * twin.cache.frames)


@pytest.mark.parametrize("per_head", [False, True])
def test_a_table_of_groups_that_is_used_up_costs_roundings_and_no_token(per_head):
    """Choices that scatter over many frames: what stays is as at 16 bits (the twin's), and roundings are counted."""
    config = CacheConfig(policy="output_aware", quantizer="channel", budget_tokens=6 * 128, per_head=per_head)
    twin = Twin(config, 128)
    for _ in range(20):
        twin.step()
    assert 0 < twin.cache.reencoded < 2 * 20 * 128 / 4  # not every fourth token


def test_shapes_of_all_kinds_have_room_for_their_groups():
    """Awkward sizes: no token is overwritten while its group's parameters are in use."""
    for tokens_per_frame in (6, 63, 64, 65, 129):
        for extra in (0, 1, 5, 40):
            config = CacheConfig(budget_tokens=2 * tokens_per_frame + extra, key_bits=8, quantizer="channel")
            twin = Twin(config, tokens_per_frame, layers=1)
            for _ in range(6):
                twin.step()
