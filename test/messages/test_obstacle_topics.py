# SPDX-License-Identifier: Apache-2.0
"""Obstacle clouds, and depth in other encodings, as messages of rclpy's classes and of rosbags'."""

import struct
from dataclasses import replace

import cv2
import numpy as np
import pytest
from support.messages import STAMP, TYPES, convert, place, rclpy_class
from support.mounted import T_BASE_CAM

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.geometry import inverse
from xsvggt_ros.messages import topics
from xsvggt_ros.messages.decode import decode_depth, stamp_ns
from xsvggt_ros.messages.topics import COMPRESSED, OBSTACLES, TOPICS, FrameMessages, outputs
from xsvggt_ros.obstacles import obstacle_points, sight_ends
from xsvggt_ros.settings import changed

(DEPTH_PNG,) = COMPRESSED
METRIC = {"base_frame": "base_link", "scale.source": "odometry"}
EVERYTHING = {"obstacles.min_height": -100, "obstacles.max_height": 100, "obstacles.rate": 1000}


def configured(**changes):
    return changed(NodeConfig(), {name.replace("__", "."): value for name, value in changes.items()})


def clouds(messages, frame, config, stamp=STAMP):
    """What a frame of a camera that is mounted as in support/mounted.py gives."""
    placed = place(frame, stamp=stamp)
    placed = replace(placed, child="base_link", T_odom_child=placed.T_odom_cam @ inverse(T_BASE_CAM))
    made = messages.convert(placed, config)
    return {topic: made[topic]() for topic in OBSTACLES if topic in made}


def xyz(msg):
    assert [(f.name, f.offset, f.datatype, f.count) for f in msg.fields] == [
        (n, 4 * i, 7, 1) for i, n in enumerate("xyz")
    ]
    assert (msg.height, msg.point_step, msg.row_step) == (1, 12, 12 * msg.width)
    assert len(msg.data) == msg.row_step and msg.is_dense and not msg.is_bigendian
    return np.frombuffer(bytes(msg.data), "<f4").reshape(msg.width, 3)


def test_clouds_are_in_the_base_with_the_images_stamp(message_class, frame):
    config = configured(**METRIC, **EVERYTHING)
    made = clouds(FrameMessages(message_class), frame, config)
    assert list(made) == list(OBSTACLES)
    for msg, points in zip(made.values(), (obstacle_points, sight_ends), strict=True):
        assert isinstance(msg, message_class("sensor_msgs/msg/PointCloud2"))
        assert (msg.header.frame_id, stamp_ns(msg.header)) == ("base_link", STAMP)
        expected = points(frame, T_BASE_CAM, config.obstacles)
        assert len(expected) > 5
        np.testing.assert_allclose(xyz(msg), expected, atol=1e-5)


def test_an_empty_cloud_is_a_message_too(message_class, frame):
    config = configured(**METRIC, obstacles__min_height=50, obstacles__max_height=51)
    made = clouds(FrameMessages(message_class), frame, config)
    assert len(xyz(made["~/obstacles"])) == 0 < len(xyz(made["~/obstacles/clearing"]))


def test_the_confidence_threshold_holds_for_obstacles_too(message_class, frame):
    config = configured(**METRIC, **EVERYTHING, confidence_threshold=float(frame.confidence.max()) + 1)
    assert not any(len(xyz(msg)) for msg in clouds(FrameMessages(message_class), frame, config).values())


@pytest.mark.parametrize("changes", [{}, {"base_frame": "base_link"}, {"scale.source": "odometry"}])
def test_without_base_or_metres_there_are_none(message_class, frame, changes):
    config = configured(**changes)
    assert not clouds(FrameMessages(message_class), frame, config)
    assert set(outputs(config)) == set(TOPICS)
    assert set(outputs(configured(**METRIC))) == set(TOPICS) | set(OBSTACLES)


