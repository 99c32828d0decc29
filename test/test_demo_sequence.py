# SPDX-License-Identifier: Apache-2.0
"""The images that the demo plays."""

import numpy as np
import pytest
from recordings import write_folder

from xsvggt_ros.demo_sequence import FEWEST_IMAGES, LONGEST_SIDE, _shrunk, demo_sequence
from xsvggt_ros.geometry import intrinsic_matrix
from xsvggt_ros.sequences import InputImage


def test_the_default_is_a_room_with_its_truth():
    images, truth = demo_sequence(None, FEWEST_IMAGES, rate=10.0)
    assert len(images) == len(truth) == FEWEST_IMAGES
    assert images[1].stamp_ns == 100_000_000
    for image, true in zip(images, truth, strict=True):
        assert np.array_equal(image.image, true.rgb)
        assert image.intrinsics is not None
        assert image.image.shape[:2] == true.depth.shape
    assert not np.array_equal(truth[0].T_world_cam, truth[-1].T_world_cam)


def test_recorded_images_are_read_up_to_the_limit_and_have_no_truth(tmp_path):
    images, truth = demo_sequence(write_folder(tmp_path, 25), 22, rate=30.0)
    assert len(images) == 22
    assert truth == []


def test_too_few_images_are_refused_with_their_number(tmp_path):
    with pytest.raises(ValueError, match=r"has 3 usable images.*at least 20"):
        demo_sequence(write_folder(tmp_path, 3), 100, rate=30.0)
    with pytest.raises(ValueError, match="max-frames 5"):
        demo_sequence(None, 5, rate=30.0)


@pytest.mark.parametrize("size", [(1000, 2000), (1500, 1000)])
def test_a_large_image_shrinks_with_its_intrinsics(size):
    """A bright square stays where the intrinsics project its direction."""
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    image[600:640, 800:840] = 255
    shrunk = _shrunk(InputImage(7, image, intrinsic_matrix(900.0, 950.0, width / 2, height / 2), "camera"))
    ray = [(819.5 - width / 2) / 900, (619.5 - height / 2) / 950, 1.0]
    found = np.argwhere(shrunk.image[..., 0] > 128).mean(0)[::-1]
    assert max(shrunk.image.shape) == LONGEST_SIDE
    assert np.allclose((shrunk.intrinsics @ ray)[:2], found, atol=0.5)
    assert shrunk.stamp_ns == 7


def test_a_small_image_stays_as_it_is():
    image = InputImage(0, np.zeros((240, 320, 3), np.uint8), None, "camera")
    assert _shrunk(image) is image
