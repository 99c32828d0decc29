# SPDX-License-Identifier: Apache-2.0
"""Messages to arrays and back, with the message classes of rclpy and of rosbags."""

import math
import os
from dataclasses import dataclass, replace
from importlib import import_module
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from support.paths import ROOT

from xsvggt_ros.config import NodeConfig, OutputConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import rigid, ros_pose, rotation_matrix
from xsvggt_ros.messages.decode import decode_depth, decode_image, decode_pose, stamp_ns
from xsvggt_ros.messages.topics import TOPICS, FrameMessages
from xsvggt_ros.placement.covariance import pose_covariance
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.status import ImageCounts, Performance, ScaleStatus, Status, StepStatus

os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"  # rclpy's messages then refuse what they would publish as garbage

STATUS = (ROOT / "msg" / "StreamStatus.msg").read_text()
TYPES = get_typestore(Stores.LATEST)
TYPES.register(get_types_from_msg(STATUS, "xsvggt_ros/msg/StreamStatus"))
STAMP = 1_700_000_000_123_456_789


def rclpy_class(name):
    package, _, kind = name.split("/")
    return getattr(import_module(f"{package}.msg"), kind)


@pytest.fixture(params=["rclpy", "rosbags"])
def message_class(request):
    if request.param == "rosbags":
        return lambda name: TYPES.types[name]
    pytest.importorskip("rclpy")
    return rclpy_class


