# SPDX-License-Identifier: Apache-2.0
"""Messages to arrays, of rclpy's classes and of rosbags'."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from support.messages import convert

from xsvggt_ros.geometry import ros_pose
from xsvggt_ros.messages.decode import decode_depth, decode_image, decode_pose
from xsvggt_ros.messages.topics import FrameMessages


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


def test_radiance_hdr_is_refused():
    """OpenCV would write it to a file first."""
    encoded = cv2.imencode(".hdr", np.ones((4, 4, 3), np.float32))[1]
    with pytest.raises(ValueError, match="publish JPEG or PNG"):
        decode_image(SimpleNamespace(format="hdr", data=encoded.tobytes()))
