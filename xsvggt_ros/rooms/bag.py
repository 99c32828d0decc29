# SPDX-License-Identifier: Apache-2.0
"""A synthetic sequence as a rosbag2: a camera's topics, and beside them the true depth and the true pose."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.bag import TYPES, NewBag
from xsvggt_ros.messages.conversions import FrameMessages
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.placement.scale import ScaleStatus
from xsvggt_ros.replay.sources import FRAME_ID
from xsvggt_ros.rooms.sequence import RoomFrame
from xsvggt_ros.stream import Frame, Status

TOPICS = {
    "/camera/image_raw": "sensor_msgs/msg/Image",  # rgb8
    "/camera/camera_info": "sensor_msgs/msg/CameraInfo",
    "/camera/depth/image": "sensor_msgs/msg/Image",  # 32FC1, metres
    "/camera/depth/camera_info": "sensor_msgs/msg/CameraInfo",
    "/tf": "tf2_msgs/msg/TFMessage",  # the camera's optical frame in the room
}
CONFIG = NodeConfig(world_frame="room")


def write_bag(frames: Iterable[RoomFrame], path: Path) -> None:
    """Writes a new rosbag2 folder (mcap) with the topics of `TOPICS`, one message of each per frame, at its stamp.

    Raises ValueError if the path exists, OSError if it cannot be written.
    """
    if path.exists():
        raise ValueError(f"{path} exists already: choose another folder")
    messages = FrameMessages(TYPES.types.__getitem__)
    with closing(NewBag(path, TOPICS)) as bag:
        for index, frame in enumerate(frames):
            for topic, message in _messages(messages, index, frame).items():
                bag.write(topic, frame.stamp_ns, message)


def _messages(messages: FrameMessages, index: int, frame: RoomFrame) -> dict[str, Any]:
    made = messages.convert(_truth(index, frame), frame.stamp_ns, FRAME_ID, CONFIG)
    depth, info = made["~/depth/image"](), made["~/depth/camera_info"]()
    colour = replace(depth, encoding="rgb8", step=3 * depth.width, data=frame.rgb.reshape(-1))
    return {
        "/camera/image_raw": colour,
        "/camera/camera_info": info,
        "/camera/depth/image": depth,
        "/camera/depth/camera_info": info,
        "/tf": made["/tf"](),
    }


def _truth(index: int, frame: RoomFrame) -> Placed:
    """What a perfect stream would say."""
    perfect = Frame(
        index=index,
        T_first_cam=frame.T_room_cam,
        intrinsics=frame.intrinsics,
        depth=frame.depth,
        confidence=np.ones_like(frame.depth),
        image=frame.rgb,
        status=Status(),
    )
    return Placed(perfect, frame.T_room_cam, frame.T_room_cam, FRAME_ID, ScaleStatus())
