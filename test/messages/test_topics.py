# SPDX-License-Identifier: Apache-2.0
"""Placed frames to messages, of rclpy's classes and of rosbags'."""

from dataclasses import replace

import numpy as np
import pytest
from support.messages import COUNTS, PERFORMANCE, SCALE, STAMP, TYPES, cloud_of, convert, rclpy_class

from xsvggt_ros.config import NodeConfig, OutputConfig
from xsvggt_ros.frame import Tracks
from xsvggt_ros.geometry import rigid, ros_pose, rotation_matrix
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.topics import TOPICS, FrameMessages
from xsvggt_ros.preprocess import Resize


def test_one_message_per_topic_with_the_stamp_and_frame_of_its_image(message_class, frame):
    made = convert(FrameMessages(message_class), frame)
    assert list(made) == list(TOPICS)
    frames = {"~/odometry": "odom", "~/path": "odom"}
    for topic, msg in made.items():
        header = msg.transforms[0].header if topic == "/tf" else msg.header
        assert stamp_ns(header) == STAMP
        assert header.frame_id == ("odom" if topic == "/tf" else frames.get(topic, "lens"))
        assert isinstance(msg, message_class(TOPICS[topic]))


def test_both_libraries_write_the_same_messages(frame):
    serialization = pytest.importorskip("rclpy.serialization")
    config = NodeConfig(output=OutputConfig(confidence_threshold=1.5, point_stride=3))
    ours, theirs = (convert(FrameMessages(c), frame, config) for c in (rclpy_class, lambda name: TYPES.types[name]))
    for topic, name in TOPICS.items():
        decoded = TYPES.deserialize_cdr(serialization.serialize_message(ours[topic]), name)
        assert bytes(TYPES.serialize_cdr(decoded, name)) == bytes(TYPES.serialize_cdr(theirs[topic], name)), topic


def test_depth_and_confidence_images(message_class, frame):
    made = convert(FrameMessages(message_class), frame, NodeConfig(output=OutputConfig(confidence_threshold=2.0)))
    for topic in ("~/depth/image", "~/confidence/image"):
        msg = made[topic]
        assert (msg.height, msg.width, msg.encoding, msg.step, msg.is_bigendian) == (6, 8, "32FC1", 32, 0)
    depth, confidence = (
        np.frombuffer(made[f"~/{t}/image"].data, np.float32).reshape(6, 8) for t in ("depth", "confidence")
    )
    assert np.array_equal(confidence, frame.confidence)
    assert np.array_equal(np.isnan(depth), frame.confidence < 2.0)
    assert np.array_equal(depth[frame.confidence >= 2.0], frame.depth[frame.confidence >= 2.0])


def test_camera_info_describes_the_depth_image(message_class, frame):
    msg = convert(FrameMessages(message_class), frame)["~/depth/camera_info"]
    assert (msg.height, msg.width, msg.distortion_model, list(msg.d)) == (6, 8, "plumb_bob", [0.0] * 5)
    assert np.array_equal(np.reshape(msg.r, (3, 3)), np.eye(3))
    assert np.array_equal(np.reshape(msg.p, (3, 4)), np.c_[frame.intrinsics, np.zeros(3)])


def test_a_frame_without_depth_has_no_message_that_would_show_it(message_class, frame):
    pose_only = replace(frame, status=replace(frame.status, dense=False))
    made = convert(FrameMessages(message_class), pose_only)
    assert set(TOPICS) - set(made) == {"~/depth/image", "~/confidence/image", "~/points"}
    assert not made["~/status"].dense
    assert made["~/depth/camera_info"].height == frame.depth.shape[0]


@pytest.mark.parametrize("stride", [1, 2, 5, 100])
def test_points_are_the_unprojected_depth_in_the_colours_of_the_image(message_class, frame, stride):
    config = NodeConfig(output=OutputConfig(confidence_threshold=2.0, point_stride=stride))
    made = convert(FrameMessages(message_class), frame, config)
    msg = made["~/points"]
    xyz, rgb = cloud_of(msg)
    depth = np.frombuffer(made["~/depth/image"].data, np.float32).reshape(6, 8)
    K = np.reshape(made["~/depth/camera_info"].k, (3, 3))
    v, u = np.indices(depth.shape)
    expected = np.stack([(u - K[0, 2]) / K[0, 0] * depth, (v - K[1, 2]) / K[1, 1] * depth, depth], -1)
    valid = np.isfinite(depth)[..., None]
    np.testing.assert_allclose(xyz, np.where(valid, expected, np.nan)[::stride, ::stride], rtol=1e-6)
    assert np.array_equal(rgb, frame.image[::stride, ::stride])
    assert not msg.is_dense


