# SPDX-License-Identifier: Apache-2.0
"""The libraries of a ROS distribution, where there are any, and what stands for them say the same."""

import os
import subprocess
import sys

import numpy as np
import pytest
from rosbags.image import image_to_cvimage
from scipy.spatial.transform import Rotation
from support.frames import frame as synthetic
from support.messages import convert, rclpy_class
from support.paths import ROOT

from xsvggt_ros.config import NodeConfig, OutputConfig
from xsvggt_ros.frame import Tracks
from xsvggt_ros.geometry import quaternion_xyzw, rigid, rotation_matrix
from xsvggt_ros.messages import encode, libraries
from xsvggt_ros.messages.decode import ENCODINGS
from xsvggt_ros.messages.topics import FrameMessages
from xsvggt_ros.placement.tf_buffer import TransformBuffer

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
EIGHT_BITS = sorted({(name, channels) for name, channels, _ in ENCODINGS.values()})
LINKS = [("map", "odom"), ("odom", "base"), ("base", "head"), ("head", "camera"), ("base", "arm")]
BROKEN_BRIDGE = """
import os


class CvBridge:
    def cv2_to_imgmsg(self, image, encoding, header=None):
        os.abort()

    imgmsg_to_cv2 = cv2_to_imgmsg
"""
FOREIGN_BRIDGE = """
import sys

sys.stderr.write("A module that was compiled using NumPy 1.x cannot be run")
raise SystemError("initialization of cv_bridge_boost raised unreported exception")
"""
WAITS = "import time; time.sleep(60)"
DECODES = """
from types import SimpleNamespace
from xsvggt_ros.messages.decode import decode_image
msg = SimpleNamespace(encoding="bgr8", height=1, width=1, step=3, is_bigendian=0, data=bytes([1, 2, 3]))
assert decode_image(msg).tolist() == [[[3, 2, 1]]]
"""


@pytest.fixture
def tracked():
    tracks = Tracks(
        np.arange(3),
        np.array([[1, 2], [3.5, 4], [0, 0]], np.float32),
        np.array([True, True, False]),
        np.array([0.5, 0.75, 0], np.float32),
    )
    return synthetic(2, tracks=tracks)


def made(frame):
    """The messages of a frame in rclpy's classes, by topic."""
    config = NodeConfig(output=OutputConfig(confidence_threshold=1.5, point_stride=1))
    return convert(FrameMessages(rclpy_class), frame, config)


def rotations(count):
    """[N, 3, 3], half turns among them."""
    turns = Rotation.from_rotvec(np.pi * np.eye(3)).as_matrix()
    return np.concatenate([turns, Rotation.random(count, random_state=0).as_matrix()])


# --- clouds and images ------------------------------------------------------------------------------


def test_clouds_are_those_of_sensor_msgs_py(tracked, monkeypatch):
    point_cloud2 = pytest.importorskip("sensor_msgs_py.point_cloud2")
    theirs = made(tracked)
    monkeypatch.setattr(encode, "create_cloud", None)
    ours = made(tracked)
    for topic in ("~/points", "~/tracks"):
        assert ours[topic] == theirs[topic], topic
    read = point_cloud2.read_points_numpy(ours["~/points"], ["x", "y", "z"]).reshape(6, 8, 3)
    expected = np.where((tracked.confidence >= 1.5)[..., None], tracked.points_cam(), np.nan)
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_array_equal(point_cloud2.read_points(ours["~/tracks"])["id"], tracked.tracks.ids)


@pytest.mark.skipif(libraries.cv_bridge is None, reason="needs cv_bridge")
def test_images_are_those_of_cv_bridge(tracked, monkeypatch):
    theirs = made(tracked)
    monkeypatch.setattr(encode, "cv_bridge", None)
    ours = made(tracked)
    assert ours["~/depth/image"] == theirs["~/depth/image"]
    assert ours["~/confidence/image"] == theirs["~/confidence/image"]


