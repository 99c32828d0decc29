# SPDX-License-Identifier: Apache-2.0
"""A recording of the demo as it should be, made without ROS: the stream in the node's place, the truth in its errors.

All depth is too large by LONGER, after the change by LONGER_LATER; all positions are too near by NEARER.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.demo.errors import true_depth, unit
from xsvggt_ros.demo.recording import Answer, Played, Recording
from xsvggt_ros.frame import Frame, InputImage
from xsvggt_ros.geometry import inverse, ros_pose
from xsvggt_ros.messages.encode import TRACK
from xsvggt_ros.rooms import RoomFrame
from xsvggt_ros.rooms import stream as room
from xsvggt_ros.settings import changed
from xsvggt_ros.status import ImageCounts
from xsvggt_ros.stream import GeometryStream

TOKENS = 17  # of a frame at width 56
START = {"image_width": 56, "cache.budget_tokens": 4 * TOKENS, "cache.key_bits": 16, "cache.value_bits": 16}
LATER = {"cache.budget_tokens": 2 * TOKENS, "cache.key_bits": 4, "cache.value_bits": 4}
DROPPED = 3  # this image gets no answer
LONGER, LONGER_LATER, NEARER = 0.1, 0.2, 0.25


def make_recording(images: int = 10, size: tuple[int, int] = (64, 48), rate: float = 3.0) -> Recording:
    """`images` of a synthetic room; the settings change half way."""
    start = changed(NodeConfig(), START)
    later = changed(start, LATER)
    truth = list(room(1, images, *size, rate=rate))
    stream = GeometryStream(start.stream)
    answers, unchanged = [], []
    for i, frame in enumerate(truth):
        if i == images // 2:
            stream.reconfigure(later.stream.cache)
        if i != DROPPED:
            step = stream.step(frame.rgb, frame.intrinsics)
            longer = LONGER_LATER if i >= images // 2 else LONGER
            answers.append(_answer(i, _erring(step, truth[0], frame, longer), start.output.point_stride))
            unchanged.append(_erring(step, truth[0], frame, LONGER))
    counts = ImageCounts(frames_received=images, frames_replaced=1)
    played = Played(30.0, answers, [], [], counts, change_after=images // 2, refusal="")
    sent = [InputImage(t.stamp_ns, t.rgb, t.intrinsics, "camera") for t in truth]
    return Recording("a <room>", sent, truth, start, later, played, unchanged, exit_code=0)


def shortened(recording: Recording, part: slice) -> Recording:
    """The recording with some of its answers."""
    played = replace(recording.played, answers=recording.answers[part])
    return replace(recording, played=played, unchanged=recording.unchanged[part])


def _erring(frame: Frame, first: RoomFrame, truth: RoomFrame, longer: float) -> Frame:
    """The frame with geometry of known errors, in model units."""
    T_first_cam = inverse(first.T_room_cam) @ truth.T_room_cam
    T_first_cam[:3, 3] *= (1 - NEARER) / unit([first])
    depth = true_depth(truth, frame.depth.shape) * np.float32((1 + longer) / unit([first]))
    return replace(frame, T_first_cam=T_first_cam, depth=depth)


def _answer(image: int, frame: Frame, stride: int) -> Answer:
    depth = np.where(frame.confidence > np.median(frame.confidence), frame.depth, np.float32(np.nan))
    points = np.where(np.isfinite(depth)[..., None], frame.points_cam(), np.float32(np.nan))
    return Answer(
        image=image,
        latency=0.04,
        T_tf=ros_pose(frame.T_first_cam),
        T_odometry=ros_pose(frame.T_first_cam),
        intrinsics=frame.intrinsics,
        depth=depth,
        confidence=frame.confidence,
        points=points[::stride, ::stride],
        status=frame.status,
        tracks=np.array([(0, 0, 1, 10 + image, 20, 7, 1, 0.9), (0, 0, 1, 40, 5, 8, 0, 0.1)], TRACK),
    )
