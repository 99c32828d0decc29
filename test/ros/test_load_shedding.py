# SPDX-License-Identifier: Apache-2.0
"""Load shedding against simulated loads: what each level gives up makes frames faster."""

from itertools import pairwise

import numpy as np
import pytest

from xsvggt_ros.ros.load_shedding import EASE, LEVELS, PATIENCE, RECENT, LoadShedding

TARGET_MS = 100.0


def latency_s(level, frame, load):
    """Of a frame: a step whose attention depends on the budget, and outputs that depend on the rest."""
    step = 0.020 + 0.040 * level.budget
    outputs = 0.020 + 0.040 / level.point_stride**2 if frame % level.publish_every == 0 else 0.0
    return load * (step + outputs)


def levels_under(loads, shedding=None, seed=0):
    """The level's number at each frame, under a load for each."""
    shedding, rng, level = shedding or LoadShedding(), np.random.default_rng(seed), LEVELS[0]
    numbers = []
    for frame, load in enumerate(loads):
        level = shedding.update(latency_s(level, frame, load) * rng.lognormal(0, 0.05), TARGET_MS)
        numbers.append(level.number)
    return np.array(numbers)


def slowest_ms(level, load):
    """The highest median of as many frames as are judged, without noise."""
    latencies = [latency_s(level, frame, load) for frame in range(RECENT + 4)]
    return 1000 * max(np.median(latencies[i : i + RECENT]) for i in range(4))


def changes(numbers):
    return int(np.count_nonzero(np.diff(numbers)))


def test_each_level_gives_up_what_the_one_before_does_and_more():
    assert [level.number for level in LEVELS] == list(range(len(LEVELS)))
    given_up = [(level.point_stride, level.publish_every, 1 / level.budget) for level in LEVELS]
    for less, more in pairwise(given_up):
        assert all(a <= b for a, b in zip(less, more, strict=True)) and less != more
    assert (LEVELS[0].point_stride, LEVELS[0].publish_every, LEVELS[0].budget) == (1, 1, 1.0)
    assert len({level.description for level in LEVELS}) == len(LEVELS)


@pytest.mark.parametrize("load", [0.5, 0.7, 1.0, 1.3, 1.8, 2.8])
def test_it_settles_on_the_first_level_that_is_fast_enough(load):
    slowest = [slowest_ms(level, load) for level in LEVELS]
    assert all(abs(ms - TARGET_MS) > 5 for ms in slowest)  # the noise does not decide
    fast_enough = next(level.number for level in LEVELS if slowest[level.number] < TARGET_MS)
    numbers = levels_under([load] * 1000)
    assert (numbers[RECENT * len(LEVELS) :] >= fast_enough - 1).all()
    assert numbers.max() == fast_enough
    assert (numbers[-500:] == fast_enough).mean() > 0.9


def test_it_gives_up_no_more_than_there_is():
    numbers = levels_under([50.0] * 200)
    assert numbers[-1] == numbers.max() == len(LEVELS) - 1
    assert changes(numbers) == len(LEVELS) - 1


@pytest.mark.parametrize("seed", range(5))
def test_it_takes_everything_back_when_the_load_is_gone(seed):
    numbers = levels_under([3.0] * 200 + [0.5] * 400, seed=seed)
    assert numbers[199] >= 3
    assert numbers[-1] == 0
    assert (np.diff(numbers[210:]) <= 0).all()


@pytest.mark.parametrize("load", np.linspace(0.6, 3.4, 15))
def test_no_constant_load_makes_it_flap(load):
    """10,000 frames: the way up, then tries whose distance doubles up to the longest wait."""
    numbers = levels_under([load] * 10_000)
    assert changes(numbers[:2000]) <= 24
    assert changes(numbers[2000:]) <= 16


def test_a_load_between_two_levels_is_tried_ever_more_rarely():
    """A level later frames take far less than the target, a level earlier more: the worst case for flapping."""
    shedding, level, numbers = LoadShedding(), LEVELS[0], []
    for _ in range(1000):
        level = shedding.update(0.150 if level.number == 0 else 0.010, TARGET_MS)
        numbers.append(level.number)
    down = np.flatnonzero(np.diff(numbers) < 0)
    waits = np.diff(down)
    assert waits[0] > PATIENCE
    assert len(down) <= 6
    assert (waits[1:] > 1.6 * waits[:-1]).all()
    # The load goes for good: the wait is over once, and starts from the shortest again.
    for _ in range(1000):
        level = shedding.update(0.010, TARGET_MS)
    assert level.number == 0


@pytest.mark.parametrize("outliers", [1, 2])
def test_single_late_frames_change_nothing(outliers):
    shedding = LoadShedding()
    for frame in range(300):
        late = frame % 50 < outliers
        assert shedding.update(5.0 if late else 0.060, TARGET_MS).number == 0


def test_single_quick_frames_take_nothing_back():
    shedding = LoadShedding()
    for _ in range(RECENT):
        shedding.update(0.150, TARGET_MS)
    for frame in range(500):
        latency = 0.001 if frame % 50 == 0 else (EASE + 0.1) * TARGET_MS / 1000
        assert shedding.update(latency, TARGET_MS).number == 1


def test_without_a_target_nothing_is_given_up_at_once():
    shedding = LoadShedding()
    assert levels_under([3.0] * 100, shedding)[-1] > 0
    assert shedding.update(9.0, 0.0) == LEVELS[0]
    assert all(shedding.update(9.0, 0.0) == LEVELS[0] for _ in range(50))
    again, fresh = levels_under([2.0] * 300, shedding), levels_under([2.0] * 300)
    np.testing.assert_array_equal(again, fresh)


def test_a_target_that_changes_holds_from_the_next_frame():
    shedding = LoadShedding()
    for _ in range(50):
        assert shedding.update(0.090, 100.0).number == 0
    assert shedding.update(0.090, 50.0).number == 1
