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
        (dict(encoding="32FC1"), "'32FC1' is not supported; convert it to one of rgb8"),
        (dict(width=0), "0 x 6 pixels"),
        (dict(height=0, data=b""), "8 x 0 pixels"),
        (dict(step=23), "step is 23 bytes; 8 pixels of rgb8 need 24"),
        (dict(step=25), "144 bytes; step 25 x height 6 is 150"),
        (dict(data=b"\0" * 143), "143 bytes; step 24 x height 6 is 144"),
        (dict(data=b""), "0 bytes"),
        (dict(encoding="mono16", is_bigendian=1), "make it little-endian"),
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


DAMAGE = {
    "cut by three bytes": lambda b: b[:-3],
    "cut in half": lambda b: b[: len(b) // 2],
    "cut in half and ended": lambda b: b[: len(b) // 2] + bytes(100) + b"\xff\xd9",
    "cut by a twentieth": lambda b: b[: -len(b) // 20],
    "without its begin": lambda b: b[100:],
    "behind other bytes": lambda b: b"\0\0" + b,
    "empty": lambda b: b"",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_damaged_compressed_image_is_refused(rgb, extension, damage):
    encoded = cv2.imencode(f".{extension}", np.tile(rgb, (20, 20, 1)))[1].tobytes()
    with pytest.raises(ValueError, match="compressed image"):
        decode_image(FakeCompressedImage(extension, damage(encoded)))


def jpeg(picture, *options):
    """Of an RGB or grey picture."""
    return cv2.imencode(".jpg", picture[..., ::-1] if picture.ndim == 3 else picture, options)[1].tobytes()


def with_thumbnail(encoded):
    """A JPEG that has another one in its header."""
    segment = b"Exif\0\0" + jpeg(np.full((24, 32, 3), 99, np.uint8))
    return encoded[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + encoded[2:]


@pytest.mark.parametrize("options", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 3]])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_is_judged_by_its_picture_and_not_by_its_end(rgb, options, channels):
    picture = np.tile(rgb, (10, 10, 1))[..., : channels if channels == 3 else None].squeeze()
    picture = picture if channels == 3 else np.ascontiguousarray(picture[..., 0])
    whole = jpeg(picture, *options)
    decoded = decode_image(FakeCompressedImage("jpeg", whole))
    complete = [
        whole[:-2],
        whole + bytes(4096),
        whole[:-2] + bytes(64),
        whole[:-2] + b"\xff" * 9,
        with_thumbnail(whole),
    ]
    if not options:  # baseline: the data have one end
        complete.append(whole[:-2] + b"\x12\x34" * 99)
    for data in complete:
        assert np.array_equal(decode_image(FakeCompressedImage("jpeg", data)), decoded)
    for data in (whole[: len(whole) * 2 // 3], with_thumbnail(whole)[: -len(whole) // 3], whole[:-9]):
        with pytest.raises(ValueError, match="cut off JPEG"):
            decode_image(FakeCompressedImage("jpeg", data))


@pytest.mark.parametrize("top", [1023, 4095, 65535])
@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("description", ["mono16; png compressed ", "16UC1; tiff compressed mono16", "png", ""])
def test_16_bits_are_kept_and_stretched_as_those_of_a_raw_image(top, suffix, description):
    ramp = np.linspace(top // 3, top, 256).round().astype("<u2").reshape(16, 16)
    encoded = cv2.imencode(suffix, ramp)[1].tobytes()
    decoded = decode_image(FakeCompressedImage(description, encoded))
    assert np.array_equal(decoded, decode_image(image(ramp, "mono16")))
    assert len(np.unique(decoded)) > 240


@pytest.mark.parametrize("encoding", ["rgb16", "bgr16", "rgba16", "16UC3", "16UC4"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_16_bit_colours_keep_their_proportion(rgb, encoding, bits):
    order = {"rgb16": [0, 1, 2], "rgba16": [0, 1, 2, 0], "16UC4": [2, 1, 0, 0]}.get(encoding, [2, 1, 0])
    rgb = np.maximum(rgb, 2) // 2 * 2  # no sample rounds to another, and the brightest needs all bits
    rgb[0, 0] = 255
    samples = np.rint(rgb[..., order] * ((2**bits - 1) / 255)).astype("<u2")
    assert np.array_equal(decode_image(image(samples, encoding)), rgb)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_compressed_mosaic_is_debayered_as_a_raw_one(rgb, pattern, bits):
    mosaic = np.tile(rgb[..., 0], (4, 4)).astype(f"<u{bits // 8}")
    raw = decode_image(image(mosaic, f"bayer_{pattern}{bits}"))
    data = cv2.imencode(".png", mosaic)[1].tobytes()
    stated = f"bayer_{pattern}{bits}"
    for description in (
        f"{stated}; png compressed ",
        f"{stated.upper()};PNG compressed",
        stated,
        f"x; png compressed {stated}",
    ):
        assert np.array_equal(decode_image(FakeCompressedImage(description, data)), raw), description


@pytest.mark.parametrize("stated", ["bayer_rggb12", "bayer_rggb10p", "bayer_rggb14"])
def test_a_compressed_mosaic_of_other_bits_is_one_too(rgb, stated):
    mosaic = np.tile(rgb[..., 0], (4, 4)).astype("<u2")
    data = cv2.imencode(".png", mosaic)[1].tobytes()
    decoded = decode_image(FakeCompressedImage(f"{stated}; png compressed ", data))
    assert np.array_equal(decoded, decode_image(image(mosaic, "bayer_rggb16")))


@pytest.mark.parametrize("description", ["h264", "rgb8; H.265", "theora"])
def test_a_piece_of_a_video_is_called_so(description):
    with pytest.raises(ValueError, match="is a piece of a video; republish it"):
        decode_image(FakeCompressedImage(description, b"\0\0\0\1gabc\n"))


def test_what_was_a_mosaic_and_is_none_any_more_is_left_as_it_is(rgb):
    grey = np.tile(rgb[..., 0], (4, 4))
    for description in (
        "bayer_rggb8; jpeg compressed mono8",
        "bayer_rggb8; jpeg compressed bgr8",
        "bayer_odd8",
        "mono8",
    ):
        decoded = decode_image(FakeCompressedImage(description, jpeg(grey)))
        assert np.ptp(decoded, axis=2).max() == 0, description
    colour = np.tile(rgb, (4, 4, 1))
    decoded = decode_image(FakeCompressedImage("bayer_rggb8; jpeg compressed ", jpeg(colour)))
    assert np.array_equal(decoded, decode_image(FakeCompressedImage("jpeg", jpeg(colour))))


@pytest.mark.parametrize(
    "description", ["16UC1; compressedDepth png", "16UC1; compressedDepth", "32FC1; compressedDepth rvl"]
)
def test_compressed_depth_is_no_picture(description):
    data = bytes(12) + cv2.imencode(".png", np.ones((4, 4), np.uint16))[1].tobytes()
    with pytest.raises(ValueError, match="is depth; choose the topic of the colour image"):
        decode_image(FakeCompressedImage(description, data))


@pytest.mark.parametrize("description", ["unknown", "jpeg"])
def test_what_is_no_image_file_is_refused_by_the_format_that_it_states(description):
    with pytest.raises(ValueError, match=f"'{description}', 9 bytes"):
        decode_image(FakeCompressedImage(description, b"\0\0\0\1gabc\n"))


def test_alpha_of_a_topic_means_nothing(rgb):
    """Some drivers leave it at 0."""
    clear = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    assert np.array_equal(decode_image(image(clear, "rgba8")), rgb)
    data = cv2.imencode(".png", clear[..., [2, 1, 0, 3]])[1].tobytes()
    assert np.array_equal(decode_image(FakeCompressedImage("rgba8; png compressed ", data)), rgb)


@pytest.mark.parametrize("encoding", ["RGB8", " rgb8 ", "Rgb8"])
def test_encodings_are_known_however_they_are_written(rgb, encoding):
    assert np.array_equal(decode_image(image(rgb, encoding)), rgb)


def test_a_jpeg_that_states_an_absurd_size_is_refused():
    data = bytearray(jpeg(np.zeros((16, 16, 3), np.uint8)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\x00\xff\x00"
    with pytest.raises(ValueError, match="states 65280 x 65280 pixels"):
        decode_image(FakeCompressedImage("jpeg", bytes(data)))


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
    with pytest.raises(ValueError, match="'rgb8' is not supported; convert it to one of 32FC1, 16UC1"):
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
    with pytest.raises(ValueError, match="convert it to JPEG or PNG"):
        decode_image(SimpleNamespace(format="hdr", data=encoded.tobytes()))


@pytest.mark.parametrize("grey", [0, 1, 50, 128, 255])
def test_a_flat_jpeg_without_end_marker_is_whole(grey):
    """Its last byte may be a zero."""
    whole = jpeg(np.full((84, 112, 3), grey, np.uint8))
    for data in (whole[:-2], whole[:-2] + bytes(50)):
        assert decode_image(FakeCompressedImage("jpeg", data)).shape == (84, 112, 3)


def test_a_jpeg_with_bytes_missing_between_its_restart_markers_is_refused():
    scene = cv2.resize(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8), (640, 480))
    data = jpeg(scene, cv2.IMWRITE_JPEG_RST_INTERVAL, 8)
    at = data.index(b"\xff\xd3")
    junk = data[:at] + b"\x12\x34" + data[at : len(data) // 2]
    for damaged in (junk, data[: len(data) // 2] + data[len(data) // 2 + 1400 :]):
        with pytest.raises(ValueError, match="damaged"):
            decode_image(FakeCompressedImage("jpeg", damaged))


@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("options", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 8]])
def test_a_cut_off_jpeg_in_a_buffer_of_fixed_size_is_refused(options, share):
    """The zeros behind it are no samples."""
    scene = cv2.resize(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8), (640, 480))
    encoded = cv2.imencode(".jpg", scene, options)[1].tobytes()
    cut = encoded[: round(share * len(encoded))]
    with pytest.raises(ValueError, match="cut off"):
        decode_image(FakeCompressedImage("jpeg", cut + bytes(len(encoded))))
