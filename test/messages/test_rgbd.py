# SPDX-License-Identifier: Apache-2.0
"""Colour, depth and their camera as RGB-D consumers take them: one size, one stamp, one frame, and one cloud."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from support.messages import STAMP, cloud_of, place

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.topics import FrameMessages
from xsvggt_ros.placement import placement
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.settings import changed

RGBD = ("~/rgb/image", "~/rgb/camera_info", "~/depth/image", "~/depth/camera_info")
SIZE = (15, 20)  # of the camera's image; the network's is 6 x 8


@pytest.fixture(params=["network", "input"])
def placed(request, frame):
    """A placed frame, with its camera's image or without."""
    image = np.random.default_rng(3).integers(0, 256, (*SIZE, 3), np.uint8)
    resize = Resize(scale_x=8 / SIZE[1], scale_y=6 / SIZE[0], width=8, scaled_height=6, height=6, top=0)
    given = place(replace(frame, resize=resize))
    return replace(given, image=image) if request.param == "input" else given


def messages_of(message_class, placed, **settings):
    made = FrameMessages(message_class).convert(placed, changed(NodeConfig(), settings))
    return SimpleNamespace(**{topic.strip("~/").replace("/", "_"): make() for topic, make in made.items()})


def as_depth_image_proc(rgb, depth, info):
    """What its PointCloudXyzrgbNode makes of the three, as its documentation says and image_geometry's.

    Both images in one frame and of one size; the rectified camera is the left 3x3 of P; depth is 32FC1 in metres, in
    which what is not finite is no depth, or 16UC1 in millimetres, in which 0 is none; where there is none the point is
    NaN. Returns x y z [H, W, 3] and the colours [H, W, 3].
    """
    assert rgb.header.frame_id == depth.header.frame_id == info.header.frame_id
    assert (rgb.height, rgb.width) == (depth.height, depth.width) == (info.height, info.width)
    assert rgb.encoding == "rgb8" and depth.encoding == "32FC1"
    P = np.reshape(info.p, (3, 4))
    z = np.frombuffer(bytes(depth.data), np.float32).reshape(depth.height, depth.step // 4)[:, : depth.width]
    v, u = np.indices(z.shape)
    with np.errstate(invalid="ignore"):
        xyz = np.stack([(u - P[0, 2]) * z / P[0, 0], (v - P[1, 2]) * z / P[1, 1], z], -1)
    xyz[~np.isfinite(z)] = np.nan
    return xyz, np.frombuffer(bytes(rgb.data), np.uint8).reshape(rgb.height, rgb.step)[:, : 3 * rgb.width].reshape(
        *z.shape, 3
    )


def test_depth_image_proc_makes_our_own_cloud_of_them(message_class, placed):
    made = messages_of(message_class, placed, point_stride=1, confidence_threshold=2.0)
    xyz, colours = as_depth_image_proc(made.rgb_image, made.depth_image, made.rgb_camera_info)
    ours, our_colours = cloud_of(made.points)
    assert 0.2 < np.isnan(ours).mean() < 0.8
    np.testing.assert_allclose(ours, xyz, rtol=1e-6)
    np.testing.assert_array_equal(our_colours, colours)


def test_they_are_of_one_size_and_moment(message_class, placed):
    made = FrameMessages(message_class).convert(placed, NodeConfig())
    found = [made[topic]() for topic in RGBD]
    size = (6, 8) if placed.image is None else SIZE
    assert {(message.height, message.width) for message in found} == {size}
    assert {(stamp_ns(message.header), message.header.frame_id) for message in found} == {(STAMP, "lens")}
    assert made["~/confidence/image"]().width == size[1]


def test_both_cameras_are_the_one_of_these_images_without_distortion(message_class, placed):
    made = messages_of(message_class, placed)
    K = placed.frame.intrinsics
    if placed.image is not None:  # 2.5 times as large; pixel centres lie at integers
        K = [[22.5, 0, 2.5 * 4.25 - 0.5], [0, 23.75, 2.5 * 3 - 0.5], [0, 0, 1]]
    for info in (made.rgb_camera_info, made.depth_camera_info):
        np.testing.assert_allclose(np.reshape(info.k, (3, 3)), K, rtol=1e-12)
        np.testing.assert_array_equal(np.reshape(info.p, (3, 4)), np.c_[np.reshape(info.k, (3, 3)), np.zeros(3)])
        np.testing.assert_array_equal(np.reshape(info.r, (3, 3)), np.eye(3))
        assert list(info.d) == [0.0] * 5 and info.distortion_model == "plumb_bob"


def test_the_colour_image_is_the_cameras_or_what_the_network_saw(message_class, placed):
    made = messages_of(message_class, placed)
    colours = np.frombuffer(bytes(made.rgb_image.data), np.uint8).reshape(made.rgb_image.height, -1, 3)
    np.testing.assert_array_equal(colours, placed.frame.image if placed.image is None else placed.image)


def test_depth_is_enlarged_once_and_only_for_those_who_want_it(message_class, placed, monkeypatch):
    asked, enlarge = [], placement.upsampled
    monkeypatch.setattr(placement, "upsampled", lambda *args: asked.append(args) or enlarge(*args))
    made = FrameMessages(message_class).convert(placed, NodeConfig())
    dense = ("~/depth/image", "~/confidence/image", "~/points")
    for topic in made.keys() - set(dense):
        made[topic]()
    assert asked == []
    for topic in dense:
        made[topic]()
    assert len(asked) == (placed.image is not None)


def test_a_frame_without_depth_still_has_its_colour_image(message_class, placed):
    frame = placed.frame
    pose_only = replace(placed, frame=replace(frame, status=replace(frame.status, dense=False)))
    made = FrameMessages(message_class).convert(pose_only, NodeConfig())
    assert {"~/rgb/image", "~/rgb/camera_info"} <= made.keys() and "~/depth/image" not in made
