# SPDX-License-Identifier: Apache-2.0
import logging
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from support.paths import SHARED
from support.recordings import (
    SECOND,
    camera_info,
    compressed_image,
    encoded,
    image_bag,
    picture,
    raw_image,
    write_bag,
    write_folder,
)

from xsvggt_ros.replay.sources import Images, Reading, open_source

K = np.array([[50.0, 0, 31.5], [0, 51.0, 23.5], [0, 0, 1]])


def read(path, **options):
    """All images of a source that can be used; what is said of it and of the others after its end."""
    with open_source(path, Reading(**options)) as source:
        images = Images(source)
        found = list(images)
        return found, SimpleNamespace(length=source.length, damage=source.damage, skipped=images.skipped)


def indices(images):
    """Which pictures these are: the blue channel says it, also after a lossy codec."""
    return [round(float(np.median(item.image[..., 2])) / 10) for item in images]


class TestFolder:
    def test_natural_order_and_stamps(self, tmp_path):
        images, sequence = read(write_folder(tmp_path, 12))
        assert indices(images) == list(range(12))
        assert [item.stamp_ns for item in images] == [round(i * 1e9 / 30) for i in range(12)]
        assert sequence.length == 12 and not sequence.skipped and not sequence.damage

    def test_pixels_are_rgb_and_exact(self, tmp_path):
        images, _ = read(write_folder(tmp_path, 1))
        np.testing.assert_array_equal(images[0].image, picture(0))
        assert images[0].image.dtype == np.uint8
        assert images[0].intrinsics is None and images[0].frame_id == "camera"

    def test_rate(self, tmp_path):
        images, _ = read(write_folder(tmp_path, 3), rate=4.0)
        assert [item.stamp_ns for item in images] == [0, SECOND // 4, SECOND // 2]

    def test_colour_files_only_where_a_recording_has_depth_beside(self, tmp_path):
        write_folder(tmp_path, 3, "frame-00000{}.color.jpg")
        write_folder(tmp_path, 3, "frame-00000{}.depth.png")
        (tmp_path / "frame-000000.pose.txt").write_text("1 0 0 0")
        images, sequence = read(tmp_path)
        assert indices(images) == [0, 1, 2] and sequence.length == 3

    @pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".bmp", ".tiff", ".webp", ".ppm"])
    def test_formats(self, tmp_path, suffix):
        images, _ = read(write_folder(tmp_path, 2, "a{}" + suffix))
        assert indices(images) == [0, 1]

    def test_stride_keeps_stamps_and_reads_nothing_between(self, tmp_path):
        write_folder(tmp_path, 8)
        (tmp_path / "frame-1.png").write_bytes(b"no image")
        images, sequence = read(tmp_path, stride=3)
        assert indices(images) == [0, 3, 6] and sequence.length == 3 and not sequence.skipped
        assert images[1].stamp_ns == SECOND // 10

    @pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text"])
    def test_corrupt_file_is_skipped_and_named(self, tmp_path, damage):
        write_folder(tmp_path, 4, "{}.jpg")
        broken = tmp_path / "2.jpg"
        broken.write_bytes(damage(broken.read_bytes()))
        images, sequence = read(tmp_path)
        assert indices(images) == [0, 1, 3]
        assert images[2].stamp_ns == SECOND // 10
        assert len(sequence.skipped) == 1 and sequence.skipped[0].startswith("2.jpg: ")

    def test_folder_without_images(self, tmp_path):
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(ValueError, match="has no images"):
            read(tmp_path)


@pytest.mark.parametrize("storage", ["mcap", "db3"])
class TestBagStorages:
    @pytest.mark.parametrize("compressed", [False, True])
    def test_images_stamps_frames_and_intrinsics(self, tmp_path, storage, compressed):
        make, topic = (compressed_image, "/cam/image/compressed") if compressed else (raw_image, "/cam/image")
        messages = [(topic, 5 * SECOND + i, make(picture(i), 7 * SECOND + i)) for i in range(5)]
        messages.insert(2, ("/cam/camera_info", 5 * SECOND + 1, camera_info(K)))  # late: it holds for all
        images, sequence = read(write_bag(tmp_path / "bag", messages, storage))
        assert sequence.length == 5 and not sequence.damage
        for i, item in enumerate(images):
            np.testing.assert_array_equal(item.image, picture(i))
            np.testing.assert_array_equal(item.intrinsics, K)
            assert item.stamp_ns == 7 * SECOND + i and item.frame_id == "cam_optical"

    def test_storage_file_alone(self, tmp_path, storage):
        bag = image_bag(tmp_path / "bag", 3, storage)
        images, _ = read(bag / f"bag.{storage}", stride=2)
        assert indices(images) == [0, 2]


