# SPDX-License-Identifier: Apache-2.0
"""The classes of rclpy and of rosbags, and a frame to put into them."""

import numpy as np
import pytest
from support.messages import TYPES, rclpy_class

from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import rotation_matrix
from xsvggt_ros.status import SegmentStatus, StepStatus


@pytest.fixture(params=["rclpy", "rosbags"])
def message_class(request):
    if request.param == "rosbags":
        return lambda name: TYPES.types[name]
    pytest.importorskip("rclpy")
    return rclpy_class


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def frame(rgb):
    rng = np.random.default_rng(1)
    T = np.eye(4)
    T[:3, :3] = rotation_matrix(np.array([0.1, -0.3, 0.2, 0.9]))
    T[:3, 3] = 1.5, -0.25, 3.0
    return Frame(
        index=3,
        T_first_cam=T,
        intrinsics=np.array([[9.0, 0.0, 3.75], [0.0, 9.5, 2.5], [0.0, 0.0, 1.0]]),
        depth=rng.uniform(1, 4, (6, 8)).astype(np.float32),
        confidence=rng.uniform(1, 3, (6, 8)).astype(np.float32),
        image=rgb,
        status=StepStatus(
            frame=3, event="why", policy="xstream", tokens=106, budget_tokens=212, floor_tokens=106, evicted_tokens=53,
            key_bits=2, value_bits=8, cache_bytes=2**33, scratch_bytes=7, track_bytes=11, camera_frames=4,
            seconds=dict(preprocess=0.25, encoder=0.5, aggregator=0.75, camera=1.0, dense=1.25, tracks=1.5,
                         segments=1.75, step=4.0),
            segments=SegmentStatus(5, False, 6, 2**34, 7, 8, 0.125, 0.375, True),
        ),
    )  # fmt: skip
