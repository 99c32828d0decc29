# SPDX-License-Identifier: Apache-2.0
"""Files and bag of a replay at the size of the images, and worlds that continue one another."""

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from support.frames import read_ply
from support.messages import cloud_of
from support.recordings import SECOND, picture, raw_image, write_bag

from xsvggt_ros import GeometryStream, StreamConfig
from xsvggt_ros.cli import main
from xsvggt_ros.replay import files
from xsvggt_ros.upsampling import upsampled

SIZE = (150, 90)  # high: what the network does not see is unknown
SMALL = ("--image_width", "56", "--dtype", "float32")
COUNT = 3


def images():
    """Two worlds: the stamps of the second lie far back."""
    return [(i, raw_image(picture(i, SIZE), (100 * (i < COUNT) + i) * SECOND)) for i in range(2 * COUNT)]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rgbd")
    bag = write_bag(folder / "in", [("/cam/image_raw", time, message) for time, message in images()])
    flags = (*SMALL, "--output.resolution", "input", "--point_stride", "1", "--continue_odom")
    assert main(["replay", str(bag), "--output", str(folder / "out"), *flags]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def messages(output):
    """{topic: its messages}, in the order of the images; a reader has them by time."""
    found: dict[str, list] = {}
    with AnyReader([output / "bag"]) as reader:
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(reader.deserialize(data, connection.msgtype))
    return {topic: each[COUNT:] + each[:COUNT] for topic, each in found.items()}


@pytest.fixture(scope="module")
def depths():
    """Of the first world's frames, [H, W], by the stream itself."""
    stream = GeometryStream(StreamConfig(image_width=56, dtype="float32"))
    return [upsampled(stream.step(picture(i, SIZE)), picture(i, SIZE)).depth for i in range(COUNT)]


def test_depth_images_have_the_size_of_the_images_and_nothing_where_the_network_saw_nothing(output, depths):
    for i, depth in enumerate(depths):
        written = cv2.imread(str(output / "depth" / f"{i:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert written.shape == SIZE and 0.2 < (written == 0).mean() < 0.6
        np.testing.assert_array_equal(written == 0, np.isnan(depth))
        np.testing.assert_allclose(written / 1000, np.nan_to_num(depth), atol=0.00051)


def test_the_bag_has_the_same_and_the_images(messages, depths):
    for i, depth in enumerate(depths):
        recorded = messages["/stream/depth/image"][i]
        np.testing.assert_array_equal(recorded.data.view("<f4").reshape(SIZE), depth)
        np.testing.assert_array_equal(messages["/stream/rgb/image"][i].data.reshape(*SIZE, 3), picture(i, SIZE))
        points, _ = cloud_of(messages["/stream/points"][i])
        np.testing.assert_array_equal(np.isnan(points[..., 2]), np.isnan(depth))


def test_the_cloud_has_every_known_point(output, messages):
    known = [np.isfinite(cloud_of(message)[0]).all(-1).sum() for message in messages["/stream/points"]]
    clouds = [read_ply(output / name) for name in ("cloud.ply", "cloud_1.ply")]
    assert [len(cloud) for cloud in clouds] == [sum(known[:COUNT]), sum(known[COUNT:])]
    assert all(np.isfinite(cloud[axis]).all() for cloud in clouds for axis in "xyz")


def test_the_second_world_begins_where_the_first_ended(output, messages):
    first, second = (np.loadtxt(output / name) for name in ("trajectory.txt", "trajectory_1.txt"))
    np.testing.assert_allclose(second[0, 1:], first[-1, 1:], atol=1e-8)
    assert np.abs(first[-1, 1:4]).max() > 1e-4
    for message in messages["/tf"]:
        assert [t.header.frame_id for t in message.transforms] == ["odom", "map"]


def test_depth_is_enlarged_once_for_all_of_them(tmp_path, monkeypatch):
    from xsvggt_ros.placement import placement

    asked = []
    monkeypatch.setattr(placement, "upsampled", lambda *args: asked.append(1) or upsampled(*args))
    bag = write_bag(tmp_path / "in", [("/cam/image_raw", time, message) for time, message in images()[:2]])
    arguments = ["replay", str(bag), "--output", str(tmp_path / "out"), *SMALL, "--output.resolution", "input"]
    assert main(arguments) == 0
    assert len(asked) == 2 and files.written_files(tmp_path / "out")
