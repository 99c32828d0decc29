# SPDX-License-Identifier: Apache-2.0
"""Synthetic rooms with exact depth and pose, reproducible by seed.

World axes are the room's: origin in the middle of the floor, x and y along the walls, z up; metres.
"""

from xsvggt_ros.rooms.motion import trajectory
from xsvggt_ros.rooms.render import render
from xsvggt_ros.rooms.room import Room, make_room
from xsvggt_ros.rooms.scene import Scene, furnish
from xsvggt_ros.rooms.sequence import RoomFrame, pinhole, stream, write_folder

__all__ = [
    "Room",
    "RoomFrame",
    "Scene",
    "furnish",
    "make_room",
    "pinhole",
    "render",
    "stream",
    "trajectory",
    "write_folder",
]
