# SPDX-License-Identifier: Apache-2.0
"""The images that the demo plays."""

import numpy as np
import pytest
from recordings import write_folder

from xsvggt_ros.demo_sequence import FEWEST_IMAGES, demo_sequence


def test_the_default_is_a_room_with_its_truth():
    images, truth = demo_sequence(None, FEWEST_IMAGES)
    assert len(images) == len(truth) == FEWEST_IMAGES
    for image, true in zip(images, truth, strict=True):
        assert np.array_equal(image.image, true.rgb)
        assert image.intrinsics is not None
        assert image.image.shape[:2] == true.depth.shape
    assert not np.array_equal(truth[0].T_world_cam, truth[-1].T_world_cam)


def test_recorded_images_are_read_up_to_the_limit_and_have_no_truth(tmp_path):
    images, truth = demo_sequence(write_folder(tmp_path, 25), 22)
    assert len(images) == 22
    assert truth == []


def test_too_few_images_are_refused_with_their_number(tmp_path):
    with pytest.raises(ValueError, match=r"has 3 usable images.*at least 20"):
        demo_sequence(write_folder(tmp_path, 3), 100)
    with pytest.raises(ValueError, match="max-frames 5"):
        demo_sequence(None, 5)
