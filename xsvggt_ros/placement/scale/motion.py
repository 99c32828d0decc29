# SPDX-License-Identifier: Apache-2.0
"""The scale from motion: how far the robot says that it moved, over how far the stream says that it did."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from xsvggt_ros.config import ScaleConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array, interpolate, inverse, rigid
from xsvggt_ros.placement.scale.ratio import RunningRatio
from xsvggt_ros.placement.timeline import Timeline
from xsvggt_ros.status import ScaleStatus

POSES = 10_000  # of the reference kept, 10 s at 1 kHz
FRAMES = 1_000  # that wait for the reference, at most, or that are remembered with it
GAP_NS = 1_000_000_000  # between reference poses; a longer one is not interpolated
TURN = np.deg2rad(5.0)  # beyond it, a camera whose mounting is unknown moved unlike its robot


@dataclass(frozen=True)
class Moment:
    """One time in both worlds."""

    T_first_cam: Array  # the stream's, model units
    T_reference_cam: Array  # the reference's, metres; its base's instead of its camera's where the mounting is unknown


@dataclass(frozen=True)
class _Frame:
    """One that waits for the reference."""

    index: int
    stamp_ns: int
    T_first_cam: Array
    T_base_cam: Array | None  # None: its mounting is unknown


class ReferenceMotion:
    """The scale from poses of the robot, such as wheel odometry's (sources odometry and tf).

    A measurement is the ratio of two straight distances from one keyframe to the next, which is the first frame by
    which the reference has moved `min_motion`. That should be at least ten times the error of the stream's positions:
    errors lengthen a short way. Only distances are compared, so that no turned frame can spoil the scale. Frames wait
    until the reference has come for their time; its poses may come late and in any order.
    """

    def __init__(self) -> None:
        self._poses: Timeline[Array] = Timeline(POSES)
        self.reset()

    def reset(self) -> None:
        """Forgets what was measured; the reference, whose unit does not change, is kept."""
        self._ratios = RunningRatio()
        self._waiting: deque[_Frame] = deque(maxlen=FRAMES)
        self._cameras: dict[int, Array] = {}  # T_reference_cam by the index of the frame
        self._keyframe: Moment | None = None
        self._newest: Array | None = None  # T_first_cam of the newest frame

    def rescale(self, factor: float) -> None:
        """As ScaleSource. Ways that began in the old unit go on in the new one."""
        self._ratios.rescale(factor)
        if self._newest is None:
            return
        joint = self._newest[:3, 3]

        def moved(T_first_cam: Array) -> Array:
            return rigid(T_first_cam[:3, :3], joint + (T_first_cam[:3, 3] - joint) / factor)

        waiting = [replace(frame, T_first_cam=moved(frame.T_first_cam)) for frame in self._waiting]
        self._waiting = deque(waiting, maxlen=FRAMES)
        if self._keyframe:
            self._keyframe = replace(self._keyframe, T_first_cam=moved(self._keyframe.T_first_cam))

    def add_pose(self, stamp_ns: int, T_reference_base: Array) -> None:
        """Takes a pose [4, 4], metres, in a frame that does not move. One that is not finite is ignored."""
        if np.isfinite(T_reference_base).all():
            self._poses.add(stamp_ns, T_reference_base)

    def update(self, frame: Frame, stamp_ns: int, T_base_cam: Array | None, config: ScaleConfig) -> ScaleStatus:
        """Takes a frame in the model's unit; T_base_cam [4, 4] is the camera in the frame that the poses are of.

        Without it, the robot's motion is taken for the camera's where both turn little.
        """
        self._newest = frame.T_first_cam
        while self._waiting and self._waiting[-1].stamp_ns >= stamp_ns:
            self._waiting.pop()  # its stamp was astray: the reference may never come to it
        self._waiting.append(_Frame(frame.index, stamp_ns, frame.T_first_cam, T_base_cam))
        while self._waiting and self._poses.reaches(self._waiting[0].stamp_ns):
            waited = self._waiting.popleft()
            T_reference_base, mounting = self._reference(waited.stamp_ns), waited.T_base_cam
            if T_reference_base is not None:
                T_reference_cam = T_reference_base if mounting is None else T_reference_base @ mounting
                self._measure(Moment(waited.T_first_cam, T_reference_cam), mounting is not None, config)
                if mounting is not None:
                    self._remember(waited.index, T_reference_cam)
        return self._ratios.status(config)

    def motion(self, a: int, b: int) -> Array | None:
        """T_a_b [4, 4] of the camera at two frames of these indices, metres; None where it is not known of both."""
        if a not in self._cameras or b not in self._cameras:
            return None
        return inverse(self._cameras[a]) @ self._cameras[b]

    def _remember(self, index: int, T_reference_cam: Array) -> None:
        if len(self._cameras) >= FRAMES:
            del self._cameras[next(iter(self._cameras))]  # the oldest
        self._cameras[index] = T_reference_cam

    def _reference(self, stamp_ns: int) -> Array | None:
        """T_reference_base at a time that the reference has reached; None where its poses are too far apart."""
        self._poses.forget_before(stamp_ns)
        around = self._poses.around(stamp_ns)
        (before, T_before), (after, T_after) = around[0], around[-1]
        if after == stamp_ns:
            return T_after
        if len(around) < 2 or after - before > GAP_NS:
            return None
        return interpolate(T_before, T_after, (stamp_ns - before) / (after - before))

    def _measure(self, now: Moment, mounted: bool, config: ScaleConfig) -> None:
        """Compares the ways from the keyframe to now, if they are long enough; then now is the keyframe."""
        before = self._keyframe
        if before is None or (not mounted and _turn(before.T_reference_cam, now.T_reference_cam) > TURN):
            self._keyframe = now
            return
        metres = _distance(before.T_reference_cam, now.T_reference_cam)
        if metres < config.min_motion:
            return
        self._keyframe = now
        units = _distance(before.T_first_cam, now.T_first_cam)
        if units > 0:
            self._ratios.add(metres / units)


def _distance(T_before: Array, T_after: Array) -> float:
    return float(np.linalg.norm(T_after[:3, 3] - T_before[:3, 3]))


def _turn(T_before: Array, T_after: Array) -> float:
    """Angle between two rotations, radians."""
    cosine = (np.sum(T_before[:3, :3] * T_after[:3, :3]) - 1) / 2
    return float(np.arccos(np.clip(cosine, -1, 1)))
