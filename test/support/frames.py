# SPDX-License-Identifier: Apache-2.0
"""Frames that no model has seen, and what becomes of them."""

from pathlib import Path

import numpy as np

from support.recordings import picture
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import rigid, ros_pose
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.status import ScaleStatus, StepStatus

VERTEX = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]


def frame(index=0, size=(6, 8), **values):
    rng = np.random.default_rng(index)
    angle = 0.1 * index
    R = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    defaults = dict(
        index=index,
        T_first_cam=rigid(R, np.array([0.1, 0.2, 0.3]) * index),
        intrinsics=np.array([[10.0, 0, 4], [0, 10, 3], [0, 0, 1]]),
        depth=rng.uniform(0.5, 3, size).astype(np.float32),
        confidence=rng.uniform(1, 3, size).astype(np.float32),
        image=picture(index, size),
        status=StepStatus(frame=index, seconds=dict.fromkeys(
            ("preprocess", "encoder", "aggregator", "camera", "dense", "step"), 0.0)),
    )  # fmt: skip
    return Frame(**(defaults | values))


def place(frame, stamp_ns=0):
    T_odom_cam = ros_pose(frame.T_first_cam)
    starts = frame.index == 0
    return Placed(stamp_ns, "camera", frame, T_odom_cam, T_odom_cam, "camera", ScaleStatus(), starts=starts)


def read_ply(path: Path) -> np.ndarray:
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    properties = [line.split()[1:] for line in lines if line.startswith("property")]
    assert properties == [["float" if kind == "<f4" else "uchar", name] for name, kind in VERTEX]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    vertices = np.frombuffer(body, VERTEX)
    assert len(vertices) == count
    return vertices
