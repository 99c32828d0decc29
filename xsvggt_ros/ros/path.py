# SPDX-License-Identifier: Apache-2.0
"""The bytes of a path that grows: rclpy would convert all of its poses anew for each message."""

from __future__ import annotations

import struct

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.serialization import serialize_message


class SerializedPath:
    """Serialises a path as it grows at its end and loses poses at its beginning, each pose once.

    In CDR the bytes of a value depend on its offset modulo 8 only. A pose ends with numbers of 8 bytes, so all but the
    first of a path begin as they do alone.
    """

    def __init__(self) -> None:
        self._poses: dict[int, tuple[PoseStamped, bytes]] = {}  # by id, which is no other's while the pose is kept

    def serialize(self, path: Path) -> bytes:
        """What rclpy sends for a path of one pose or more, all different objects, unchanged since they came first."""
        self._poses = {id(pose): self._poses.get(id(pose)) or (pose, _alone(pose)) for pose in path.poses}
        empty = serialize_message(Path(header=path.header))  # ends with the number of poses
        first = serialize_message(Path(header=path.header, poses=path.poses[:1]))[len(empty) :]
        others = [data for _, data in self._poses.values()][1:]
        return b"".join([empty[:-4], struct.pack("=I", len(path.poses)), first, *others])


def _alone(pose: PoseStamped) -> bytes:
    return serialize_message(pose)[4:]  # without the encoding's name
