# SPDX-License-Identifier: Apache-2.0
"""The images that the demo plays."""

import numpy as np
import pytest
from support.recordings import encoded, picture, write_folder

from xsvggt_ros.demo.images import FEWEST_IMAGES, MOTION_RATE, SEED, demo_sequence
from xsvggt_ros.training.lessons import HELD_OUT_SEEDS
from xsvggt_ros.training.rendering import FIRST_SEED, INTERVALS


def test_the_default_is_a_room_with_its_truth():
    images, truth = demo_sequence(None, FEWEST_IMAGES)
    assert len(images) == len(truth) == FEWEST_IMAGES
    for image, true in zip(images, truth, strict=True):
        assert np.array_equal(image.image, true.rgb)
        assert image.intrinsics is not None
        assert image.image.shape[:2] == true.depth.shape
    assert not np.array_equal(truth[0].T_room_cam, truth[-1].T_room_cam)


def test_the_room_and_its_motion_are_none_that_was_trained_on_but_as_those():
    assert SEED < FIRST_SEED
    assert SEED not in HELD_OUT_SEEDS
    assert INTERVALS[0] <= 1 / MOTION_RATE <= INTERVALS[1]


def test_recorded_images_are_read_up_to_the_limit_and_have_no_truth(tmp_path):
    images, truth = demo_sequence(write_folder(tmp_path, 25), 22)
    assert len(images) == 22
    assert truth == []


def test_too_few_images_are_refused_with_their_number(tmp_path):
    with pytest.raises(ValueError, match=r"has 3 usable images.*at least 20"):
        demo_sequence(write_folder(tmp_path, 3), 100)
    with pytest.raises(ValueError, match="max-frames 5"):
        demo_sequence(None, 5)


def test_recorded_images_of_another_size_are_left_out_and_that_is_said(tmp_path, caplog):
    folder = write_folder(tmp_path, 24)
    (folder / "frame-5.png").write_bytes(encoded(picture(5, (40, 64)), ".png"))
    images, _ = demo_sequence(folder, 100)
    assert len(images) == 23
    assert "1 images are left out" in caplog.text
