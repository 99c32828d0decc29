# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag are read: the camera that is meant, and its camera_info."""

import sqlite3
from contextlib import closing

import cv2
import numpy as np
import pytest
from support.recordings import (
    SECOND,
    camera_info,
    compressed_image,
    header,
    image_bag,
    message,
    picture,
    raw_image,
    write_bag,
    write_mcap,
)

from xsvggt_ros.cli import main
from xsvggt_ros.replay.sources import Images, Reading, open_source

K = np.array([[50.0, 0, 31.5], [0, 51.0, 23.5], [0, 0, 1]])
DEPTH = np.full((48, 64), 1500, np.uint16)


def packed(data, form):
    return lambda stamp: message(
        "sensor_msgs/msg/CompressedImage", header=header(stamp), format=form, data=np.frombuffer(data, np.uint8)
    )


def colour(stamp):
    return raw_image(picture(3), stamp)


def mono(stamp):
    return raw_image(picture(3)[..., 0], stamp, encoding="mono8")


def raw_bytes(samples, stamp, encoding):
    image = raw_image(samples.view(np.uint8), stamp, encoding=encoding)
    image.width = samples.shape[1]
    return image


def mono_16(stamp):
    return raw_bytes(picture(3)[..., 0].astype("<u2"), stamp, "mono16")


def depth(stamp):
    return raw_bytes(DEPTH, stamp, "16UC1")


def depth_in_metres(stamp):
    return raw_bytes((DEPTH / 1000).astype("<f4"), stamp, "32FC1")


def jpeg(stamp):
    return compressed_image(picture(3), stamp, ".jpg")


def mono_jpeg(stamp):
    return packed(cv2.imencode(".jpg", picture(3)[..., 0])[1].tobytes(), "mono8; jpeg compressed ")(stamp)


PNG = cv2.imencode(".png", DEPTH)[1].tobytes()
depth_png = packed(PNG, "16UC1; png compressed ")
compressed_depth = packed(bytes(12) + PNG, "16UC1; compressedDepth png")
compressed_depth_rvl = packed(bytes(100), "32FC1; compressedDepth rvl")
theora = packed(b"\x80theora" + bytes(50), "theora")


def bag_of(path, topics, storage="mcap"):
    """topics: name, function of a stamp that makes its messages, how many."""
    messages = [(name, i * SECOND, make(i * SECOND)) for name, make, count in topics for i in range(count)]
    empty = {name: make(0).__msgtype__ for name, make, count in topics if not count}
    return write_bag(path, messages, storage, empty=empty)


CHOICES = {
    "first empty": [("/a", colour, 0), ("/b", colour, 3)],
    "all but one empty": [("/a", colour, 0), ("/b", jpeg, 3), ("/c", mono, 0)],
    "depth first": [("/a/image", depth, 9), ("/b", colour, 3)],
    "depth in metres first": [("/a", depth_in_metres, 9), ("/b", colour, 3)],
    "depth as PNG first": [("/a", depth_png, 9), ("/b", jpeg, 3)],
    "compressedDepth first": [("/a", compressed_depth, 9), ("/b", jpeg, 3)],
    "compressedDepth RVL first": [("/a", compressed_depth_rvl, 9), ("/b", mono, 3)],
    "a codec that is not read first": [("/a", theora, 9), ("/b", mono_jpeg, 3)],
    "a name is no content": [("/color/image_raw", depth, 9), ("/b", colour, 3)],
    "mono16 is an image": [("/a", depth, 9), ("/b", mono_16, 3)],
    "the most": [("/a", colour, 3), ("/b", colour, 9)],
    "the most, though mono": [("/a", colour, 3), ("/b", mono, 9)],
    "colour before mono": [("/a", mono, 20), ("/b", colour, 19)],
    "colour before mono of 16 bits": [("/a", mono_16, 3), ("/b", jpeg, 3)],
    "raw before compressed": [("/a/compressed", jpeg, 20), ("/b", colour, 19)],
    "the first of equals": [("/b", colour, 3), ("/a", colour, 3)],
}


@pytest.mark.parametrize("storage", ["mcap", "db3"])
@pytest.mark.parametrize("topics", CHOICES.values(), ids=CHOICES)
def test_choice_is_b_and_is_said(tmp_path, caplog, topics, storage):
    with open_source(bag_of(tmp_path / "bag", topics, storage)) as source:
        images = list(Images(source))
    (count,) = (count for name, _, count in topics if name == "/b")
    assert len(images) == source.length == count
    (said,) = [record.message for record in caplog.records]
    assert said.startswith(f"using /b ({count}, ") and all(name in said for name, *_ in topics)


def test_one_topic_is_not_worth_a_word(tmp_path, caplog):
    with open_source(image_bag(tmp_path / "bag", 2)) as source:
        assert len(list(Images(source))) == 2 and not caplog.text