def test_tf_odometry_and_path_agree_on_the_pose(message_class, frame):
    made = convert(FrameMessages(message_class), frame)
    (stamped,) = made["/tf"].transforms
    odometry, pose = made["~/odometry"], made["~/path"].poses[-1].pose
    T_odom_cam = ros_pose(frame.T_first_cam)
    for position, rotation in (
        (stamped.transform.translation, stamped.transform.rotation),
        (odometry.pose.pose.position, odometry.pose.pose.orientation),
        (pose.position, pose.orientation),
    ):
        np.testing.assert_allclose([position.x, position.y, position.z], T_odom_cam[:3, 3])
        quaternion = np.array([rotation.x, rotation.y, rotation.z, rotation.w])
        np.testing.assert_allclose(rotation_matrix(quaternion), T_odom_cam[:3, :3], atol=1e-12)
    assert stamped.child_frame_id == odometry.child_frame_id == "lens"


def test_frames_and_tf_follow_the_settings(message_class, frame):
    config = NodeConfig(world_frame="map", publish_tf=False)
    made = convert(FrameMessages(message_class), frame, config, child="base_link")
    assert "/tf" not in made
    assert (made["~/odometry"].header.frame_id, made["~/odometry"].child_frame_id) == ("map", "base_link")
    assert made["~/points"].header.frame_id == "lens"


def test_inverted_tf_is_the_inverse(message_class, frame):
    (usual,), (inverted,) = (
        convert(FrameMessages(message_class), frame, NodeConfig(invert_tf=invert))["/tf"].transforms
        for invert in (False, True)
    )
    assert (usual.header.frame_id, usual.child_frame_id) == ("odom", "lens")
    assert (inverted.header.frame_id, inverted.child_frame_id) == ("lens", "odom")
    np.testing.assert_allclose(matrix(inverted.transform) @ matrix(usual.transform), np.eye(4), atol=1e-12)


def matrix(transform):
    p, q = transform.translation, transform.rotation
    return rigid(rotation_matrix(np.array([q.x, q.y, q.z, q.w])), np.array([p.x, p.y, p.z]))


def test_path_is_bounded_and_ends_with_its_world(message_class, frame):
    messages = FrameMessages(message_class)
    config = NodeConfig(path_length=3)
    stamps = [stamp_ns(p.header) for n in range(5) for p in convert(messages, frame, config, n)["~/path"].poses][-3:]
    assert stamps == [2, 3, 4]
    assert len(convert(messages, frame, NodeConfig(path_length=1))["~/path"].poses) == 1
    assert len(convert(messages, frame)["~/path"].poses) == 2
    assert len(convert(messages, frame, starts=True)["~/path"].poses) == 1


def test_tracks_are_a_cloud_that_tells_points_apart(message_class, frame):
    assert "~/tracks" not in convert(FrameMessages(message_class), frame)
    pixels, seen = np.array([[2, 3], [7, 5], [5, 1]], np.float32), np.array([True, False, True])
    tracks = Tracks(np.array([4, 9, 2**31]), pixels, seen, np.array([0.5, 0.25, 1], np.float32))
    resize = Resize(scale_x=0.5, scale_y=0.25, width=8, scaled_height=10, height=6, top=2)
    msg = convert(FrameMessages(message_class), replace(frame, tracks=tracks, resize=resize))["~/tracks"]
    assert (msg.header.frame_id, msg.height, msg.width, msg.row_step) == ("lens", 1, 3, 3 * msg.point_step)
    kinds = {7: "<f4", 6: "<u4", 2: "u1"}
    layout = {"names": [f.name for f in msg.fields], "formats": [kinds[f.datatype] for f in msg.fields]}
    layout |= {"offsets": [f.offset for f in msg.fields], "itemsize": msg.point_step}
    cloud = np.frombuffer(bytes(msg.data), np.dtype(layout))
    assert cloud["id"].tolist() == [4, 9, 2**31] and cloud["visible"].tolist() == [1, 0, 1]
    np.testing.assert_allclose(cloud["confidence"], tracks.confidence)
    points = np.stack([cloud[axis] for axis in "xyz"], -1)
    np.testing.assert_allclose(points[[0, 2]], frame.points_cam()[[3, 1], [2, 5]], rtol=1e-5)
    assert np.isnan(points[1]).all()
    shown = np.stack([cloud["u"], cloud["v"]], -1)
    np.testing.assert_allclose((shown + 0.5) * [0.5, 0.25] - 0.5 - [0, 2], pixels, atol=1e-5)


def test_status_carries_every_figure(message_class, frame):
    msg = convert(FrameMessages(message_class), frame)["~/status"]
    figures = vars(frame.status) | vars(frame.status.segments)
    for name, value in figures.items():
        if name not in ("seconds", "segments"):
            assert getattr(msg, name) == value, name
    assert {stage: getattr(msg, f"{stage}_seconds") for stage in frame.status.seconds} == frame.status.seconds
    for values in (COUNTS, PERFORMANCE, SCALE):
        for name, value in vars(values).items():
            assert getattr(msg, name) == value, name