class TestBagTopics:
    def test_first_of_several_is_used_and_said(self, tmp_path, caplog):
        messages = [(f"/{name}/image", 0, raw_image(picture(i), 0)) for i, name in enumerate("ab")]
        images, _ = read(write_bag(tmp_path / "bag", messages))
        assert indices(images) == [0]
        assert "using /a/image" in caplog.text and "/b/image" in caplog.text

    def test_chosen(self, tmp_path, caplog):
        messages = [(f"/{name}/image", 0, raw_image(picture(i), 0)) for i, name in enumerate("ab")]
        images, _ = read(write_bag(tmp_path / "bag", messages), topic="/b/image")
        assert indices(images) == [1] and not caplog.text

    def test_missing_topic_lists_the_image_topics(self, tmp_path):
        with pytest.raises(ValueError, match=r"no image topic /nope; image topics in it: /cam/image_raw$"):
            read(image_bag(tmp_path / "bag", 1), topic="/nope")

    def test_bag_without_images(self, tmp_path):
        bag = write_bag(tmp_path / "bag", [("/cam/camera_info", 0, camera_info(K))])
        with pytest.raises(ValueError, match=r"has no image topic; image topics in it: none, but /cam/camera_info"):
            read(bag)

    def test_frame_without_a_name_is_called_camera(self, tmp_path):
        images, _ = read(write_bag(tmp_path / "bag", [("/image", 0, raw_image(picture(0), 0, frame_id=""))]))
        assert images[0].frame_id == "camera"

    @pytest.mark.parametrize(
        "info", [camera_info(np.full((3, 3), np.nan)), camera_info(np.zeros((3, 3))), camera_info(K, (480, 640))]
    )
    def test_unusable_camera_info_is_ignored_and_said_once(self, tmp_path, caplog, info):
        messages = [("/cam/image", i, raw_image(picture(i), i)) for i in range(3)]
        images, _ = read(write_bag(tmp_path / "bag", [("/cam/camera_info", 0, info), *messages]))
        assert [item.intrinsics for item in images] == [None] * 3
        assert [r.levelno for r in caplog.records] == [logging.WARNING]

    def test_camera_info_of_another_camera_is_not_taken_but_said(self, tmp_path, caplog):
        messages = [("/b/camera_info", 0, camera_info(K)), ("/a/image", 0, raw_image(picture(0), 0))]
        images, _ = read(write_bag(tmp_path / "bag", messages))
        assert images[0].intrinsics is None
        assert "no CameraInfo on /a/camera_info" in caplog.text and "there: /b/camera_info" in caplog.text

    def test_a_bag_without_any_camera_info_is_no_fault(self, tmp_path, caplog):
        images, _ = read(write_bag(tmp_path / "bag", [("/a/image", 0, raw_image(picture(0), 0))]))
        assert images[0].intrinsics is None and not caplog.text

    def test_unusable_images_are_skipped(self, tmp_path):
        cut_off = compressed_image(picture(1), SECOND, ".jpg")
        cut_off.data = cut_off.data[:200]
        unknown = raw_image(picture(2), 2 * SECOND, encoding="secret8")
        short = raw_image(picture(3), 3 * SECOND)
        short.data = short.data[:-1]
        good = [("/a", i * SECOND, compressed_image(picture(i), i * SECOND)) for i in (0, 4)]
        images, sequence = read(write_bag(tmp_path / "jpeg", [good[0], ("/a", SECOND, cut_off), good[1]]))
        assert indices(images) == [0, 4] and len(sequence.skipped) == 1
        bad = [("/a", SECOND, unknown), ("/a", SECOND, short)]
        images, sequence = read(write_bag(tmp_path / "raw", [*bad, ("/a", SECOND, raw_image(picture(5), 0))]))
        assert indices(images) == [5] and len(sequence.skipped) == 2
        assert "2000000000 ns" in sequence.skipped[0] and "secret8" in sequence.skipped[0]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("nowhere", {}, "does not exist"),
        ("folder", {"stride": 0}, "stride must be at least 1"),
        ("folder", {"rate": 0.0}, "rate must be from 0.001 to 1000000"),
        ("folder", {"topic": "/image"}, "leave the topic out"),
        ("bag", {"rate": 30.0}, "leave the rate out"),
    ],
)
def test_options_that_cannot_work(tmp_path, name, options, reason):
    write_folder(tmp_path / "folder", 1)
    image_bag(tmp_path / "bag", 1)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        read(tmp_path / name, **options)


def test_real_images():
    folder = SHARED / "data" / "7scenes_sample"
    if not folder.exists():
        pytest.skip("the 7-Scenes sample is not here")
    images, sequence = read(folder, stride=40)
    assert sequence.length == 3 and [item.image.shape for item in images] == [(480, 640, 3)] * 3
    assert encoded(images[0].image, ".png") != encoded(images[1].image, ".png")


def recordings(folder):
    """A folder of recordings of all kinds, one of them loose."""
    for name in ("b", "a"):
        image_bag(folder / name, 1)
    write_folder(folder / "folder", 1)
    shutil.copy(next((folder / "a").glob("*.mcap")), folder / "cut.mcap")
    return folder


class TestSeveral:
    """A folder of recordings is none: nothing in it is silently taken for it."""

    def refused(self, folder, names):
        with pytest.raises(ValueError, match=re.escape(f"{folder} holds recordings ({names}): give one")):
            read(folder)

    def test_a_loose_file_is_not_taken_for_the_bag(self, tmp_path):
        folder = recordings(tmp_path / "in")
        self.refused(folder, "a, b, folder, cut.mcap")
        (folder / "metadata.yaml").write_text("a: [")  # it says that it is a bag
        assert len(read(folder)[0]) == 1

    @pytest.mark.parametrize("other", ["video.mp4", "image.png"])
    def test_media_of_several_kinds(self, tmp_path, other):
        bag = image_bag(tmp_path / "in", 1)
        (bag / "metadata.yaml").unlink()
        assert len(read(bag)[0]) == 1
        (bag / other).write_bytes(b"")
        self.refused(bag, f"{next(bag.glob('*.mcap')).name}, {other}")

    def test_images_among_which_bags_lie(self, tmp_path):
        folder = write_folder(tmp_path / "in", 3)
        image_bag(folder / "bag", 1)  # as of a replay into that folder
        write_folder(folder / "depth", 3)
        assert len(read(folder)[0]) == 3
        image_bag(folder / "other", 1)
        self.refused(folder, "bag, depth, other, frame-0.png, frame-1.png, ...")
