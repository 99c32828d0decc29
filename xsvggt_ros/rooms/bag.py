# SPDX-License-Identifier: Apache-2.0
"""A synthetic sequence as a rosbag2: a camera's topics, and beside them the true depth and the true pose."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from xsvggt_ros.messages.bag import TYPES, NewBag
from xsvggt_ros.messages.decode import FRAME_ID
from xsvggt_ros.messages.encode import Encoder
from xsvggt_ros.rooms.sequence import RoomFrame

TOPICS = {
    "/camera/image_raw": "sensor_msgs/msg/Image",  # rgb8
    "/camera/camera_info": "sensor_msgs/msg/CameraInfo",
    "/camera/depth/image": "sensor_msgs/msg/Image",  # 32FC1, metres
    "/camera/depth/camera_info": "sensor_msgs/msg/CameraInfo",
    "/tf": "tf2_msgs/msg/TFMessage",  # the camera's optical frame in the room
}
ROOM = "room"  # TF frame


def write_bag(frames: Iterable[RoomFrame], path: Path) -> None:
    """Writes a new rosbag2 folder (mcap) with the topics of `TOPICS`, one message of each per frame, at its stamp.

    Raises ValueError if the path exists, OSError if it cannot be written.
    """
    if path.exists():
        raise ValueError(f"{path} exists already: choose another folder")
    encoder = Encoder(TYPES.types.__getitem__)
    with closing(NewBag(path, TOPICS)) as bag:
        for frame in frames:
            for topic, message in _messages(encoder, frame).items():
                bag.write(topic, frame.stamp_ns, message)


def _messages(encode: Encoder, frame: RoomFrame) -> dict[str, Any]:
    camera = encode.header(frame.stamp_ns, FRAME_ID)
    info = encode.camera_info(camera, frame.intrinsics, *frame.depth.shape)
    pose = encode.transform(encode.header(frame.stamp_ns, ROOM), FRAME_ID, encode.pose(frame.T_room_cam))
    return {
        "/camera/image_raw": encode.image(camera, frame.rgb),
        "/camera/camera_info": info,
        "/camera/depth/image": encode.image(camera, frame.depth),
        "/camera/depth/camera_info": info,
        "/tf": encode.transforms([pose]),
    }