@dataclass
class FakeImage:
    """The fields of a sensor_msgs/Image."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: bytes


@dataclass
class FakeCompressedImage:
    """The fields of a sensor_msgs/CompressedImage."""

    format: str
    data: bytes


def image(pixels, encoding, padding=0):
    """Image of an array [H, W] or [H, W, C], with so many bytes after each row."""
    rows = pixels.reshape(len(pixels), -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    return FakeImage(pixels.shape[0], pixels.shape[1], encoding, 0, rows.shape[1], rows.tobytes())


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def frame(rgb):
    rng = np.random.default_rng(1)
    T = np.eye(4)
    T[:3, :3] = rotation_matrix(np.array([0.1, -0.3, 0.2, 0.9]))
    T[:3, 3] = 1.5, -0.25, 3.0
    return Frame(
        index=3,
        T_first_cam=T,
        intrinsics=np.array([[9.0, 0.0, 3.75], [0.0, 9.5, 2.5], [0.0, 0.0, 1.0]]),
        depth=rng.uniform(1, 4, (6, 8)).astype(np.float32),
        confidence=rng.uniform(1, 3, (6, 8)).astype(np.float32),
        image=rgb,
        status=StepStatus(
            frame=3, event="why", policy="xstream", tokens=106, budget_tokens=212, floor_tokens=106, evicted_tokens=53,
            key_bits=2, value_bits=8, cache_bytes=2**33, scratch_bytes=7, camera_frames=4,
            seconds=dict(preprocess=0.25, encoder=0.5, aggregator=0.75, camera=1.0, dense=1.25, step=4.0),
        ),
    )  # fmt: skip


COUNTS = ImageCounts(9, 1, 2, 3, 4, 5, 6, 7)
PERFORMANCE = Performance(30.5, 0.25, 0.5, 0.125, 3)
SCALE = ScaleStatus("odometry", 2.5, 0.0625, 7)


def place(frame, child="lens", scale=SCALE, starts=False, stamp=STAMP):
    T_odom_cam = ros_pose(frame.T_first_cam)
    return Placed(stamp, "lens", frame, T_odom_cam, T_odom_cam, child, scale, starts)


def convert(messages, frame, config=None, stamp=STAMP, **placed):
    made = messages.convert(place(frame, stamp=stamp, **placed), config or NodeConfig())
    status = messages.status(Status(frame.status, SCALE, COUNTS, PERFORMANCE), stamp, "lens")
    return {topic: make() for topic, make in made.items()} | {"~/status": status}


def cloud_of(msg):
    """x y z float32 [h, w, 3] and rgb uint8 [h, w, 3] of a PointCloud2, read by its own description."""
    assert [(f.name, f.datatype, f.count) for f in msg.fields] == [(n, 7, 1) for n in ("x", "y", "z", "rgb")]
    layout = {f.name: ("<f4" if f.name != "rgb" else "<u4", f.offset) for f in msg.fields}
    names, (formats, offsets) = list(layout), zip(*layout.values(), strict=True)
    dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": msg.point_step})
    points = np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.row_step).view(dtype)
    packed = points["rgb"]
    return np.stack([points[n] for n in "xyz"], -1), np.stack([packed >> s & 255 for s in (16, 8, 0)], -1)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "order"),
    [("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0]), ("8UC3", [2, 1, 0]), ("rgba8", [0, 1, 2, 0]), ("bgra8", [2, 1, 0, 0])],
)
def test_colour_is_exact_whatever_the_order_and_padding(rgb, encoding, order, padding):
    assert np.array_equal(decode_image(image(rgb[..., order], encoding, padding)), rgb)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_mono_becomes_grey(rgb, encoding):
    grey = np.ascontiguousarray(rgb[..., 0])
    assert np.array_equal(decode_image(image(grey, encoding, 3)), np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_16_bit_mono_fills_the_8_bit_range_whatever_the_sensor(encoding, bits):
    ramp = np.linspace(0, 2**bits - 1, 256).round().astype("<u2").reshape(16, 16)
    decoded = decode_image(image(ramp, encoding, 2))
    assert decoded.dtype == np.uint8
    assert np.abs(decoded[..., 1].ravel().astype(int) - np.arange(256)).max() <= 1


def test_flat_16_bit_image_decodes():
    assert decode_image(image(np.full((4, 4), 1000, "<u2"), "mono16")).shape == (4, 4, 3)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_gives_the_colour_that_was_filtered(pattern, bits):
    colour = {"r": 255, "g": 120, "b": 0}
    tile = np.array([colour[c] for c in pattern], np.uint8).reshape(2, 2)
    mosaic = np.tile(tile, (4, 4)).astype(f"<u{bits // 8}")
    decoded = decode_image(image(mosaic, f"bayer_{pattern}{bits}"))
    assert np.array_equal(decoded, np.full((8, 8, 3), list(colour.values())))


@pytest.mark.parametrize(("encoding", "order"), [("yuv422", [0, 1]), ("yuv422_yuy2", [1, 0]), ("yuyv", [1, 0])])
def test_yuv_without_colour_is_grey(encoding, order):
    chroma_luma = np.stack([np.full((4, 6), 128, np.uint8), np.full((4, 6), 235, np.uint8)], -1)
    assert (decode_image(image(np.ascontiguousarray(chroma_luma[..., order]), encoding)) == 255).all()


def test_decoded_image_does_not_share_the_message(rgb):
    msg = image(rgb, "rgb8")
    decoded = decode_image(msg)
    decoded[:] = 0
    assert msg.data == rgb.tobytes()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(encoding="32FC1"), "'32FC1' is not supported; publish one of rgb8"),
        (dict(width=0), "0 x 6 pixels"),
        (dict(height=0, data=b""), "8 x 0 pixels"),
        (dict(step=23), "step is 23 bytes; 8 pixels of rgb8 need 24"),
        (dict(step=25), "144 bytes; step 25 x height 6 is 150"),
        (dict(data=b"\0" * 143), "143 bytes; step 24 x height 6 is 144"),
        (dict(data=b""), "0 bytes"),
        (dict(encoding="mono16", is_bigendian=1), "publish little-endian"),
        (dict(encoding="yuyv", width=7), "width must be even, got 7"),
    ],
)
def test_bad_image_says_what_is_wrong(rgb, change, words):
    with pytest.raises(ValueError, match=words):
        decode_image(replace(image(rgb, "rgb8"), **change))


def test_byte_order_of_8_bit_images_means_nothing(rgb):
    assert np.array_equal(decode_image(replace(image(rgb, "rgb8"), is_bigendian=1)), rgb)


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_compressed_image_decodes(extension):
    smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8), (64, 48))  # RGB
    encoded = cv2.imencode(f".{extension}", smooth[..., ::-1])[1].tobytes()
    decoded = decode_image(FakeCompressedImage(extension, encoded))
    assert np.abs(decoded.astype(int) - smooth).mean() < (1 if extension == "png" else 5)


@pytest.mark.parametrize("damage", [lambda b: b[:-2], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[100:]])
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_damaged_compressed_image_is_refused(rgb, extension, damage):
    encoded = cv2.imencode(f".{extension}", np.tile(rgb, (20, 20, 1)))[1].tobytes()
    with pytest.raises(ValueError, match="compressed image"):
        decode_image(FakeCompressedImage(extension, damage(encoded)))


def test_image_of_either_library_decodes(message_class, rgb, frame):
    header = convert(FrameMessages(message_class), frame)["~/depth/image"].header
    fake = image(rgb, "rgb8")
    msg = message_class("sensor_msgs/msg/Image")(
        header=header, height=6, width=8, encoding="rgb8", is_bigendian=0, step=24, data=np.frombuffer(fake.data, "u1")
    )
    assert np.array_equal(decode_image(msg), rgb)
    compressed = message_class("sensor_msgs/msg/CompressedImage")(
        header=header, format="png", data=np.frombuffer(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes(), "u1")
    )
    assert np.array_equal(decode_image(compressed), rgb)


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


def test_covariance_says_what_is_not_known(frame):
    """Positions: nothing without a scale, and the less the more its measurements differ and the way is long."""
    away = np.array([3.0, 0.0, 4.0])
    frame = replace(frame, T_first_cam=rigid(np.eye(3), away))
    none, fixed, vague = (
        np.diag(pose_covariance(place(frame, scale=scale)).reshape(6, 6))
        for scale in (ScaleStatus(), ScaleStatus("fixed", 2.0, 0.0), ScaleStatus("tf", 2.0, 0.2))
    )
    assert (none[:3] == 1e6).all()
    np.testing.assert_allclose(fixed[:3], (0.01 + 0.05 * 5) ** 2)
    np.testing.assert_allclose(vague[:3], (0.01 + 0.2 * 5) ** 2)
    assert (none[3:] == fixed[3:]).all() and (none[3:] > 0).all()


@pytest.mark.parametrize(("encoding", "dtype", "unit"), [("32FC1", "<f4", 1), ("16UC1", "<u2", 1000)])
def test_depth_image_decodes_to_metres(encoding, dtype, unit):
    metres = np.array([[0.5, 0.0, 2.25], [1.0, 3.5, 60.0]], np.float32)
    rows = np.zeros((2, 16), np.uint8)  # with padding
    samples = (metres * unit).astype(dtype).view(np.uint8)
    rows[:, : samples.shape[1]] = samples
    depth = decode_depth(
        SimpleNamespace(encoding=encoding, width=3, height=2, step=16, is_bigendian=0, data=rows.ravel())
    )
    np.testing.assert_allclose(depth, np.where(metres > 0, metres, np.nan))


def test_depth_of_another_encoding_is_refused():
    with pytest.raises(ValueError, match="'rgb8' is not supported; publish one of 32FC1, 16UC1"):
        decode_depth(SimpleNamespace(encoding="rgb8"))


def test_odometry_that_is_no_pose_is_refused(message_class, frame):
    odometry = convert(FrameMessages(message_class), frame)["~/odometry"]
    np.testing.assert_allclose(decode_pose(odometry), ros_pose(frame.T_first_cam), atol=1e-12)
    odometry.pose.pose.position.x = math.nan
    with pytest.raises(ValueError, match="no pose"):
        decode_pose(odometry)


def test_path_is_bounded_and_ends_with_its_world(message_class, frame):
    messages = FrameMessages(message_class)
    config = NodeConfig(path_length=3)
    stamps = [stamp_ns(p.header) for n in range(5) for p in convert(messages, frame, config, n)["~/path"].poses][-3:]
    assert stamps == [2, 3, 4]
    assert len(convert(messages, frame, NodeConfig(path_length=1))["~/path"].poses) == 1
    assert len(convert(messages, frame)["~/path"].poses) == 2
    assert len(convert(messages, frame, starts=True)["~/path"].poses) == 1


def test_status_carries_every_figure(message_class, frame):
    msg = convert(FrameMessages(message_class), frame)["~/status"]
    for name, value in vars(frame.status).items():
        if name != "seconds":
            assert getattr(msg, name) == value
    assert {stage: getattr(msg, f"{stage}_seconds") for stage in frame.status.seconds} == frame.status.seconds
    for values in (COUNTS, PERFORMANCE, SCALE):
        for name, value in vars(values).items():
            assert getattr(msg, name) == value, name


def test_radiance_hdr_is_refused():
    """OpenCV would write it to a file first."""
    encoded = cv2.imencode(".hdr", np.ones((4, 4, 3), np.float32))[1]
    with pytest.raises(ValueError, match="publish JPEG or PNG"):
        decode_image(SimpleNamespace(format="hdr", data=encoded.tobytes()))
