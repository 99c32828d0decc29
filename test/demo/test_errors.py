# SPDX-License-Identifier: Apache-2.0
"""Errors of estimates whose errors are known by hand. Those of a whole recording: test_recording.py."""

import numpy as np
import pytest

from xsvggt_ros.demo.errors import errors, relative_error, trivial_errors, true_depth, unit
from xsvggt_ros.geometry import rigid
from xsvggt_ros.rooms import RoomFrame, pinhole

AHEAD = 2.0  # metres between the frames, to the right
TURN = rigid(np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]), np.array([AHEAD, 0.0, 0.0]))


def frame(T_world_cam, depth):
    depth = np.asarray(depth, np.float32)
    return RoomFrame(np.zeros((*depth.shape, 3), np.uint8), depth, T_world_cam, pinhole(*depth.shape[::-1], 1e-3), 0)


@pytest.fixture
def truth():
    """Two walls, 1 m and 4 m away, seen through a telescope: the rays are parallel. Then a quarter turn."""
    depth = np.array([[1.0, 4.0], [1.0, 4.0]])
    return [frame(np.eye(4), depth), frame(TURN, depth)]


def test_the_unit_is_the_mean_distance_of_the_first_frame(truth):
    assert unit(truth) == pytest.approx(2.5)


def test_errors_are_in_metres_degrees_and_shares(truth):
    depth = [np.array([[0.4, 1.6], [np.nan, 2.4]], np.float32)] * 2  # in units of 2.5 m: 1, 4, unknown, 6 m
    still = np.tile(np.eye(4), (2, 1, 1))
    found = errors(still, depth, truth)
    assert found.depth[0].abs_rel == pytest.approx((0 + 0 + 0.5) / 3)
    assert found.depth[0].pixels == 3
    assert np.allclose(found.rotation, [0, 90])
    assert np.allclose(found.centre, [0, AHEAD])
    mean = found.mean(slice(1, None))
    assert (mean["rotation"], mean["centre"]) == pytest.approx((90, AHEAD))
    assert mean["delta_125"] == pytest.approx(2 / 3)


def test_only_the_motion_since_the_first_frame_counts(truth):
    elsewhere = rigid(TURN[:3, :3], np.array([3.0, -2.0, 5.0]))
    moved = np.array([elsewhere @ np.eye(4), elsewhere @ rigid(TURN[:3, :3], TURN[:3, 3] / unit(truth))])
    found = errors(moved, [t.depth / 2.5 for t in truth], truth)
    assert np.allclose(found.rotation, 0, atol=1e-5)
    assert np.allclose(found.centre, 0)
    assert found.mean()["abs_rel"] == pytest.approx(0, abs=1e-6)


def test_trivial_is_standing_still_at_the_geometric_mean(truth):
    found = trivial_errors(truth)
    assert found.depth[0].abs_rel == pytest.approx((1.0 + 0.5) / 2)  # 2 m instead of 1 m and 4 m
    assert np.allclose(found.centre, [0, AHEAD])


def test_true_depth_is_sampled_not_mixed():
    big = np.repeat(np.repeat(np.array([[1.0, 9.0], [1.0, 3.0]]), 6, 0), 6, 1)
    small = true_depth(frame(np.eye(4), big), (4, 4))
    assert set(np.unique(small)) == {1.0, 3.0, 9.0}
    assert np.array_equal(small[:, 1:3], [[1, 9], [1, 9], [1, 3], [1, 3]])


def test_relative_error_is_a_share_of_the_true_depth(truth):
    shown = relative_error(np.array([[0.5, 1.0], [np.nan, 2.0]], np.float32), truth[0], 2.0)
    assert np.allclose(shown, [[0.0, 0.5], [np.nan, 0.0]], equal_nan=True)
