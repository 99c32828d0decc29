# SPDX-License-Identifier: Apache-2.0
"""Smooth camera motion along a room's closed path: a ground robot, or a camera carried by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from xsvggt_ros.geometry import R_WORLD_OPTICAL
from xsvggt_ros.rate import check_rate
from xsvggt_ros.rooms.room import Room


@dataclass(frozen=True)
class Motion:
    """Ranges to draw from once per room, and how far the camera then sways about its mean; metres, radians."""

    speed: tuple[float, float]  # metres per second
    height: tuple[float, float]
    tilt: tuple[float, float]  # downwards
    yaw_sway: float  # of the line of sight about the direction of travel, slow
    pitch_sway: float
    roll_sway: float
    position_sway: float  # of each coordinate


MOTIONS = {
    "robot": Motion((0.4, 0.7), (0.35, 1.1), (-0.05, 0.12), 0.35, 0.01, 0.01, 0.0),
    "handheld": Motion((0.6, 1.0), (1.2, 1.65), (-0.05, 0.25), 0.6, 0.17, 0.07, 0.06),
}
TURN_RATE = 0.9  # radians per second; bends are taken slower
INWARD = (0.0, 0.5)  # radians by which the line of sight leans from the path to the middle of the room


def lap_seconds(room: Room, kind: str = "robot") -> float:
    """How long a camera that moves so takes for one round of the room's path."""
    return float(_timetable(room.path, _speed(room, MOTIONS[kind])[0])[0][-1])


def _speed(room: Room, motion: Motion) -> tuple[float, np.random.Generator]:
    """In metres per second, and what the rest of the motion is drawn with."""
    rng = np.random.default_rng([room.seed, 1])
    return rng.uniform(*motion.speed), rng


def trajectory(room: Room, frames: int, kind: str = "robot", rate: float = 30.0) -> np.ndarray:
    """Camera poses T_room_cam, float64 [frames, 4, 4], `rate` per second, lap after lap of the room's path.

    World as in Room; camera axes are optical (x right, y down, z forward). A "robot" keeps its camera's
    height; "handheld" sways in every direction. The first frames do not depend on `frames`.
    Raises ValueError for an unknown kind or a rate that is not sensible.
    """
    check_rate(rate)
    if kind not in MOTIONS:
        raise ValueError(f"unknown motion {kind!r}: choose one of {', '.join(MOTIONS)}")
    motion = MOTIONS[kind]
    speed, rng = _speed(room, motion)
    knots, heading = _timetable(room.path, speed)
    time = np.arange(frames) / rate
    lap_time = (time + rng.uniform(0, knots[-1])) % knots[-1]
    closed = np.vstack([room.path, room.path[:1]])
    xy = np.stack([np.interp(lap_time, knots, closed[:, axis]) for axis in (0, 1)], 1)
    position = np.column_stack([xy, np.full(frames, rng.uniform(*motion.height))])
    position += np.stack([sway(rng, time, motion.position_sway, 0.7) for _ in range(3)], 1)
    inward = rng.uniform(*INWARD) * np.sign(heading[-1] - heading[0])
    yaw = np.interp(lap_time, knots, heading) + inward + sway(rng, time, motion.yaw_sway, 0.1)
    pitch = rng.uniform(*motion.tilt) + sway(rng, time, motion.pitch_sway, 0.4)
    return _poses(position, yaw, pitch, sway(rng, time, motion.roll_sway, 0.5))


def _timetable(path: np.ndarray, speed: float) -> tuple[np.ndarray, np.ndarray]:
    """Time in seconds and heading at each corner of the closed path, both [n + 1]: the first corner comes twice."""
    step = np.roll(path, -1, 0) - path
    along = np.arctan2(step[:, 1], step[:, 0])
    turn = (along - np.roll(along, 1) + np.pi) % (2 * np.pi) - np.pi  # at each corner
    turn_on_step = (turn + np.roll(turn, -1)) / 2
    duration = np.hypot(*step.T) / speed + np.abs(turn_on_step) / TURN_RATE
    heading = along[0] - turn[0] / 2 + np.concatenate([[0], np.cumsum(turn_on_step)])
    return np.concatenate([[0], np.cumsum(duration)]), heading


def sway(rng: np.random.Generator, time: np.ndarray, amplitude: float, hertz: float) -> np.ndarray:
    """Smooth, non-repeating, within +-amplitude: three sines of unrelated frequencies about `hertz`."""
    frequency, phase = hertz * rng.uniform(0.5, 1.5, 3), rng.uniform(0, 1, 3)
    return amplitude * np.sin(2 * np.pi * (np.outer(time, frequency) + phase)).mean(1)


def _poses(position: np.ndarray, yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """T_room_cam of a body (x forward, y left, z up) turned by yaw, pitch (down) and roll, and its optical camera."""
    T_room_cam = np.tile(np.eye(4), (len(position), 1, 1))
    R_world_body = Rotation.from_euler("ZYX", np.column_stack([yaw, pitch, roll])).as_matrix()
    T_room_cam[:, :3, :3] = R_world_body @ R_WORLD_OPTICAL
    T_room_cam[:, :3, 3] = position
    return T_room_cam
