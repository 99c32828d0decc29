# SPDX-License-Identifier: Apache-2.0
"""The cache beside a plain one (support/twin.py): what it holds, and what it costs. What stays: test_choice.py."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from support.caches import Shortage, cache_of, shape_of
from support.streams import RandomStream
from support.twin import Twin

from xsvggt_ros.cache.budget import budget_in_force
from xsvggt_ros.cache.camera_cache import CameraCache
from xsvggt_ros.cache.policies import BY_NAME, make_policy
from xsvggt_ros.cache.policies.xstream import query_summary
from xsvggt_ros.config import BITS, QUANTIZERS, CacheConfig
from xsvggt_ros.memory import OutOfMemory
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
    config = CacheConfig(policy="xstream", budget_tokens=400, key_bits=16, value_bits=16)
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
    cache.reconfigure(CacheConfig(policy="xstream", budget_tokens=100, key_bits=16, value_bits=16))
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
    twin = Twin(CacheConfig(policy="xstream"), 40)
    twin.step()
    before = [twin.cache.layers[layer].evidence()["query"].clone() for layer in range(2)]
    twin.reconfigure(CacheConfig(policy="xstream", budget_tokens=100, query_pool=4))
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


@pytest.mark.parametrize("policy", ["coreset", "output_aware", "ghost", "xstream"])
def test_a_policy_that_knows_nothing_yet_goes_by_recency(policy):
    twin = Twin(CacheConfig(policy="sliding_window", budget_tokens=400), 25)
    for _ in range(16):
        twin.step()
    twin.reconfigure(CacheConfig(policy=policy, budget_tokens=160))
    for layer in range(2):  # the first frame, and the newest tokens
        assert twin.places(layer) == [divmod(i, 25) for i in [*range(25), *range(16 * 25 - 135, 16 * 25)]]


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
        config = CacheConfig(
            policy=policy,
            budget_mib=mib,
            key_bits=bits,
            value_bits=bits,
            quantizer=quantizer,
            per_head=bits == 2,
            camera_window=4,
        )
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


@pytest.mark.parametrize("policy", BUDGETED)
def test_all_that_a_policy_keeps_between_steps_is_counted(policy):
    stream = RandomStream(CacheConfig(policy=policy))
    for _ in range(2):
        stream.step()
    held = {name: x.nbytes for name, x in vars(stream.cache.policy).items() if isinstance(x, torch.Tensor)}
    assert not any(held.values()), held


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
    config = CacheConfig(policy="infinite", quantizer="channel", budget_tokens=6 * 128, per_head=per_head)
    twin = Twin(config, 128)
    for _ in range(20):
        twin.step()
    assert 0 < twin.cache.reencoded < 0.1 * 20 * 2 * 6 * 128  # tokens of both layers, in every frame


def test_shapes_of_all_kinds_have_room_for_their_groups():
    """Awkward sizes: no token is overwritten while its group's parameters are in use."""
    for tokens_per_frame in (6, 63, 64, 65, 129):
        for extra in (0, 1, 5, 40):
            config = CacheConfig(budget_tokens=2 * tokens_per_frame + extra, key_bits=8, quantizer="channel")
            twin = Twin(config, tokens_per_frame, layers=1)
            for _ in range(6):
                twin.step()


def test_a_budget_beyond_memory_is_refused_and_nothing_changes():
    twin = Twin(CacheConfig(budget_tokens=200), 40)
    for _ in range(6):
        twin.step()
    with pytest.raises(OutOfMemory, match=r"no memory for a cache of .* lower cache.budget_frames"):
        twin.cache.reconfigure(CacheConfig(budget_tokens=10**12))
    assert (twin.cache.config.budget_tokens, twin.cache.lost) == (200, False)
    twin.step()


def test_a_camera_window_beyond_memory_is_refused_and_nothing_changes(monkeypatch):
    """Whatever else changes with it, and finds memory."""
    twin = Twin(CacheConfig(budget_tokens=200), 40)
    for _ in range(6):
        twin.step()

    def none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CameraCache, "_allocate", none)
    with pytest.raises(OutOfMemory, match=r"lower .* camera_window"):
        twin.cache.reconfigure(CacheConfig(budget_tokens=150, camera_window=30))
    assert (twin.cache.config.budget_tokens, twin.cache.lost) == (200, False)
    twin.step()


def test_an_error_that_is_no_shortage_is_not_taken_for_one(monkeypatch):
    twin = Twin(CacheConfig(budget_tokens=200), 40)
    twin.step()

    def broken(*_, **__):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch, "zeros", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        twin.cache.reconfigure(CacheConfig(budget_tokens=300))
    monkeypatch.undo()
    twin.check()


CUT = {  # policy and tokens before -> what the cache goes on with
    ("xstream", 5 * 25): CacheConfig("xstream", budget_tokens=62),
    ("output_aware", 4 * 25): CacheConfig("output_aware", budget_tokens=100, per_head=True),
    ("frame_bank", 4 * 25): CacheConfig("frame_bank", budget_tokens=75),
    ("random", 100): CacheConfig("random", budget_tokens=50),
    ("sliding_window", 75): CacheConfig("sliding_window", budget_tokens=37),
    ("sliding_window", 30): CacheConfig("sliding_window", budget_tokens=15, pin_first_frame=False),
    ("full", 0): CacheConfig("xstream", budget_tokens=100),
}


