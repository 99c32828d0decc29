# SPDX-License-Identifier: Apache-2.0
"""Placed frames as messages of either library."""

import os
from importlib import import_module

import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from support.paths import ROOT
from xsvggt_ros.config import NodeConfig
from xsvggt_ros.geometry import ros_pose
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.status import ImageCounts, Performance, ScaleStatus, Status

os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"  # rclpy's messages then refuse what they would publish as garbage


STATUS = (ROOT / "msg" / "StreamStatus.msg").read_text()


TYPES = get_typestore(Stores.LATEST)


TYPES.register(get_types_from_msg(STATUS, "xsvggt_ros/msg/StreamStatus"))


STAMP = 1_700_000_000_123_456_789


def rclpy_class(name):
    package, _, kind = name.split("/")
    return getattr(import_module(f"{package}.msg"), kind)


COUNTS = ImageCounts(9, 1, 2, 3, 4, 5, 6, 7)


PERFORMANCE = Performance(30.5, 0.25, 0.5, 0.125, 3)


SCALE = ScaleStatus("odometry", 2.5, 0.0625, 7)


def place(frame, child="lens", scale=SCALE, starts=False, stamp=STAMP):
    T_odom_cam = ros_pose(frame.T_first_cam)
    return Placed(stamp, "lens", frame, T_odom_cam, T_odom_cam, child, scale, starts)


def convert(messages, frame, config=None, stamp=STAMP, **placed):
    made = messages.convert(place(frame, stamp=stamp, **placed), config or NodeConfig())
    status = messages.status(Status(frame.status, SCALE, COUNTS, PERFORMANCE), stamp, "lens")
    return {topic: make() for topic, make in made.items()} | {"~/status": status}


def cloud_of(msg):
    """x y z float32 [h, w, 3] and rgb uint8 [h, w, 3] of a PointCloud2, read by its own description."""
    assert [(f.name, f.datatype, f.count) for f in msg.fields] == [(n, 7, 1) for n in ("x", "y", "z", "rgb")]
    layout = {f.name: ("<f4" if f.name != "rgb" else "<u4", f.offset) for f in msg.fields}
    names, (formats, offsets) = list(layout), zip(*layout.values(), strict=True)
    dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": msg.point_step})
    points = np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.row_step).view(dtype)
    packed = points["rgb"]
    return np.stack([points[n] for n in "xyz"], -1), np.stack([packed >> s & 255 for s in (16, 8, 0)], -1)
