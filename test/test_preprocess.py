# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from PIL import Image
from support.published_images import load_images

from xsvggt_ros.preprocess import Resize


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (640, 480, (392, 518)),
        (1920, 1080, (294, 518)),
        (480, 640, (518, 518)),
        (518, 14, (14, 518)),
        (100, 100, (518, 518)),
    ],
)
def test_sides_become_multiples_of_the_patch(width, height, expected):
    resize = Resize.of(height, width, 518, 14)
    assert resize.image(Image.new("RGB", (width, height))).shape == (*expected, 3)


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (333, 777)])
def test_intrinsics_follow_the_image(size):
    """A bright square's centre stays on the ray that the camera matrix gives it."""
    width, height = size
    resize = Resize.of(height, width, 518, 14)
    x, y = width // 2 - 31, height // 2 + 23
    image = np.zeros((height, width, 3), np.uint8)
    image[y - 4 : y + 5, x - 4 : x + 5] = 255
    seen = resize.image(Image.fromarray(image))[..., 0].astype(float)
    rows, columns = np.indices(seen.shape)
    centre = np.array([(columns * seen).sum(), (rows * seen).sum()]) / seen.sum()
    K = np.array([[400.0, 0, width / 2], [0, 410.0, height / 2], [0, 0, 1]])
    ray = np.linalg.solve(K, [x, y, 1])
    projected = resize.intrinsics(K) @ ray
    np.testing.assert_allclose(projected[:2], centre, atol=0.05)


@pytest.mark.parametrize("size", [(640, 480), (480, 640)])
def test_intrinsics_of_the_image_are_found_again(size):
    resize = Resize.of(size[1], size[0], 518, 14)
    K = np.array([[400.0, 0, 310.5], [0, 410.0, 222.25], [0, 0, 1]])
    np.testing.assert_allclose(resize.image_intrinsics(resize.intrinsics(K)), K, rtol=1e-13)


def test_intrinsics_of_the_caller_are_not_changed():
    K = np.eye(3)
    Resize.of(480, 640, 518, 14).intrinsics(K)
    np.testing.assert_array_equal(K, np.eye(3))


@pytest.mark.parametrize(("height", "width"), [(5, 640), (0, 640), (480, 0)])
def test_an_image_without_a_row_of_patches_is_refused(height, width):
    with pytest.raises(ValueError, match="less than one row"):
        Resize.of(height, width, 518, 14)


def test_transparency_becomes_white_and_different_sizes_are_padded():
    clear = Image.new("RGBA", (60, 30), (0, 0, 0, 0))
    dark = Image.new("RGB", (60, 60))
    both = load_images([clear, dark], target=56, patch=14)
    assert both.shape == (2, 56, 56, 3)
    assert (both[0] == 255).all() and (both[1] == 0).all()


def test_an_image_that_is_a_line_is_refused_at_once():
    """It would become 200,000 times its size before nearly all of it is cut off."""
    with pytest.raises(ValueError, match="1x20000 is more than 16 times as high as wide"):
        Resize.of(20_000, 1, 518, 14)
    assert Resize.of(160, 10, 112, 14).height == 112
