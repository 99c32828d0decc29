# SPDX-License-Identifier: Apache-2.0
"""Keyframes that are remembered, and what is done with what was measured between them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.segments import HEIGHT, WIDTH, far_from, pose, seen, segment_at, some_similarity

from xsvggt_ros.segments.map import Map
from xsvggt_ros.similarity import Similarity

FRAMES = [seen(pose(turn=(0, 45 * i, 0)), index=i) for i in range(8)]


def map_of(count: int, capacity: int = 16) -> Map:
    map_ = Map(capacity, HEIGHT, WIDTH)
    for i in range(count):
        map_.add(FRAMES[i], segment_at(pose(turn=(0, 45 * i, 0)), 1 + 0.1 * i), set())
    return map_


@pytest.mark.parametrize("capacity", [3, 4, 5])
def test_a_full_map_makes_room_but_keeps_the_oldest_and_what_it_is_told_to(capacity):
    """As a chain does it: the keyframe of the present segment stays until the next one has joined it."""
    map_ = Map(capacity, HEIGHT, WIDTH)
    before = map_.add(FRAMES[0], Similarity(), set())
    for i in range(1, 8):
        key = map_.add(FRAMES[i], Similarity(), {before})
        assert {0, before, key} <= map_.keyframes.keys()
        assert {0, key} <= map_.keyframes.keys() and len(map_.keyframes) <= capacity
        before = key
    assert len({keyframe.slot for keyframe in map_.keyframes.values()}) == capacity


def test_bytes_are_all_there_from_the_start():
    map_ = Map(3, HEIGHT, WIDTH)
    before = map_.nbytes
    for i in range(6):
        map_.add(FRAMES[i], Similarity(), set())
    assert map_.nbytes == before == Map.nbytes_of(3, HEIGHT, WIDTH)


def test_a_keyframe_is_what_was_given():
    map_ = map_of(6, capacity=4)
    for key in map_.keyframes:
        image, intrinsics = map_.image(key)
        np.testing.assert_array_equal(image, FRAMES[key].image)
        np.testing.assert_array_equal(intrinsics, FRAMES[key].intrinsics)
        assert map_.S_map_key(key).scale == 1 + 0.1 * key


def test_of_those_long_not_used_the_one_most_like_another_goes():
    map_ = Map(5, HEIGHT, WIDTH)
    views = [seen(pose(turn=(0, degrees, 0))) for degrees in (0, 90, 180, 185, 270)]
    for view in views:
        map_.use(map_.add(view, Similarity(), set()))
    map_.use(1)  # and so 2 and 3 have not been used for longest
    map_.add(seen(pose(turn=(0, 45, 0))), Similarity(), set())
    assert len({2, 3} & map_.keyframes.keys()) == 1 and {0, 1, 4, 5} <= map_.keyframes.keys()


def test_those_that_look_most_alike_come_first():
    map_ = map_of(8)
    found = map_.alike(seen(pose(turn=(0, 95, 0))), besides=None)
    assert found == sorted(found, reverse=True) and {key for _, key in found} == set(range(8))
    assert found[0][1] == 2 and found[0][0] > 0.6 > found[-1][0]
    assert 2 not in {key for _, key in map_.alike(seen(pose(turn=(0, 95, 0))), besides=2)}


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_components_that_meet_the_younger_moves(swapped):
    map_ = map_of(4)
    for a, b in ((0, 1), (2, 3)):
        map_.relate(a, b, map_.S_map_key(a).inverse() @ map_.S_map_key(b))
    before = {key: map_.S_map_key(key) for key in range(4)}
    S_3_1 = some_similarity(3)
    map_.relate(*((1, 3, S_3_1.inverse()) if swapped else (3, 1, S_3_1)))
    assert all(far_from(map_.S_map_key(key), before[key]) == 0 for key in (0, 1))
    assert far_from(map_.S_map_key(3) @ S_3_1, before[1]) < 1e-9
    inside = before[2].inverse() @ before[3]
    assert far_from(map_.S_map_key(2).inverse() @ map_.S_map_key(3), inside) < 1e-9
    assert map_.relations.component(0) == {0, 1, 2, 3}


def test_keyframes_of_one_component_do_not_move_until_it_is_corrected():
    map_ = map_of(3)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        before = [map_.S_map_key(key) for key in range(3)]
        map_.relate(a, b, some_similarity(b) if (a, b) == (0, 2) else before[a].inverse() @ before[b])
        assert all(far_from(map_.S_map_key(key), before[key]) < 1e-9 for key in range(3))
    map_.correct(2)
    assert far_from(map_.S_map_key(0), before[0]) < 1e-12 and far_from(map_.S_map_key(2), before[2]) > 1e-3


def test_a_loop_that_closes_takes_the_drift_out_of_the_map():
    """Each join turns a degree too far and is 1 % too large."""
    drift = Similarity(1.01, Rotation.from_rotvec([0, 1, 0], degrees=True).as_matrix(), np.zeros(3))
    truth = [segment_at(pose(turn=(0, 45 * i, 0), at=(0.2 * i, 0, 0))) for i in range(8)]
    map_ = Map(16, HEIGHT, WIDTH)
    S_map_key = truth[0]
    for i in range(8):
        map_.add(FRAMES[i], S_map_key, set())
        if i:
            map_.relate(i - 1, i, truth[i - 1].inverse() @ truth[i] @ drift)
        S_map_key = S_map_key @ truth[i].inverse() @ truth[(i + 1) % 8] @ drift
    off = far_from(map_.S_map_key(7), truth[7])
    map_.relate(7, 0, truth[7].inverse() @ truth[0])
    map_.correct(7)
    assert off > 0.05
    assert max(far_from(map_.S_map_key(i), truth[i]) for i in range(8)) < 0.6 * off
    assert far_from(map_.S_map_key(7), truth[7]) < 0.3 * off and far_from(map_.S_map_key(0), truth[0]) < 1e-12


@pytest.mark.parametrize("capacity", [3, 20])
def test_a_map_of_another_capacity_has_the_same_keyframes(capacity):
    map_ = map_of(6)
    for i in range(5):
        map_.relate(i, i + 1, some_similarity(i))
    poses = {key: map_.S_map_key(key) for key in map_.keyframes}
    resized = map_.resized(capacity, {4})
    assert resized.nbytes == Map.nbytes_of(capacity, HEIGHT, WIDTH) and len(resized.keyframes) == min(capacity, 6)
    assert {0, 4} <= resized.keyframes.keys()
    for key in resized.keyframes:
        assert resized.S_map_key(key) is poses[key]
        np.testing.assert_array_equal(resized.image(key)[0], FRAMES[key].image)
    assert resized.relations.component(0) == resized.keyframes.keys()
    assert resized.add(replace(FRAMES[0]), Similarity(), set()) == 6
