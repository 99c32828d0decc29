# SPDX-License-Identifier: Apache-2.0
"""Frames at the size of their camera's image: planes stay planes, edges are the image's, and nothing is made up."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.frames import frame

from xsvggt_ros.frame import Tracks
from xsvggt_ros.geometry import intrinsic_matrix, unproject
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.upsampling import upsampled

TALL, WIDE = (200, 100), (90, 160)  # rows and columns of images; of a tall one the network sees the middle rows
WIDTH = 56  # of the network


def seen(image, depth_of, **values):
    """The frame of an image [H, W, 3], whose depth is a function of the image's pixels (x, y)."""
    resize = Resize.of(*image.shape[:2], WIDTH, 14)
    rows, columns = np.indices((resize.height, resize.width), np.float32)
    depth = depth_of(*np.moveaxis(resize.to_image(np.stack([columns, rows], -1)), -1, 0)).astype(np.float32)
    size = depth.shape
    K = resize.intrinsics(intrinsic_matrix(120.0, 118.0, (image.shape[1] - 1) / 2, 40.0))
    given = dict(depth=depth, confidence=np.full(size, 2, np.float32), image=resize.image(Image.fromarray(image)))
    return frame(size=size, **(given | dict(intrinsics=K, resize=resize) | values))


def pixels(image):
    """Their x and y, [H, W] each."""
    y, x = np.indices(image.shape[:2], np.float32)
    return x, y


def noise(size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def plane(x, y):
    """Depth of a floor, say: its inverse is linear in the image."""
    return 1 / (0.05 + 0.001 * x + 0.003 * y)


def in_view(image):
    """The rows of an image that the network sees, and not at its border, where there is nothing to go on with."""
    resize = Resize.of(*image.shape[:2], WIDTH, 14)
    y = resize.to_input(np.stack([np.zeros(len(image)), np.arange(len(image))], -1).astype(np.float32))[:, 1]
    return (y >= 0) & (y <= resize.height - 1), (y < -0.5) | (y >= resize.height - 0.5)


@pytest.mark.parametrize("size", [TALL, WIDE, (30, 40)])
def test_a_plane_stays_a_plane_whatever_is_painted_on_it(size):
    image = noise(size)
    large = upsampled(seen(image, plane), image)
    inside, unseen = in_view(image)
    assert large.depth.dtype == np.float32 and large.depth.shape == size
    x, y = pixels(image)
    expected = plane(x, y)
    columns = slice(2, -2)
    np.testing.assert_allclose(large.depth[inside][:, columns], expected[inside][:, columns], rtol=2e-5)
    assert np.isfinite(large.depth[~unseen]).all()


def test_what_the_network_did_not_see_is_unknown_and_nothing_else():
    image = noise(TALL)
    large = upsampled(seen(image, plane), image)
    _, unseen = in_view(image)
    assert 0.4 < unseen.mean() < 0.6
    for values in (large.depth, large.confidence, large.points_cam()):
        unknown = np.isnan(values).reshape(*TALL, -1)
        assert unknown[unseen].all() and not unknown[~unseen].any()


def scene(size):
    """An image of a bright disc before a dark wall, and its depth."""
    x, y = pixels(np.empty((*size, 3)))
    disc = (x - size[1] * 0.52) ** 2 + (y - size[0] * 0.47) ** 2 < (size[0] * 0.3) ** 2
    image = np.where(disc[..., None], np.uint8([230, 200, 90]), np.uint8([40, 50, 90]))
    return image, np.where(disc, 1.0, 3.0)


def test_edges_are_where_the_image_has_them_and_no_point_is_in_the_air():
    image, depth = scene((120, 160))
    small = seen(image, lambda x, y: depth[np.rint(y).astype(int).clip(0, 119), np.rint(x).astype(int).clip(0, 159)])
    large = upsampled(small, image).depth
    assert {*np.unique(large.round(4))} == {1, 3}
    nearest = small.resize.to_input(np.stack(pixels(image), -1)).round().astype(int)
    by_place = small.depth[nearest[..., 1].clip(0, small.depth.shape[0] - 1), nearest[..., 0].clip(0, WIDTH - 1)]
    wrong, wrong_by_place = ((np.abs(d - depth) > 0.1).mean() for d in (large, by_place))
    assert wrong < wrong_by_place / 3 and wrong_by_place > 0.005


def test_what_was_unsure_stays_so_in_the_same_places():
    image = noise(WIDE)
    small = seen(image, plane)
    sure = np.random.default_rng(1).random(small.depth.shape) < 0.5
    small = replace(small, confidence=np.where(sure, 2, 1.2).astype(np.float32))
    large = upsampled(small, image)
    place = (np.stack(pixels(image), -1) + 0.5) * [small.resize.scale_x, small.resize.scale_y]
    column, row = np.moveaxis(np.floor(place).astype(int), -1, 0)
    midway = (np.abs(place - np.rint(place)) < 1e-6).any(-1)  # either of two is the nearest
    assert midway.mean() < 0.1
    np.testing.assert_array_equal(large.confidence[~midway], small.confidence[row, column][~midway])


def test_at_edges_what_is_sure_counts_more():
    """Pixels of one colour: a wall, and in it a column of which nothing is known but a guess."""
    image = np.full((*WIDE, 3), 128, np.uint8)
    small = seen(image, lambda x, y: np.where(np.abs(x - 80) < 2, 2.0, 4.0))
    guess = small.depth < 3
    assert guess.any()
    confidence = np.where(guess, 1, 1000).astype(np.float32)
    assert (upsampled(small, image).depth < 3).any()
    np.testing.assert_allclose(upsampled(replace(small, confidence=confidence), image).depth, 4, rtol=1e-5)


def test_the_camera_of_the_image_is_the_one_that_was_given():
    image = noise(TALL)
    large = upsampled(seen(image, plane), image)
    np.testing.assert_allclose(large.intrinsics, intrinsic_matrix(120.0, 118.0, 49.5, 40.0), rtol=1e-12)
    assert large.image is image and large.resize is None
    np.testing.assert_array_equal(large.points_cam(), unproject(large.depth, large.intrinsics))


def test_points_of_the_point_head_are_enlarged_with_the_depth():
    image, depth = scene((120, 160))
    small = seen(image, lambda x, y: depth[np.rint(y).astype(int).clip(0, 119), np.rint(x).astype(int).clip(0, 159)])
    points = small.points_world()
    large = upsampled(replace(small, predicted_points=points + np.float32(0.5)), image)
    np.testing.assert_allclose(large.predicted_points[..., 2], upsampled(small, image).depth + 0.5, rtol=0.02)
    assert large.points_cam().shape == (120, 160, 3)


def test_tracks_are_in_the_pixels_of_the_image():
    image = noise(WIDE)
    tracks = Tracks(np.arange(1), np.float32([[20, 10]]), np.ones(1, bool), np.ones(1, np.float32))
    small = seen(image, plane, tracks=tracks)
    large = upsampled(small, image)
    np.testing.assert_array_equal(large.tracks.pixels, small.resize.to_image(tracks.pixels))
    np.testing.assert_allclose(large.tracked_points(), small.tracked_points(), rtol=0.05)


def test_a_frame_of_that_size_stays_as_it_is():
    image = noise((42, WIDTH))
    small = seen(image, plane)
    assert upsampled(small, image) is small
    alone = replace(small, resize=None)
    assert upsampled(alone, image) is alone


def test_a_frame_without_depth_has_none_then():
    image = noise(TALL)
    small = seen(image, lambda x, y: np.full(x.shape, np.nan))
    assert np.isnan(upsampled(small, image).depth).all()
