# SPDX-License-Identifier: Apache-2.0
"""A recording of the demo as it should be, made without ROS: the stream answers in the node's place."""

from __future__ import annotations

import numpy as np

from xsvggt_ros.config import NodeConfig, changed
from xsvggt_ros.geometry import ros_pose
from xsvggt_ros.recording import Answer, Played, Recording
from xsvggt_ros.ros.conversions import InputCounts
from xsvggt_ros.sequences import InputImage
from xsvggt_ros.stream import Frame, GeometryStream
from xsvggt_ros.world import stream as room

TOKENS = 17  # of a frame at width 56
START = {"image_width": 56, "cache.budget_tokens": 4 * TOKENS, "cache.key_bits": 16, "cache.value_bits": 16}
LATER = {"cache.budget_tokens": 2 * TOKENS, "cache.key_bits": 4, "cache.value_bits": 4}
DROPPED = 3  # this image gets no answer


def make_recording(images: int = 10) -> Recording:
    """`images` of a synthetic room; the settings change half way."""
    start = changed(NodeConfig(), START)
    later = changed(start, LATER)
    truth = list(room(seed=1, frames=images, width=64, height=48))
    stream = GeometryStream(start.stream)
    answers = []
    for i, frame in enumerate(truth):
        if i == images // 2:
            stream.reconfigure(later.stream.cache)
        if i != DROPPED:
            answers.append(_answer(i, stream.step(frame.rgb, frame.intrinsics), start.output.point_stride))
    counts = InputCounts(frames_received=images, frames_dropped=1)
    played = Played(30.0, answers, [], [], counts, change_after=images // 2, refusal="")
    sent = [InputImage(t.stamp_ns, t.rgb, t.intrinsics, "camera") for t in truth]
    return Recording("a <room>", sent, truth, start, later, played, exit_code=0)


def _answer(image: int, frame: Frame, stride: int) -> Answer:
    depth = np.where(frame.confidence > np.median(frame.confidence), frame.depth, np.float32(np.nan))
    points = np.where(np.isfinite(depth)[..., None], frame.points_cam(), np.float32(np.nan))
    return Answer(
        image=image,
        latency=0.04,
        T_tf=ros_pose(frame.T_world_cam),
        T_odometry=ros_pose(frame.T_world_cam),
        intrinsics=frame.intrinsics,
        depth=depth,
        confidence=frame.confidence,
        points=points[::stride, ::stride],
        status=frame.status,
    )