@pytest.mark.skipif(libraries.cv_bridge is None, reason="needs cv_bridge")
@pytest.mark.parametrize(("encoding", "channels"), EIGHT_BITS)
def test_images_are_read_as_by_cv_bridge(encoding, channels):
    samples = np.random.default_rng(0).integers(0, 256, (8, 10, channels), dtype=np.uint8)
    msg = rclpy_class("sensor_msgs/msg/Image")(height=8, width=10, encoding=encoding, step=10 * channels)
    msg.data.frombytes(samples.tobytes())
    theirs = libraries.cv_bridge.imgmsg_to_cv2(msg, "rgb8")
    np.testing.assert_array_equal(image_to_cvimage(msg, "rgb8"), theirs)


@pytest.mark.parametrize("bridge", [BROKEN_BRIDGE, FOREIGN_BRIDGE])
def test_a_cv_bridge_for_another_numpy_is_left_alone(bridge, tmp_path):
    """Built for numpy 1 it ends the process at its first conversion, or says so and fails as it is imported."""
    (tmp_path / "cv_bridge.py").write_text(bridge)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    tried = subprocess.run([sys.executable, "-c", DECODES], env=environment, capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr
    assert "compiled" not in tried.stderr


def test_a_cv_bridge_that_never_answers_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "cv_bridge.py").write_text(WAITS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(libraries, "PROBE_S", 0.5)
    assert libraries._cv_bridge() is None


# --- transforms -------------------------------------------------------------------------------------


def test_quaternions_are_those_of_tf_transformations():
    transformations = pytest.importorskip("tf_transformations")
    for rotation in rotations(50):
        theirs = transformations.quaternion_from_matrix(rigid(rotation, np.zeros(3)))
        ours = quaternion_xyzw(rotation)
        assert min(abs(ours - theirs).max(), abs(ours + theirs).max()) < 1e-14  # q and -q are the same rotation
        np.testing.assert_allclose(transformations.quaternion_matrix(ours)[:3, :3], rotation_matrix(ours), atol=1e-14)


def stamped(parent, child, stamp_ns, pose):
    encoder = encode.Encoder(rclpy_class)
    return encoder.transform(encoder.header(stamp_ns, parent), child, encoder.pose(pose))


def matrix(transform):
    t, q = transform.translation, transform.rotation
    return rigid(rotation_matrix(np.array([q.x, q.y, q.z, q.w])), np.array([t.x, t.y, t.z]))


def test_transforms_are_looked_up_as_by_tf2_ros():
    tf2_ros = pytest.importorskip("tf2_ros")
    from rclpy.time import Time

    rng = np.random.default_rng(1)
    theirs, ours = tf2_ros.Buffer(), TransformBuffer()
    for tenth in range(50):
        for i, (parent, child) in enumerate(LINKS):
            static = i >= 3
            pose = rigid(rotations(300)[3 + 5 * tenth + i], rng.normal(size=3))
            msg = stamped(parent, child, NOW + tenth * SECOND // 10, pose)
            (theirs.set_transform_static if static else theirs.set_transform)(msg, "test")
            ours.add([msg], static)
    frames = ["map", *(child for _, child in LINKS)]
    for _ in range(200):
        target, source = rng.choice(frames, 2)
        stamp = NOW + int(rng.uniform(0, 4.9) * SECOND)
        expected = matrix(theirs.lookup_transform(target, source, Time(nanoseconds=stamp)).transform)
        np.testing.assert_allclose(ours.lookup(target, source, stamp), expected, atol=1e-12)


def test_transforms_are_broadcast_as_by_tf2_ros(tracked):
    tf2_ros = pytest.importorskip("tf2_ros")
    sent = []

    class Node:
        def create_publisher(self, kind, topic, qos):
            assert (kind, topic) == (rclpy_class("tf2_msgs/msg/TFMessage"), "/tf")
            publisher = type("Publisher", (), {"publish": staticmethod(sent.append)})
            return publisher()

    ours = made(tracked)["/tf"]
    tf2_ros.TransformBroadcaster(Node()).sendTransform(list(ours.transforms))
    assert sent == [ours]
