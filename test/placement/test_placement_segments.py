# SPDX-License-Identifier: Apache-2.0
"""Where the map has frames of a stream of segments: map -> odom, and how sure their poses are said to be."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.frames import frame
from support.messages import place as placed_of
from support.mounted import PITCHED, T_BASE_CAM, mounting

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.frame import InSegment
from xsvggt_ros.geometry import rigid
from xsvggt_ros.placement.covariance import pose_covariance
from xsvggt_ros.placement.placement import NotPlaced, Placement
from xsvggt_ros.settings import changed
from xsvggt_ros.similarity import Similarity
from xsvggt_ros.status import ScaleStatus

OPTICAL = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])  # optical axes in those of a level base (REP 103)
MOUNTED = {"": rigid(OPTICAL, np.zeros(3)), "base_link": T_BASE_CAM}  # base_frame -> camera at the start


def pose(i):
    """Of a way that turns about all axes."""
    return rigid(Rotation.from_rotvec(np.array([0.1, 0.2, -0.05]) * i).as_matrix(), np.array([0.3, -0.2, 0.5]) * i)


def segment(T_map_cam, **values):
    defaults = dict(key=0, T_key_cam=np.eye(4), keyframes={0: Similarity()}, variance=(0.0, 0.0), rescaled=1.0)
    return InSegment(T_map_cam, **(defaults | values))


def corrected(i):
    """Another way, by which the map is off the stream's own."""
    return rigid(Rotation.from_rotvec([0.0, 0.3, 0.1]).as_matrix(), np.array([-1.0, 0.5, 2.0])) @ pose(i)


def placement_of(base_frame="", factor=0.0):
    scale = {"scale.source": "fixed", "scale.factor": factor} if factor else {}
    config = changed(NodeConfig(), {"base_frame": base_frame} | scale)
    placement = Placement(config)
    placement.receive_transforms([mounting()], static=True)
    return placement, config


def place(placement, config, i, T_map_cam=None, **values):
    found = None if T_map_cam is None else segment(T_map_cam, **values)
    return placement.place(frame(i, T_first_cam=pose(i), segment=found), i, "lens", config)


@pytest.mark.parametrize("factor", [0.0, 2.5])
@pytest.mark.parametrize("base_frame", MOUNTED)
def test_map_to_odom_takes_the_camera_to_where_the_map_has_it_in_metres_and_ros_axes(base_frame, factor):
    placement, config = placement_of(base_frame, factor)
    mounted = MOUNTED[base_frame]
    for i in range(4):
        placed = place(placement, config, i, corrected(i))
        T = placed.T_map_odom @ placed.T_odom_cam
        np.testing.assert_allclose(T[:3, :3], mounted[:3, :3] @ corrected(i)[:3, :3], atol=1e-12)
        metres = (factor or 1) * corrected(i)[:3, 3]
        np.testing.assert_allclose(T[:3, 3], mounted[:3, :3] @ metres + mounted[:3, 3], atol=1e-12)
        child = T @ np.linalg.inv(T_BASE_CAM) if base_frame else T
        np.testing.assert_allclose(placed.T_map_odom @ placed.T_odom_child, child, atol=1e-12)


def test_ahead_in_the_map_is_ahead_and_left_is_left():
    placement, config = placement_of(factor=2.0)
    for optical, ros in (([0, 0, 1], [2, 0, 0]), ([-1, 0, 0], [0, 2, 0]), ([0, -1, 0], [0, 0, 2])):
        placed = place(placement, config, 0, rigid(np.eye(3), np.array(optical, float)))
        np.testing.assert_allclose((placed.T_map_odom @ placed.T_odom_cam)[:3, 3], ros, atol=1e-12)


@pytest.mark.parametrize("base_frame", MOUNTED)
def test_map_and_odom_are_one_while_nothing_is_corrected(base_frame):
    placement, config = placement_of(base_frame, 2.5)
    for i in range(4):
        np.testing.assert_allclose(place(placement, config, i, pose(i)).T_map_odom, np.eye(4), atol=1e-12)


def test_the_map_has_the_scale_of_now_though_odometry_keeps_what_was_published():
    placement, config = placement_of(factor=1.0)
    place(placement, config, 0, pose(0))
    place(placement, config, 1, pose(1))
    placed = place(placement, changed(config, {"scale.factor": 3.0}), 2, pose(2))
    units = pose(2)[:3, 3]
    np.testing.assert_allclose(placed.T_odom_cam[:3, 3], OPTICAL @ (pose(1)[:3, 3] + 3 * (units - pose(1)[:3, 3])))
    np.testing.assert_allclose((placed.T_map_odom @ placed.T_odom_cam)[:3, 3], OPTICAL @ (3 * units), atol=1e-12)


def test_without_segments_there_is_no_map():
    placement, config = placement_of("base_link", 2.5)
    assert [place(placement, config, i).T_map_odom for i in range(3)] == [None] * 3


def test_the_map_begins_where_the_frame_does_that_is_placed_first():
    """The mounting comes late; map and odom begin at the base of the stream's first camera all the same."""
    config = changed(NodeConfig(), {"base_frame": "base_link", "scale.source": "fixed"})
    placement = Placement(config)
    with pytest.raises(NotPlaced):
        place(placement, config, 0, pose(0))
    placement.receive_transforms([mounting()], static=True)
    placed = place(placement, config, 1, corrected(1))
    np.testing.assert_allclose(placed.T_map_first, T_BASE_CAM, atol=1e-12)
    T = placed.T_map_odom @ placed.T_odom_cam
    np.testing.assert_allclose(T[:3, 3], PITCHED @ corrected(1)[:3, 3] + T_BASE_CAM[:3, 3], atol=1e-12)


def test_covariance_grows_by_what_joins_are_apart():
    plain = frame(3, T_first_cam=rigid(np.eye(3), np.array([3.0, 0, 4])))
    joined = frame(3, T_first_cam=plain.T_first_cam, segment=segment(plain.T_first_cam, variance=(0.01, 0.25)))
    unsure = frame(3, T_first_cam=plain.T_first_cam, segment=segment(plain.T_first_cam))
    for scale, metres in ((ScaleStatus("fixed", 2.0, 0.0), 4 * 0.25), (ScaleStatus("depth", 0.5, 0.1), 0.25 / 4)):
        before, after, same = (
            np.diag(pose_covariance(placed_of(each, scale=scale)).reshape(6, 6)) for each in (plain, joined, unsure)
        )
        np.testing.assert_allclose(after - before, [metres] * 3 + [0.01] * 3, rtol=1e-9)
        np.testing.assert_array_equal(same, before)