@pytest.mark.parametrize("make", [depth, depth_in_metres, depth_png, compressed_depth])
def test_only_depth(tmp_path, make):
    bag = bag_of(tmp_path / "bag", [("/a", make, 2), ("/b", make, 3)])
    said = r"no colour or mono images; image topics in it: /a \(2, depth\), /b \(3, depth\); depth is no picture"
    with pytest.raises(ValueError, match=said), open_source(bag):
        pass
    with open_source(bag, Reading(topic="/b")) as source:
        assert source.length == 3


def test_first_image_is_damaged(tmp_path):
    def first_cut_off(stamp):
        image = jpeg(stamp)
        image.data = image.data if stamp else image.data[:100]
        return image

    with open_source(bag_of(tmp_path / "bag", [("/a", depth, 3), ("/b", first_cut_off, 3)])) as source:
        images = Images(source)
        assert len(list(images)) == 2 and len(images.skipped) == 1


def test_chosen_topic_without_messages(tmp_path):
    bag = bag_of(tmp_path / "bag", [("/a", colour, 0), ("/b", colour, 3)], "db3")
    said = r"/a of .* has no messages; image topics in it: /a \(0\), /b \(3\)$"
    with pytest.raises(ValueError, match=said), open_source(bag, Reading(topic="/a")):
        pass


def test_images_of_ros_1_in_an_mcap(tmp_path):
    bag = write_mcap(tmp_path / "a.mcap", [], ("sensor_msgs/Image", "ros1msg", "ros1"), kind="a/msg/B")
    with pytest.raises(ValueError, match=r"/other \(sensor_msgs/Image in ros1\); only cdr"), open_source(bag):
        pass


@pytest.mark.parametrize(
    ("image", "info"),
    [
        ("/cam/image_raw", "/cam/camera_info"),
        ("/cam/image_raw/compressed", "/cam/camera_info"),
        ("/cam/compressed", "/cam/camera_info"),
        ("/cam/image_raw/compressed_low", "/cam/camera_info"),
        ("/robot/cam/left/image_rect", "/robot/cam/left/camera_info"),
        ("/image", "/camera_info"),
        ("image", "camera_info"),
        ("cam/image_raw", "/cam/camera_info"),
        ("/image/compressed", "/camera_info"),
    ],
)
def test_camera_info_beside(tmp_path, image, info):
    other = camera_info(2 * K)
    messages = [("/b/camera_info", 0, other), (info, 1, camera_info(K)), (info, 2, other)]
    make = jpeg if "compressed" in image else colour
    with open_source(write_bag(tmp_path / "bag", [*messages, (image, 3, make(3))])) as source:
        (found,) = Images(source)
    np.testing.assert_array_equal(found.intrinsics, K)


def test_camera_info_elsewhere_is_named(tmp_path, caplog):
    messages = [("/b/camera_info", 0, camera_info(K)), ("/a/image", 0, colour(0))]
    with open_source(write_bag(tmp_path / "bag", messages)) as source:
        assert [image.intrinsics for image in Images(source)] == [None]
    assert "no CameraInfo on /a/camera_info" in caplog.text and "there: /b/camera_info" in caplog.text


def test_first_camera_info_that_can_be_decoded(tmp_path):
    messages = [("/a/camera_info", i, camera_info(K)) for i in range(3)]
    bag = write_bag(tmp_path / "bag", [*messages, ("/a/image", 0, colour(0))], "db3")
    with closing(sqlite3.connect(bag / "bag.db3", isolation_level=None)) as database:
        database.execute("UPDATE messages SET data = substr(data, 1, 50) WHERE id <= 2")
    with open_source(bag) as source:
        (image,) = Images(source)
    np.testing.assert_array_equal(image.intrinsics, K)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: (folder / "a.mcap").write_bytes(b""), "it is empty"),
        (lambda folder: (folder / "a.db3").write_text("text"), "neither as an mcap nor as a sqlite3 file"),
        (lambda folder: (folder / "metadata.yaml").write_text("a: ["), "metadata.yaml cannot be read"),
        (lambda folder: (folder / "a.bag").write_bytes(b"#ROSBAG V2.0\n"), "give one of the bags in it"),
        (lambda folder: [image_bag(folder / name, 1) for name in ("x1", "x2")], "give one of the bags in it"),
        (lambda folder: write_mcap(folder / "a.mcap", []), "no colour or mono images"),
        (lambda folder: write_mcap(folder / "a.mcap", [0, 1], kind="std_msgs/msg/String"), "has no image topic"),
        (lambda folder: write_mcap(folder / "a.mcap", [0], compression=0).write_bytes(b"\x89MCAP0\r\n"), "no topics"),
    ],
)
def test_inputs_without_images_end_in_one_sentence(tmp_path, capsys, make, said):
    folder = tmp_path / "in"
    folder.mkdir()
    make(folder)
    assert main(["replay", str(folder), "--output", str(tmp_path / "out")]) != 0
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and str(folder) in error