@pytest.mark.slow
@pytest.mark.parametrize("policy, tokens", CUT)
@pytest.mark.parametrize(("quantizer", "bits"), [("rotated", 4), ("channel", 4), ("rotated", 16)])
def test_a_frame_that_finds_no_memory_leaves_nothing_behind(policy, tokens, quantizer, bits):
    """Wherever memory runs out: no token of that frame stays, the others are what they say, the budget holds."""
    cut = replace(CUT[policy, tokens], key_bits=bits, value_bits=bits, quantizer=quantizer)
    before = replace(cut, policy=policy, budget_tokens=tokens or 1, camera_window=0)

    eight, whole = Twin(before, 25), Shortage()  # where a full cache, and the camera's without window, have to grow
    for _ in range(8):
        eight.step()
    twin = deepcopy(eight)
    new = twin.draw(1)
    with whole:
        twin.feed(new)
    assert whole.calls > 100
    for at in range(0, whole.calls, whole.calls // 25):
        twin = deepcopy(eight)
        if not twin.cut_off(Shortage(at), cut):
            assert quantizer == "channel"
            continue
        followed = 3 if policy == "frame_bank" else 8  # its bank, by the camera head's cache
        assert (twin.cache.frames, twin.cache.camera.frames) == (8, followed)
        for layer in range(2 if policy not in ("sliding_window", "full") else 0):
            assert set(range(25)) <= set(twin.cache.token_ids(layer).tolist())  # the first frame stays whole
        for _ in range(3):
            twin.step()


def test_what_a_frame_displaced_before_memory_ran_out_is_lost_in_the_layers_that_had_taken_it_in():
    twin = Twin(CacheConfig(budget_tokens=100), 25)
    for _ in range(6):
        twin.step()
    twin.fail(layers=1, config=twin.config)
    assert [store.tokens for store in twin.cache.layers] == [75, 100]
    twin.step()
    assert [store.tokens for store in twin.cache.layers] == [100, 100]
    assert twin.cache.evicted == (25 + 25) // 2  # the first layer before, the second now


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("policy", BUDGETED)
def test_what_is_known_about_the_past_outlives_a_step_of_numbers_that_are_not_finite(policy, number):
    """The outputs say that they are not; all that stays is as after a step of other numbers, and so is what follows."""
    config = CacheConfig(policy=policy, budget_tokens=150, probes=0)
    streams = [RandomStream(config) for _ in range(2)]
    for stream in streams:
        for _ in range(9):
            stream.step()
        new = stream.draw(1)
        for name in ("q", "k", "v"):
            getattr(new, name)[:, 3] = number if stream is streams[0] else 0.0
        outputs = stream.feed(new, layers=2)
        assert all(out.isfinite().all() for out in outputs) == (stream is streams[1])
        stream.cache.abandon_frames(config)
    for layer in range(2):
        assert streams[0].places(layer) == streams[1].places(layer)
        for name in streams[0].cache.policy.token_evidence():
            assert streams[0].evidence(layer, name) == streams[1].evidence(layer, name)


def test_tokens_that_were_being_encoded_anew_when_memory_ended_are_not_gone_on_with():
    config = CacheConfig("random", budget_tokens=100, quantizer="channel")
    twin = Twin(config, 25)
    for _ in range(6):
        twin.step()
    twin.cache.layers[1].quantizer.torn = True
    with pytest.raises(OutOfMemory, match="start a new stream"):
        twin.cache.abandon_frames(config)
    assert twin.cache.lost


WANTED = [  # what changes: all; bits; nothing that is packed
    dict(policy="random", budget_tokens=140, key_bits=2, value_bits=4, camera_window=8),
    dict(key_bits=2, value_bits=2),
    dict(quantizer="channel", camera_window=0),
    dict(chunk=2),
    dict(query_pool=3, camera_window=8),
]


@pytest.mark.slow
@pytest.mark.parametrize("change", WANTED)
@pytest.mark.parametrize("bits", [4, 16])
def test_settings_that_find_no_memory_change_nothing_or_say_that_the_cache_is_lost(bits, change):
    """Wherever memory runs out on the way there: before the first layer is replaced nothing has changed."""
    config = CacheConfig(budget_tokens=100, key_bits=bits, value_bits=bits, camera_window=4)
    wanted, whole = replace(config, **change), Shortage()

    stream = RandomStream(config)
    for _ in range(6):
        stream.step()
    before, changed = stream.cache, deepcopy(stream.cache)
    with whole:
        changed.reconfigure(wanted)
    assert (changed.config, changed.lost) == (wanted, False)
    lost = 0
    for at in range(whole.calls):
        cache = deepcopy(before)
        with pytest.raises(OutOfMemory, match="no memory"), Shortage(at):
            cache.reconfigure(wanted)
        if cache.lost:
            lost += 1
            continue
        assert (cache.config, cache.budget, cache.tokens, cache.camera.window) == (config, 100, 100, 4)
        for now, then in zip(cache.tensors, before.tensors, strict=True):
            assert torch.equal(now, then)
        cache.reconfigure(wanted)
        for now, then in zip(cache.tensors, changed.tensors, strict=True):
            assert torch.equal(now, then)
    assert (lost == 0) == ("query_pool" in change)
