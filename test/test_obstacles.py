# SPDX-License-Identifier: Apache-2.0
"""Obstacles of a scene whose surfaces are known: a box on a floor, in front of a wall, below a ceiling."""

import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
from support.frames import frame

from xsvggt_ros.config import NodeConfig, ObstacleConfig
from xsvggt_ros.geometry import R_WORLD_OPTICAL, intrinsic_matrix, inverse, rigid, unproject
from xsvggt_ros.obstacles import Pace, _voxels, obstacle_points, sight_ends, why_no_obstacles
from xsvggt_ros.settings import changed

HEIGHT, SIZE = 0.5, (96, 128)  # of the camera above the floor; of its image
K = intrinsic_matrix(90, 90, 63.5, 47.5)
T_BASE_CAM = rigid(R_WORLD_OPTICAL, np.array([0.1, 0.0, HEIGHT]))  # looks ahead, level
WALL, BOX, CEILING = 4.1, (2.1, -0.3, 0.3, 0.6), 2.0  # x; x of the front, y from, to, height: in the base's axes
ALL = ObstacleConfig(doubt=0.0, edge_angle=0.0)


def scene(box=True):
    """Depth [h, w] of the scene: the nearest of what each line of sight meets."""
    rays = unproject(np.ones(SIZE, np.float32), K) @ R_WORLD_OPTICAL.T  # x forward: depth is x
    floor, ceiling = (np.where(d * rays[..., 2] > 0, d / rays[..., 2], np.inf) for d in (-HEIGHT, CEILING - HEIGHT))
    depth = np.minimum(np.minimum(floor, ceiling), WALL - 0.1)
    if box:
        front, left, right, top = BOX
        at = rays * (front - 0.1)
        hit = (at[..., 1] >= left) & (at[..., 1] <= right) & (at[..., 2] + HEIGHT <= top) & (at[..., 2] > -HEIGHT)
        depth[hit] = np.minimum(depth[hit], front - 0.1)
    return depth.astype(np.float32)


def seen(depth, confidence=None):
    confidence = np.full(SIZE, 2.0, np.float32) if confidence is None else confidence
    return frame(depth=depth, confidence=confidence, intrinsics=K)


def cloud(depth, config=ALL, confidence=None, threshold=1.0):
    found = obstacle_points(seen(depth, confidence), T_BASE_CAM, config, threshold)
    assert found.dtype == np.float32 and found.shape[1:] == (3,) and np.isfinite(found).all()
    return found


def off_surfaces(points):
    """Distance to the box's front or the wall [N], metres."""
    return np.minimum(np.abs(points[:, 0] - BOX[0]), np.abs(points[:, 0] - WALL))


def test_a_box_and_a_wall_are_where_they_are_without_floor_and_ceiling():
    points = cloud(scene())
    on_box = np.abs(points[:, 0] - BOX[0]) < 1e-3
    assert off_surfaces(points).max() < 1e-3
    assert points[:, 2].min() >= ALL.min_height and points[:, 2].max() <= ALL.max_height
    _, left, right, top = BOX
    np.testing.assert_allclose(points[on_box, 1].min(), left, atol=ALL.voxel)
    np.testing.assert_allclose(points[on_box, 1].max(), right, atol=ALL.voxel)
    np.testing.assert_allclose(points[on_box, 2].max(), top, atol=ALL.voxel)
    np.testing.assert_allclose(points[on_box, 2].min(), ALL.min_height, atol=ALL.voxel)
    assert (~on_box).sum() > 100


def test_heights_are_of_the_base_wherever_the_camera_looks():
    """The same scene from a camera that is turned by a quarter about its axis, and tilted in its base's axes."""
    tilt = rigid(np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]]), np.array([0, 0, 3.0]))
    wide = replace(ALL, min_height=-100, max_height=100)
    points = obstacle_points(seen(scene()), tilt @ T_BASE_CAM, wide)
    back = points @ tilt[:3, :3].astype(np.float32) - (tilt[:3, :3].T @ tilt[:3, 3]).astype(np.float32)
    assert off_surfaces(back[(back[:, 2] > 0.05) & (back[:, 2] < 1.9)]).max() < 1e-3


