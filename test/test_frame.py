# SPDX-License-Identifier: Apache-2.0
"""Whose memory the arrays of a frame are."""

import numpy as np
import pytest

from xsvggt_ros import GeometryStream
from xsvggt_ros.config import StreamConfig

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