def test_they_come_at_their_own_rate_and_not_without_depth(message_class, frame):
    messages, config = FrameMessages(message_class), configured(**METRIC, obstacles__rate=5.0)
    stamps = [STAMP + i * 10**9 // 30 for i in range(60)]
    made = [clouds(messages, frame, config, stamp) for stamp in stamps]
    assert sum(map(bool, made)) == 10
    pose_only = replace(frame, status=replace(frame.status, dense=False))
    messages = FrameMessages(message_class)
    assert not clouds(messages, pose_only, config)
    assert clouds(messages, frame, config, STAMP + 10**9 // 30)  # the turn was not taken by one without depth


def test_both_libraries_write_the_same_clouds(frame):
    serialization = pytest.importorskip("rclpy.serialization")
    config = configured(**METRIC, **EVERYTHING, compressed_depth=True, depth_encoding="16UC1")
    made = [
        clouds(FrameMessages(c), frame, config) | {DEPTH_PNG: convert(FrameMessages(c), frame, config)[DEPTH_PNG]}
        for c in (rclpy_class, lambda name: TYPES.types[name])
    ]
    for topic, name in (OBSTACLES | COMPRESSED).items():
        decoded = TYPES.deserialize_cdr(serialization.serialize_message(made[0][topic]), name)
        assert bytes(TYPES.serialize_cdr(decoded, name)) == bytes(TYPES.serialize_cdr(made[1][topic], name)), topic


def with_depth(frame, *values):
    """The frame with these depths in its first row."""
    depth = frame.depth.copy()
    depth[0, : len(values)] = values
    return replace(frame, depth=depth)


def test_depth_in_millimetres(message_class, frame):
    frame = with_depth(frame, 0.0004, 0.0006, 65.5354, 65.536, 1e9, 2.3456)
    config = configured(depth_encoding="16UC1", confidence_threshold=2.0)
    msg = convert(FrameMessages(message_class), frame, config)["~/depth/image"]
    assert (msg.encoding, msg.step, msg.is_bigendian, msg.height, msg.width) == ("16UC1", 16, 0, 6, 8)
    steps = np.frombuffer(bytes(msg.data), "<u2").reshape(6, 8)
    sure = frame.confidence >= 2.0
    assert 0 < sure[0, :6].sum() < 6 and not steps[~sure].any()
    given = np.where(sure, steps, 0)[0, :6]
    assert given.tolist() == np.where(sure[0, :6], [0, 1, 65535, 0, 0, 2346], 0).tolist()
    np.testing.assert_allclose(steps[1:][sure[1:]] / 1000, frame.depth[1:][sure[1:]], atol=0.00051)
    read = decode_depth(msg)  # as a reference of ours
    assert np.array_equal(np.isnan(read), steps == 0)


def decoded(msg):
    """Depth in metres [h, w], NaN: none, by the arithmetic of compressed_depth_image_transport."""
    encoding, _, how = msg.format.partition("; ")
    assert how == "compressedDepth png"
    data = bytes(msg.data)
    kind, a, b = struct.unpack("=iff", data[:12])
    codes = cv2.imdecode(np.frombuffer(data[12:], np.uint8), cv2.IMREAD_UNCHANGED)
    assert kind == 0 and codes.dtype == np.uint16
    if encoding == "16UC1":
        return np.where(codes > 0, codes / 1000, np.nan)
    assert encoding == "32FC1"
    return np.where(codes > 0, a / (codes.astype(np.float32) - b), np.nan)


@pytest.mark.parametrize("encoding", ["32FC1", "16UC1"])
def test_compressed_depth_is_what_its_transport_decodes(message_class, frame, encoding):
    frame = with_depth(frame, 0.2, 0.5, 1.0, 5.0, 20.0, 60.0, 99.0, 1000.0)
    config = configured(depth_encoding=encoding, compressed_depth=True, confidence_threshold=1.5)
    made = convert(FrameMessages(message_class), frame, config)
    msg = made[DEPTH_PNG]
    assert (msg.header.frame_id, stamp_ns(msg.header)) == ("lens", STAMP)
    depth, known = decoded(msg), (frame.confidence >= 1.5) & (frame.depth <= (100 if encoding == "32FC1" else 65.535))
    assert 0.4 < known.mean() < 1 and np.array_equal(np.isfinite(depth), known)
    step = frame.depth**2 / 10_100 if encoding == "32FC1" else 0.001  # half of one is the error
    assert (np.abs(depth - frame.depth)[known] <= 0.55 * np.broadcast_to(step, depth.shape)[known]).all()


def test_depth_is_made_once_for_both_of_its_topics(message_class, frame, monkeypatch):
    asked, make = [], topics.sure_depth
    monkeypatch.setattr(topics, "sure_depth", lambda *args: asked.append(args) or make(*args))
    made = convert(FrameMessages(message_class), frame, configured(compressed_depth=True))
    assert {"~/depth/image", DEPTH_PNG} <= made.keys() and len(asked) == 1


def test_compressed_depth_is_made_where_it_is_asked_for(message_class, frame):
    assert DEPTH_PNG not in convert(FrameMessages(message_class), frame)
    assert DEPTH_PNG not in outputs(NodeConfig())
    assert DEPTH_PNG in outputs(configured(compressed_depth=True))
