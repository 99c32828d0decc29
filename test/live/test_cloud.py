# SPDX-License-Identifier: Apache-2.0
import numpy as np

from xsvggt_ros.live.cloud import GrowingCloud

SIDE = 0.1


def points(count, seed=0, size=10.0):
    generator = np.random.default_rng(seed)
    positions = generator.uniform(-size, size, (count, 3)).astype(np.float32)
    return positions, generator.integers(0, 256, (count, 3), dtype=np.uint8)


def voxels(cloud, side):
    return {tuple(voxel) for voxel in np.floor(cloud.points / side).astype(int)}


def test_each_voxel_has_one_point_the_first_that_came():
    cloud = GrowingCloud()
    positions = np.array([[0.01, 0, 0], [0.02, 0, 0], [0.11, 0, 0]], np.float32)
    colors = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3]], np.uint8)
    assert cloud.add(positions, colors, SIDE, 100) == 0
    assert cloud.add(positions + np.float32(0.03), colors + 10, SIDE, 100) == 2
    assert cloud.points.tolist() == positions[[0, 2]].tolist()
    assert cloud.colors[:, 0].tolist() == [1, 3]


def test_it_never_has_more_points_than_it_may_and_covers_what_it_saw():
    cloud = GrowingCloud()
    everything = []
    for seed in range(20):
        positions, colors = points(1000, seed)
        changed = cloud.add(positions, colors, SIDE, 2000)
        everything.append(positions)
        assert len(cloud.points) == len(cloud.colors) <= 2000
        assert 0 <= changed <= len(cloud.points)
    coarse = cloud.side
    assert coarse > SIDE
    assert len(voxels(cloud, coarse)) == len(cloud.points) > 200
    assert voxels(cloud, 2 * coarse) == {
        tuple(v) for v in np.floor(np.concatenate(everything) / coarse / 2).astype(int)
    }


def test_points_before_the_index_that_it_returns_stay_as_they_were():
    cloud = GrowingCloud()
    before = cloud.points
    for seed in range(10):
        changed = cloud.add(*points(500, seed), SIDE, 2500)
        assert np.array_equal(cloud.points[:changed], before[:changed])
        before = cloud.points
    assert changed > 0


def test_a_lower_limit_holds_at_once():
    cloud = GrowingCloud()
    cloud.add(*points(3000), SIDE, 5000)
    assert cloud.add(*points(1, 1), SIDE, 1000) == 0
    assert len(cloud.points) <= 1000


def test_what_is_no_number_or_out_of_reach_is_left_out():
    cloud = GrowingCloud()
    positions = np.array([[np.nan, 0, 0], [np.inf, 0, 0], [1e9, 0, 0], [1, 2, 3]], np.float32)
    cloud.add(positions, np.zeros((4, 3), np.uint8), SIDE, 100)
    assert cloud.points.tolist() == [[1, 2, 3]]
    assert cloud.add(np.empty((0, 3), np.float32), np.empty((0, 3), np.uint8), SIDE, 100) == 1


def test_another_world_has_voxels_of_its_own():
    cloud = GrowingCloud()
    cloud.add(*points(100), SIDE, 1000)
    cloud.clear()
    assert len(cloud.points) == 0
    cloud.add(*points(100), 2 * SIDE, 1000)
    assert len(voxels(cloud, 2 * SIDE)) == len(cloud.points)
