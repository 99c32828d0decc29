# SPDX-License-Identifier: Apache-2.0
"""The resize on a device against Pillow's, on the one device that every machine has."""

import numpy as np
import pytest
import torch
from PIL import Image

from xsvggt_ros.preprocess import Resize
from xsvggt_ros.resample import _weights, resample
from xsvggt_ros.transfer import HIGH

SIZES = [(640, 480), (1280, 720), (1920, 1080), (848, 480), (3840, 2160), (480, 640), (1080, 1920), (400, 400 * HIGH)]
SMALL = [(200, 150), (37, 29), (112, 84), (333, 500), (640, 50)]  # most are made larger


def pictures(width, height):
    """Noise, and noise of the darkest and brightest only, where sums reach over both ends; uint8 [H, W, 3]."""
    rng = np.random.default_rng(0)
    shape = (height, width, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8), 255 * rng.integers(0, 2, shape, dtype=np.uint8)


@pytest.mark.parametrize("target", [518, 112])
@pytest.mark.parametrize("size", SIZES + SMALL, ids=lambda size: "{}x{}".format(*size))
def test_the_numbers_are_pillows(size, target):
    resize = Resize.of(*size[::-1], target, 14)
    for image in pictures(*size):
        made = resample(torch.from_numpy(image), resize)
        assert made.dtype == torch.uint8
        np.testing.assert_array_equal(made.numpy(), resize.image(Image.fromarray(image)))


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.3, 128.0])
def test_no_sum_is_too_large_for_float32_to_hold(scale):
    """In whatever order it is added: not even of the brightest pixels under all weights of one sign."""
    for part in _weights(round(112 * scale), 112, 0, 112, torch.device("cpu")):
        assert torch.equal(part, part.round())
        assert 255 * part.abs().double().sum(1).max() < 2**24


def test_an_image_of_the_networks_size_stays_as_it_is():
    image = torch.from_numpy(pictures(112, 84)[0])
    assert resample(image, Resize.of(84, 112, 112, 14)) is image