def test_every_voxel_gives_one_of_its_points_whatever_the_resolution():
    shifted = rigid(np.eye(3), np.array([0.013, 0.017, 0.011])) @ T_BASE_CAM  # no plane lies between two voxels
    dense = cv2.resize(scene(), None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
    large = frame(depth=dense, confidence=np.full_like(dense, 2), intrinsics=np.diag([4, 4, 1.0]) @ K)
    for voxel in (0.05, 0.2):
        counts = []
        for given in (seen(scene()), large):
            points = obstacle_points(given, shifted, replace(ALL, voxel=voxel))
            cells = np.floor(points.astype(np.float64) / voxel).astype(int)
            counts.append(len(np.unique(cells, axis=0)))
            assert len(points) - counts[-1] <= 0.001 * len(points)  # float32 beside a voxel's edge
        assert counts[1] == pytest.approx(counts[0], rel=0.5)


def test_voxels_are_told_apart_where_there_are_more_than_32_bits_count():
    """The first two have numbers that are 2**32 apart, which numpy 1 does not count to unless it is asked to."""
    cells = np.array([[0, 0, 0], [8, 0, 0], [0, 2**15 - 1, 2**14 - 1]], np.float32)
    points = _voxels(cells.T / 2, np.eye(4), 0.5)
    assert sorted(map(tuple, points)) == sorted(map(tuple, cells / 2))


def test_a_post_as_wide_as_a_voxel_is_seen_at_the_greatest_range_in_a_large_image():
    """Rows and columns are left out of large images, but no more than that leaves."""
    focal, config = 900.0, replace(ALL, max_range=5.0)
    depth = np.full((392, 518), 4.8, np.float32)
    width = round(config.voxel * focal / 4.2)
    for column in range(200, 210):
        there = depth.copy()
        there[:, column : column + width] = 4.2
        given = frame(depth=there, confidence=np.ones_like(there), intrinsics=intrinsic_matrix(focal, focal, 259, 196))
        points = obstacle_points(given, T_BASE_CAM, config)
        assert (np.abs(points[:, 0] - 4.3) < 1e-3).sum() > 3


def test_flying_pixels_between_box_and_wall_are_removed_and_the_rest_stays():
    blurred = cv2.blur(scene(), (5, 5))
    before, after = cloud(blurred), cloud(blurred, replace(ALL, edge_angle=10.0))
    flying = off_surfaces(before) > 0.1
    assert flying.sum() > 50
    assert (off_surfaces(after) > 0.1).sum() < 0.05 * flying.sum()
    for x in (BOX[0], WALL):
        kept, all_ = ((np.abs(points[:, 0] - x) < 0.02).sum() for points in (after, before))
        assert kept > 0.75 * all_ > 50


def test_a_wall_along_the_way_is_no_edge():
    """Seen at 14 degrees and more, its depth changes by much from pixel to pixel."""
    rays = unproject(np.ones(SIZE, np.float32), K)
    depth = np.where(rays[..., 0] > 0.25, 1 / np.maximum(rays[..., 0], 0.01), 4.5).astype(np.float32)
    points = cloud(depth, replace(ALL, edge_angle=10.0))
    beside = np.abs(points[:, 1] + 1) < 1e-3  # y is to the left
    assert points[beside, 0].min() < 1.7 and points[beside, 0].max() > 3.6


def test_the_least_sure_pixels_make_no_points():
    confidence = np.full(SIZE, 5.0, np.float32)
    on_box = np.abs(scene() - (BOX[0] - 0.1)) < 1e-6
    confidence[on_box] = np.linspace(1, 2, on_box.sum(), dtype=np.float32)
    share = float(on_box.mean())
    assert 0.05 < share < 0.3
    none = cloud(scene(), replace(ALL, doubt=share + 0.02), confidence)
    assert len(none) > 100 and (np.abs(none[:, 0] - BOX[0]) > 1).all()
    half = cloud(scene(), replace(ALL, doubt=share / 2), confidence)
    full = cloud(scene(), ALL, confidence)
    boxes = [(np.abs(points[:, 0] - BOX[0]) < 1e-3).sum() for points in (half, full)]
    assert 0.3 * boxes[1] < boxes[0] < 0.8 * boxes[1]
    assert len(cloud(scene(), replace(ALL, doubt=0.99))) == len(cloud(scene()))  # where all are equally sure
    assert not len(cloud(scene(), confidence=confidence, threshold=5.5))


def test_what_is_out_of_range_is_left_out():
    points = cloud(scene(), replace(ALL, max_range=3.0))
    assert (np.abs(points[:, 0] - BOX[0]) < 1e-3).all() and len(points)
    far = cloud(scene(), replace(ALL, max_range=4.1))
    origin = T_BASE_CAM[:3, 3]
    assert np.linalg.norm(far - origin, axis=1).max() <= 4.1 + 1e-3
    assert len(far) < len(cloud(scene()))


@pytest.mark.parametrize("depth", [np.full(SIZE, 50, np.float32), np.full(SIZE, np.nan, np.float32)])
@pytest.mark.parametrize("config", [ObstacleConfig(), ALL])
def test_nothing_in_view_is_an_empty_cloud(depth, config):
    assert cloud(depth, config).shape == (0, 3)


def test_depth_that_is_no_number_makes_no_point_and_spoils_no_other():
    rng = np.random.default_rng(0)
    depth, confidence = scene(), np.full(SIZE, 2.0, np.float32)
    bad = rng.random(SIZE) < 0.05
    depth[bad] = rng.choice(np.array([np.nan, np.inf, -np.inf], np.float32), bad.sum())
    confidence[rng.random(SIZE) < 0.05] = np.nan
    for config in (ALL, ObstacleConfig()):
        points = cloud(depth, config, confidence)
        assert len(points) > 0 and off_surfaces(points).max() < 1e-3
    assert len(cloud(depth, ALL, confidence)) > 0.7 * len(cloud(scene()))


def test_sight_ends_at_what_is_seen_and_at_the_range():
    config = replace(ALL, max_range=3.0)
    ends = sight_ends(seen(scene()), T_BASE_CAM, config)
    lengths = np.linalg.norm(ends - T_BASE_CAM[:3, 3].astype(np.float32), axis=1)
    assert lengths.max() == pytest.approx(3.0, abs=1e-3)  # towards the wall, which is further
    on_floor, on_box = np.abs(ends[:, 2]) < 1e-3, np.abs(ends[:, 0] - BOX[0]) < 1e-3
    free = np.abs(lengths - 3.0) < 1e-3
    assert min(on_floor.sum(), on_box.sum(), free.sum()) > 50
    assert (on_floor | on_box | free | (np.abs(ends[:, 2] - CEILING) < 1e-3)).all()
    without = sight_ends(seen(scene(box=False)), T_BASE_CAM, config)
    behind = (np.abs(without[:, 2]) < 1e-3) & (np.abs(without[:, 1]) < 0.2) & (without[:, 0] > BOX[0])
    assert behind.any()  # where the box was, floor is seen: that clears it
    assert sight_ends(seen(np.full(SIZE, np.nan, np.float32)), T_BASE_CAM, config).shape == (0, 3)


def test_a_frame_without_depth_says_so():
    pose_only = seen(scene())
    pose_only = replace(pose_only, status=replace(pose_only.status, dense=False))
    for make in (obstacle_points, sight_ends):
        with pytest.raises(ValueError, match="set dense to always"):
            make(pose_only, T_BASE_CAM, ALL)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "set base_frame, now empty (the robot's base, whose TF has the camera) and scale.source, now none (where"),
        ({"scale.source": "odometry"}, "set base_frame, now empty (the robot's base, whose TF has the camera); see"),
        ({"base_frame": "base_link"}, "set scale.source, now none (where metres come from, for example odometry); see"),
        ({"base_frame": "base_link", "scale.source": "odometry"}, ""),
    ],
)
def test_obstacles_need_a_base_and_metres(changes, why):
    said = why_no_obstacles(changed(NodeConfig(), changes))
    assert why in said and bool(why) == bool(said)


