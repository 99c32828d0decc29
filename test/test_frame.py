# SPDX-License-Identifier: Apache-2.0
"""Whose memory the arrays of a frame are, and how a frame shows itself."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.frames import frame as synthetic
from support.frames import read_ply
from support.full_disk import limited

from xsvggt_ros import GeometryStream
from xsvggt_ros.config import StreamConfig
from xsvggt_ros.status import StepStatus

ARRAYS = ("T_first_cam", "intrinsics", "depth", "confidence", "image", "predicted_points")
K = np.array([[100.0, 0, 55.5], [0, 100.0, 41.5], [0, 0, 1]])


@pytest.fixture(scope="module")
def steps():
    """(frame, the image it was made of) of three steps, the last at the network's own size and with intrinsics."""
    stream = GeometryStream(StreamConfig(image_width=112, point_head=True))
    images = [np.random.default_rng(i).integers(0, 256, (84, 112, 3), dtype=np.uint8) for i in range(3)]
    return [(stream.step(image, K), image) for image in images]


def test_a_frame_shares_no_memory_with_other_frames_nor_with_what_came_in(steps):
    arrays = [array for frame, image in steps for array in (*(getattr(frame, name) for name in ARRAYS), image)]
    arrays.append(K)
    shared = [(i, j) for i, a in enumerate(arrays) for j, b in enumerate(arrays[:i]) if np.shares_memory(a, b)]
    assert len(arrays) == 3 * 7 + 1 and shared == []


def test_the_image_is_read_only_and_the_others_are_the_users(steps):
    frame, _ = steps[0]
    assert {name for name in ARRAYS if not getattr(frame, name).flags.writeable} == {"image"}
    with pytest.raises(ValueError, match="read-only"):
        frame.image[:] = 0
    frame.image.copy()[:] = 0


def test_what_is_written_into_a_frame_reaches_no_later_one():
    streams = [GeometryStream(StreamConfig()) for _ in range(2)]
    image = np.random.default_rng(0).integers(0, 256, (84, 112, 3), dtype=np.uint8)
    frames = [stream.step(image) for stream in streams]
    for name in ("T_first_cam", "intrinsics", "depth", "confidence"):
        getattr(frames[0], name)[:] = 7
    touched, untouched = (stream.step(image[::-1].copy()) for stream in streams)
    for name in ("T_first_cam", "intrinsics", "depth", "confidence"):
        np.testing.assert_array_equal(getattr(touched, name), getattr(untouched, name))


def test_the_cloud_is_saved_in_the_first_cameras_axes(steps, tmp_path):
    frame, _ = steps[2]
    least = float(np.median(frame.confidence))
    frame.save_ply(tmp_path / "c.ply", least)
    frame.save_ply(str(tmp_path / "all.ply"))
    kept = read_ply(tmp_path / "c.ply")
    sure = frame.confidence >= least
    np.testing.assert_array_equal(np.stack([kept[axis] for axis in "xyz"], -1), frame.points_world()[sure])
    np.testing.assert_array_equal(np.stack([kept[c] for c in ("red", "green", "blue")], -1), frame.image[sure])
    assert len(kept) < len(read_ply(tmp_path / "all.ply")) == frame.depth.size


def test_a_cloud_that_cannot_be_saved_leaves_the_earlier_one(tmp_path):
    (tmp_path / "c.ply").write_text("earlier")
    with limited(4096), pytest.raises(OSError, match="File too large"):
        synthetic(size=(84, 112)).save_ply(tmp_path / "c.ply")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("c.ply", "earlier")]


def test_near_is_blue_and_far_is_red_in_the_depth_image():
    depth = np.linspace(1, 3, 48, dtype=np.float32).reshape(6, 8)
    picture = np.asarray(synthetic(depth=depth).depth_image()).astype(int)
    assert picture.shape == (6, 8, 3)
    red_over_blue = picture[..., 0] - picture[..., 2]
    assert red_over_blue[0, 3] < -50 and red_over_blue[5, 4] > 50


def test_a_flat_depth_has_a_picture_too():
    assert synthetic(depth=np.full((6, 8), 2, np.float32)).depth_image().size == (8, 6)


def test_the_cloud_is_seen_from_the_right_and_above():
    """A pole stands before a wall: from the right and above it covers what was left of it and below."""
    depth, image = np.full((60, 80), 4, np.float32), np.zeros((60, 80, 3), np.uint8)
    depth[25:35, 38:43], image[25:35, 38:43] = 2, (255, 0, 0)
    K = np.array([[60.0, 0, 39.5], [0, 60, 29.5], [0, 0, 1]])
    picture = np.asarray(synthetic(depth=depth, image=image, intrinsics=K).cloud_image())
    row, column = np.argwhere((picture == (255, 0, 0)).all(-1)).mean(axis=0)
    assert row > 35 and column < 34
    assert (picture == 0).all(-1).sum() > 1000 and (picture == 255).all(-1).any()  # the wall, and what lies beside it


def test_points_that_are_none_leave_the_others_in_the_cloud():
    depth = np.full((40, 40), 2.0, np.float32)
    whole = synthetic(depth=depth, image=np.zeros((40, 40, 3), np.uint8))
    some = depth.copy()
    some[:3, :3] = [np.nan, np.inf, -np.inf]
    shown = [np.asarray(replace(whole, depth=d).cloud_image()) for d in (depth, some, depth * np.nan)]
    black = [(picture == 0).all(-1).sum() for picture in shown]
    assert 0.8 * black[0] < black[1] <= black[0] and black[2] == 0


def test_a_notebook_shows_what_there_is(steps):
    frame, _ = steps[0]
    shown = np.asarray(Image.open(io.BytesIO(frame._repr_png_())))
    assert shown.shape == (2 * 84, 2 * 3 * 112, 3)
    np.testing.assert_array_equal(shown[::2, : 2 * 112 : 2], frame.image)
    np.testing.assert_array_equal(shown[::2, 2 * 112 : 4 * 112 : 2], np.asarray(frame.depth_image()))


def test_a_frame_without_depth_shows_its_image_and_says_why_there_is_no_more(tmp_path):
    frame = synthetic(status=StepStatus(frame=0, dense=False))
    assert Image.open(io.BytesIO(frame._repr_png_())).size == (40 * 8, 40 * 6)
    for ask in (frame.depth_image, frame.cloud_image, lambda: frame.save_ply(tmp_path / "c.ply")):
        with pytest.raises(ValueError, match="set dense to always"):
            ask()
    assert not list(tmp_path.iterdir())


def test_a_cloud_needs_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"clouds is no folder: make it first, for c\.ply"):
        synthetic(size=(84, 112)).save_ply(tmp_path / "clouds" / "c.ply")
