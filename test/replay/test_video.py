# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
from support.recordings import SECOND, picture

from xsvggt_ros.replay.sources import Images, open_source


def read(path, **options):
    """All images of a video; what is said of it and of those that cannot be used after its end."""
    with open_source(path, **options) as source:
        images = Images(source)
        found = list(images)
        return found, source, images.skipped


def indices(images):
    """Which pictures these are: the blue channel says it, also after a lossy codec."""
    return [round(float(np.median(item.image[..., 2])) / 10) for item in images]


def stamps(images):
    return [item.stamp_ns for item in images]


def write_video(path, codec, count=20, rate=10.0):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, (64, 48))
    for i in range(count):
        writer.write(cv2.cvtColor(picture(i), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


class TestSound:
    @pytest.fixture(params=[("mp4v", ".mp4"), ("MJPG", ".avi")])
    def video(self, request, tmp_path):
        codec, suffix = request.param
        return write_video(tmp_path / f"video{suffix}", codec, 8)

    def test_images_and_stamps(self, video):
        images, source, _ = read(video)
        assert source.length == 8
        assert stamps(images) == [i * SECOND // 10 for i in range(8)]
        for i, item in enumerate(images):
            assert np.abs(item.image.astype(int) - picture(i)).mean() < 6

    def test_rate_and_stride(self, video):
        images, _, _ = read(video, rate=5.0, stride=2)
        assert stamps(images) == [0, 2 * SECOND // 5, 4 * SECOND // 5, 6 * SECOND // 5]
        assert indices(images) == [0, 2, 4, 6]
