# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace
from itertools import pairwise

import pytest
from support.streams import RandomStream

from xsvggt_ros.cache.policies.frame_bank import spread
from xsvggt_ros.config import CacheConfig

CONFIG = CacheConfig(policy="frame_bank", budget_tokens=8 * 25, key_bits=16, value_bits=16)


def frames_of(stream: RandomStream) -> list[int]:
    """The frames that are there, each with all its tokens, in every layer the same."""
    places = [stream.places(layer) for layer in range(2)]
    assert places[0] == places[1]
    frames = sorted({frame for frame, _ in places[0]})
    assert places[0] == [(frame, token) for frame in frames for token in range(25)]
    return frames


def test_ages_spread_evenly_in_their_logarithm():
    bank: list[int] = []
    for frame in range(300):
        bank = spread([*bank, frame], 8, recent=4)
        assert bank[0] == 0 and bank[-4:] == list(range(max(0, frame - 3), frame + 1))[-4:]
    steps = [math.log((300 - older) / (300 - younger)) for older, younger in pairwise(bank[:-3])]
    # From age 4 to 300 it takes 4 steps of 1.08; they stay within a factor 2 of that.
    assert len(steps) == 4 and all(0.54 < step < 2.16 for step in steps)


@pytest.mark.parametrize(
    ("frames", "count", "recent", "kept"),
    [
        ([0, 1, 2, 3], 4, 2, [0, 1, 2, 3]),
        ([0, 1, 2, 3], 3, 1, [0, 2, 3]),  # ages 4 3 2 1: without the second 4/2, without the third 3/1
        ([0, 1, 8, 9, 10], 4, 2, [0, 8, 9, 10]),  # ages 11 10 3 2 1: 11/3 or, of the newest two, none
        ([0, 5, 6, 7, 8], 2, 1, [0, 8]),
    ],
)
def test_the_frame_with_the_closest_neighbours_leaves(frames, count, recent, kept):
    assert spread(frames, count, recent) == kept


@pytest.mark.parametrize("bits", [2, 16])
@pytest.mark.parametrize("chunk", [1, 3])
def test_whole_frames_stay_the_same_in_all_layers(bits, chunk):
    stream = RandomStream(replace(CONFIG, budget_tokens=8 * 25 + 24, key_bits=bits, value_bits=bits, chunk=chunk))
    assert stream.cache.budget == 200
    expected: list[int] = []
    for step in range(12):
        stream.step(chunk)
        expected = spread([*expected, *range(step * chunk, (step + 1) * chunk)], 8, recent=4)
        assert frames_of(stream) == expected
        assert sorted(stream.cache.camera.numbers) == expected


def test_a_smaller_budget_spreads_what_there_is():
    stream = RandomStream(CONFIG)
    for _ in range(30):
        stream.step()
    before = frames_of(stream)
    stream.cache.reconfigure(replace(CONFIG, budget_tokens=4 * 25, key_bits=2))
    expected = spread(before, 4, recent=2)
    assert frames_of(stream) == expected
    assert sorted(stream.cache.camera.numbers) == expected
    stream.step()
    assert frames_of(stream) == spread([*expected, 30], 4, recent=2)


def test_a_smaller_window_of_the_camera_head_is_spread_by_itself():
    stream = RandomStream(replace(CONFIG, camera_window=3))
    expected: list[int] = []
    for frame in range(20):
        stream.step()
        expected = spread([*expected, frame], 4, recent=2)
        assert sorted(stream.cache.camera.numbers) == expected


def test_what_another_policy_left_goes_first():
    stream = RandomStream(replace(CONFIG, policy="random"))
    for _ in range(12):
        stream.step()
    stream.cache.reconfigure(CONFIG)
    expected = [0]
    for frame in range(12, 20):
        stream.step()
        expected = spread([*expected, frame], 8, recent=4)
        assert {(f, t) for f in expected for t in range(25)} <= set(stream.places(0))
    assert frames_of(stream) == expected


def test_a_step_that_was_abandoned_leaves_no_frame_behind():
    stream = RandomStream(CONFIG)
    for _ in range(10):
        stream.step()
    bank = stream.cache.policy.bank
    stream.cache.begin(stream.patches[0])
    q = stream.queries[0][0][None]
    stream.cache.attend(0, q, q, q)
    stream.cache.abandon_frames(CONFIG)
    for _ in range(2):
        stream.step()
    expected = spread([*bank, 10], 8, recent=4)
    assert stream.cache.policy.bank == tuple(spread([*expected, 11], 8, recent=4))
    assert {(f, t) for f in stream.cache.policy.bank for t in range(25)} == set(stream.places(1))
