# SPDX-License-Identifier: Apache-2.0
"""Where frames end up: axes, the robot's mounting, metres, and what is never made up."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from xsvggt_ros.config import NodeConfig, ScaleConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import inverse, quaternion_xyzw, rigid, rotation_matrix, transform
from xsvggt_ros.messages.topics import references
from xsvggt_ros.placement.placement import NotPlaced, Placement
from xsvggt_ros.settings import changed
from xsvggt_ros.status import StepStatus

SECOND = 1_000_000_000
# A camera 0.2 m ahead of the base and 0.5 m above it, looking 30 degrees down: optical axes in base axes (REP 103).
DOWN = math.radians(30)
PITCHED = np.array([[0.0, -math.sin(DOWN), math.cos(DOWN)], [-1.0, 0, 0], [0.0, -math.cos(DOWN), -math.sin(DOWN)]])
T_BASE_CAM = rigid(PITCHED, np.array([0.2, 0.0, 0.5]))


def frame(index, T_first_cam, **values):
    defaults = dict(
        intrinsics=np.array([[10.0, 0, 4], [0, 10, 3], [0, 0, 1]]),
        depth=np.full((6, 8), 2.0, np.float32),
        confidence=np.full((6, 8), 1.5, np.float32),
        image=np.zeros((6, 8, 3), np.uint8),
        status=StepStatus(frame=index),
    )
    return Frame(index=index, T_first_cam=T_first_cam, **(defaults | values))


def message(parent, child, T, stamp=0):
    """TransformStamped-like."""
    vector = SimpleNamespace(**dict(zip("xyz", T[:3, 3], strict=True)))
    rotation = SimpleNamespace(**dict(zip("xyzw", quaternion_xyzw(T[:3, :3]), strict=True)))
    sec, nanosec = divmod(stamp, SECOND)
    header = SimpleNamespace(frame_id=parent, stamp=SimpleNamespace(sec=sec, nanosec=nanosec))
    body = SimpleNamespace(translation=vector, rotation=rotation)
    return SimpleNamespace(header=header, child_frame_id=child, transform=body)


def driven(T_base0_base, T_base_cam=T_BASE_CAM):
    """What a perfect stream says of a camera mounted so, when the base is there."""
    return inverse(T_base_cam) @ T_base0_base @ T_base_cam


def yaw(degrees, x=0.0, y=0.0):
    half = math.radians(degrees) / 2
    return rigid(rotation_matrix(np.array([0, 0, math.sin(half), math.cos(half)])), np.array([x, y, 0.0]))


@pytest.fixture
def robot():
    """Placement of a camera mounted on base_link, and its configuration."""
    config = NodeConfig(base_frame="base_link", scale=ScaleConfig(source="fixed", factor=1.0))
    placement = Placement(config)
    placement.receive_transforms([message("base_link", "lens", T_BASE_CAM)], static=True)
    return placement, config


@pytest.mark.parametrize(
    ("motion", "position", "heading"),
    [
        (yaw(0, x=1.0), (1, 0, 0), 0),  # forward is +x
        (yaw(0, y=1.0), (0, 1, 0), 0),  # left is +y
        (yaw(90), (0, 0, 0), 90),  # a turn to the left is positive, and moves the camera but not the base
        (yaw(-90, 2.0, -1.0), (2, -1, 0), -90),
    ],
)
def test_driving_a_robot_with_a_pitched_camera(robot, motion, position, heading):
    placement, config = robot
    placement.place(frame(0, np.eye(4)), 0, "lens", config)
    placed = placement.place(frame(1, driven(motion)), SECOND, "lens", config)
    assert placed.child == "base_link"
    np.testing.assert_allclose(placed.T_odom_child[:3, 3], position, atol=1e-12)
    forward = placed.T_odom_child[:3, 0]
    assert math.degrees(math.atan2(forward[1], forward[0])) == pytest.approx(heading)
    np.testing.assert_allclose(placed.T_odom_child[:3, 2], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(placed.T_odom_cam, motion @ T_BASE_CAM, atol=1e-12)


def test_a_point_ahead_is_ahead_and_one_to_the_left_is_left():
    """Without base_frame: the first camera is level, z is up."""
    config = NodeConfig()
    placed = Placement(config).place(frame(0, np.eye(4)), 0, "lens", config)
    optical = np.array([[0.0, 0, 2], [-1, 0, 2], [0, -1, 2]])  # ahead; left of that; above it
    np.testing.assert_allclose(transform(placed.T_odom_cam, optical), [[2, 0, 0], [2, 1, 0], [2, 0, 1]])
    assert placed.child == "lens"
    np.testing.assert_array_equal(placed.T_odom_child, placed.T_odom_cam)


def test_camera_motion_without_base_frame():
    config = NodeConfig()
    placement = Placement(config)
    moved = [placement.place(frame(i, rigid(np.eye(3), p)), i, "lens", config) for i, p in enumerate(np.eye(3))]
    # Optical right, down, forward is the world's right (-y), down (-z), forward (+x).
    positions = [placed.T_odom_child[:3, 3] for placed in moved]
    np.testing.assert_allclose(positions, [[0, -1, 0], [0, 0, -1], [1, 0, 0]])


def test_ground_points_of_a_mounted_camera_lie_on_the_ground(robot):
    """Depth, mounting and pose together: rays through the image end where the floor is."""
    placement, config = robot
    K = np.array([[100.0, 0, 50], [0, 100, 40], [0, 0, 1]])
    rows, columns = np.indices((80, 100))
    rays = np.stack([(columns - 50) / 100, (rows - 40) / 100, np.ones((80, 100))], -1) @ PITCHED.T
    depth = (-0.5 / rays[..., 2]).astype(np.float32)  # all rays go down
    placement.place(frame(0, np.eye(4)), 0, "lens", config)
    values = dict(intrinsics=K, depth=depth, confidence=np.ones_like(depth))
    placed = placement.place(frame(1, driven(yaw(40, 3.0, 1.0)), **values), 1, "lens", config)
    heights = transform(placed.T_odom_cam, placed.frame.points_cam())[..., 2]
    np.testing.assert_allclose(heights, 0, atol=1e-5)


def test_nothing_is_placed_before_the_mounting_is_known():
    config = NodeConfig(base_frame="base_link")
    placement = Placement(config)
    with pytest.raises(NotPlaced, match=r"mounting on base_link is not known: .*static_transform_publisher"):
        placement.place(frame(0, np.eye(4)), 0, "lens", config)
    placement.receive_transforms([message("base_link", "lens", T_BASE_CAM)], static=True)
    placed = placement.place(frame(1, driven(yaw(0, x=1.0))), SECOND, "lens", config)
    np.testing.assert_allclose(placed.T_odom_child[:3, 3], [1, 0, 0], atol=1e-12)
    assert placed.starts


def test_a_camera_frame_that_is_the_world_is_no_child_of_it():
    config = NodeConfig()
    with pytest.raises(NotPlaced, match="frame_id is world_frame, odom; give world_frame another name"):
        Placement(config).place(frame(0, np.eye(4)), 0, "odom", config)


def test_a_mounting_that_moves_is_not_the_robots_motion():
    """A camera that pans on a standing robot."""
    config = NodeConfig(base_frame="base_link")
    placement = Placement(config)
    mounted = [yaw(10 * i) @ T_BASE_CAM for i in range(4)]
    for i, T in enumerate(mounted):
        placement.receive_transforms([message("base_link", "lens", T, i * SECOND)], static=False)
        T_first_cam = inverse(mounted[0]) @ T
        placed = placement.place(frame(i, T_first_cam), i * SECOND, "lens", config)
        np.testing.assert_allclose(placed.T_odom_child, np.eye(4), atol=1e-9)


def test_a_new_world_starts_at_the_origin():
    config = changed(NodeConfig(), {"scale.source": "fixed", "scale.factor": 3.0})
    placement = Placement(config)
    steps = [rigid(np.eye(3), np.array([0, 0, z])) for z in (0.0, 1.0, 0.0, 2.0)]
    indices = (0, 1, 0, 1)
    placed = [
        placement.place(frame(i, T), s, "lens", config) for s, (i, T) in enumerate(zip(indices, steps, strict=True))
    ]
    assert [p.T_odom_child[0, 3] for p in placed] == [0, 3, 0, 6]
    assert [p.starts for p in placed] == [True, False, True, False]
    assert (placed[1].frame.depth == 6).all()
    assert (placed[1].scale.scale_source, placed[1].scale.scale) == ("fixed", 3.0)


def test_no_metres_are_made_up_while_the_scale_is_unknown():
    config = changed(NodeConfig(), {"scale.source": "odometry", "scale.window": 5, "scale.min_motion": 0.05})
    placement = Placement(config)
    for i in range(12):
        placement.receive_pose(i * SECOND // 10, rigid(np.eye(3), np.array([0.1 * i, 0, 0])))
        standing = frame(i, rigid(np.eye(3), np.array([0, 0, 0.05 * i])))
        try:
            placed = placement.place(standing, i * SECOND // 10, "lens", config)
        except NotPlaced as error:
            assert i < 4
            assert "the scale is not known yet" in error.args[0] and "reference/odometry" in error.args[0]
        else:
            # 0.1 m by 0.05 units; the way before the scale was known counts too.
            assert placed.scale.scale == pytest.approx(2.0)
            assert placed.T_odom_child[0, 3] == pytest.approx(0.1 * i)
    assert placed.scale.scale_measurements >= 8


def test_scale_from_motion_in_tf():
    config = changed(
        NodeConfig(),
        {
            "scale.source": "tf",
            "scale.parent_frame": "wheels",
            "scale.child_frame": "base_link",
            "base_frame": "base_link",
        },
    )
    placement = Placement(config)
    placement.receive_transforms([message("base_link", "lens", T_BASE_CAM)], static=True)
    placed = None
    for i in range(20):
        T = yaw(6 * i, x=0.2 * i)  # at 10 Hz; the camera sees half of it in its unit
        placement.receive_transforms([message("wheels", "base_link", T, i * SECOND // 10)], static=False)
        T_first_cam = driven(T)
        T_first_cam[:3, 3] *= 0.5
        try:
            placed = placement.place(frame(i, T_first_cam), i * SECOND // 10, "lens", config)
        except NotPlaced:
            assert placed is None
    assert placed.scale.scale == pytest.approx(2.0, rel=1e-6)
    np.testing.assert_allclose(placed.T_odom_child, yaw(6 * 19, x=0.2 * 19), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "topics"),
    [
        ({}, []),
        ({"base_frame": "base_link"}, ["/tf", "/tf_static"]),
        ({"scale.source": "odometry"}, ["reference/odometry"]),
        ({"scale.source": "depth", "base_frame": "b"}, ["/tf", "/tf_static", "reference/depth"]),
        ({"scale.source": "tf", "scale.parent_frame": "a", "scale.child_frame": "b"}, ["/tf", "/tf_static"]),
    ],
)
def test_only_what_the_settings_need_is_listened_to(settings, topics):
    assert references(changed(NodeConfig(), settings)) == topics
