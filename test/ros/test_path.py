# SPDX-License-Identifier: Apache-2.0
import pytest

pytest.importorskip("rclpy")

from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from nav_msgs.msg import Path
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header

from xsvggt_ros.ros import path as path_module
from xsvggt_ros.ros.path import SerializedPath

LENGTH = 5


def pose(i, frame):
    at = Pose(position=Point(x=i + 0.1, y=i + 0.2, z=i + 0.3), orientation=Quaternion(x=0.4, y=0.5, z=0.6, w=i + 0.7))
    return PoseStamped(header=Header(stamp=Time(sec=i, nanosec=10 * i), frame_id=frame), pose=at)


def growing(frame, count):
    """Paths of at most LENGTH poses, the same ones from path to path."""
    poses = []
    for i in range(count):
        poses = [*poses, pose(i, frame)][-LENGTH:]
        yield Path(header=poses[-1].header, poses=poses)


@pytest.mark.parametrize("frame", ["", *("odom_frame"[:n] for n in range(1, 9))])
def test_a_growing_path_is_serialized_as_by_rclpy(frame):
    """Whatever the alignment: the length of the frame's name decides it."""
    serialized = SerializedPath()
    for path in growing(frame, 3 * LENGTH):
        data, expected = serialized.serialize(path), serialize_message(path)
        # Bytes between values are whatever was in memory, in rclpy's too.
        assert deserialize_message(data, Path) == path and len(data) == len(expected)


def test_another_path_begins_anew():
    serialized = SerializedPath()
    for path in (*growing("odom", LENGTH), *growing("map", 2)):
        data = serialized.serialize(path)
    assert deserialize_message(data, Path) == path and len(path.poses) == 2


def test_a_pose_is_converted_once(monkeypatch):
    """But for the first, whose bytes depend on what is before it."""
    converted = []

    def count(message):
        converted.append(len(message.poses) if isinstance(message, Path) else 1)
        return serialize_message(message)

    monkeypatch.setattr(path_module, "serialize_message", count)
    serialized = SerializedPath()
    for path in growing("odom", 100):
        serialized.serialize(path)
    assert sum(converted) == 200