def test_a_band_of_heights_has_a_bottom_below_its_top():
    with pytest.raises(ValueError, match=r"obstacles\.min_height must be below obstacles\.max_height"):
        changed(NodeConfig(), {"obstacles.min_height": 1.5})


class TestPace:
    def times(self, stamps, rate):
        pace = Pace()
        return [t for t in stamps if pace.due(round(t * 1e9), rate)]

    @pytest.mark.parametrize("camera", [5, 6, 7, 15, 29.97, 30, 120])
    def test_a_faster_camera_gives_as_many_clouds_as_asked_for(self, camera):
        stamps = 1_700_000_000 + np.arange(0, 20, 1 / camera)
        assert len(self.times(stamps, 5.0)) == pytest.approx(100, abs=5)

    def test_a_slower_camera_gives_a_cloud_with_each_image(self):
        stamps = np.arange(0, 20, 1 / 3)
        assert self.times(stamps, 5.0) == stamps.tolist()

    def test_jitter_loses_none(self):
        stamps = np.arange(100) / 5 + np.random.default_rng(0).uniform(0, 0.015, 100)
        assert len(self.times(stamps, 5.0)) == 100

    def test_a_pause_or_time_that_starts_again_is_no_reason_to_wait_or_to_hurry(self):
        assert self.times([0, 0.1, 0.2, 10.0, 10.1, 10.2], 5.0) == [0, 0.2, 10.0, 10.2]
        assert self.times([100, 100.1, 3, 3.1, 3.2], 5.0) == [100, 3, 3.2]

    def test_another_rate_is_in_force_at_once(self):
        pace = Pace()
        assert pace.due(0, 0.1)
        assert not pace.due(10**9, 0.1)
        assert pace.due(2 * 10**9, 5.0)


def test_what_it_takes(figures):
    """Of one core, at 518x392: printed only, never judged."""
    depth = cv2.resize(scene(), (518, 392))
    confidence = np.random.default_rng(0).uniform(1, 3, depth.shape).astype(np.float32)
    given = frame(depth=depth, confidence=confidence, intrinsics=np.diag([4, 4, 1.0]) @ K)
    for max_range in (5.0, 10.0):
        for name, make in (("obstacles", obstacle_points), ("obstacles/clearing", sight_ends)):
            times = []
            for _ in range(30):
                start = time.thread_time()
                made = make(given, T_BASE_CAM, ObstacleConfig(max_range=max_range))
                times.append(1000 * (time.thread_time() - start))
            assert len(made)
            what = f"~/{name} of 518x392, max_range {max_range:g}, thread time, median of 30"
            figures(what, f"{np.median(times):.2f} ms")


def test_the_scene_is_what_it_says():
    """For a check of the tests: the middle of the image, and one below it."""
    depth = scene()
    assert depth[47, 63] == pytest.approx(BOX[0] - 0.1)
    assert depth[95, 63] == pytest.approx(HEIGHT * 90 / 47.5)
    assert inverse(T_BASE_CAM)[2, 3] == pytest.approx(-0.1)
