# SPDX-License-Identifier: Apache-2.0
"""TF without tf2: what /tf and /tf_static say, with a short history. A replay needs it where there is no ROS."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from xsvggt_ros.geometry import LEAST_LENGTH, Array, interpolate, inverse, rigid, rotation_matrix
from xsvggt_ros.names import frame_name
from xsvggt_ros.placement.timeline import Timeline

log = logging.getLogger(__name__)

HISTORY_S = 10.0  # kept behind a frame's newest transform, as tf2 does
ENTRIES = 10_000  # kept for a frame at most: the history at 1 kHz
TOLERANCE_S = 0.1  # how far the newest transform holds beyond its stamp
NAMES = 20  # frames listed in an error, at most

Pose = tuple[Array, Array]  # translation [3], metres, and unit quaternion [4], x y z w


@dataclass(frozen=True)
class Link:
    """The poses of a frame in its parent: one that always holds if static, else a history."""

    child: str
    parent: str
    static: bool
    poses: Timeline[Pose]

    def add(self, stamp_ns: int, pose: Pose) -> None:
        self.poses.add(stamp_ns, pose)
        self.poses.forget_before(stamp_ns - round(HISTORY_S * 1e9))

    def at(self, stamp_ns: int, tolerance_s: float) -> Array:
        """T_parent_child [4, 4] at a time. Raises LookupError outside the history."""
        around = self.poses.around(stamp_ns)
        (before, first), (after, last) = around[0], around[-1]
        if self.static or after == stamp_ns or 0 < stamp_ns - after <= tolerance_s * 1e9:
            return _matrix(last)
        if after < stamp_ns:
            raise LookupError(
                f"the newest transform of {self.child!r} in {self.parent!r} is {(stamp_ns - after) / 1e9:.3f} s older "
                "than the time asked for; check that it still comes, stamped by the same clock (use_sim_time)"
            )
        if before > stamp_ns:
            raise LookupError(
                f"the oldest transform of {self.child!r} in {self.parent!r} is {(before - stamp_ns) / 1e9:.3f} s newer "
                "than the time asked for; check that it is stamped by the same clock (use_sim_time)"
            )
        return interpolate(_matrix(first), _matrix(last), (stamp_ns - before) / (after - before))


class TransformBuffer:
    """The frames that TF connects. May be used from several threads.

    A frame has one parent: the one that came last, which begins a new history, as does a stamp that goes far back.
    """

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}  # by child
        self._refused: set[str] = set()
        self._lock = Lock()

    def add(self, msg_transforms: Iterable[Any], static: bool) -> None:
        """Takes the `transforms` of a TFMessage: geometry_msgs TransformStamped of rclpy or of rosbags, metres.

        static: they came on /tf_static and hold at all times. What is no transform is ignored and logged, once per
        child frame.
        """
        for msg in msg_transforms:
            child, parent = frame_name(msg.child_frame_id), frame_name(msg.header.frame_id)
            try:
                pose = _decode(msg.transform)
                _check_frames(child, parent)
            except ValueError as error:
                self._refuse(child, parent, error)
                continue
            stamp = msg.header.stamp
            with self._lock:
                self._link(child, parent, static).add(stamp.sec * 1_000_000_000 + stamp.nanosec, pose)

    def lookup(self, target: str, source: str, stamp_ns: int, tolerance_s: float = TOLERANCE_S) -> Array:
        """T_target_source, float64 [4, 4], metres, at a time: between two transforms' stamps, interpolated.

        tolerance_s: how far behind the time the newest transform may be to hold; static ones always do.
        Raises LookupError with one sentence: which frame is unknown or not connected, which transform is too old or
        too new, or which frames form a loop. A frame in itself needs no transforms, as in tf2.
        """
        target, source = frame_name(target), frame_name(source)
        if target == source:
            return np.eye(4)
        with self._lock:
            self._check_known(target, source)
            up_target, up_source = self._ancestry(target), self._ancestry(source)
            common = next((frame for frame in up_source if frame in up_target), None)
            if common is None:
                raise LookupError(
                    f"TF does not connect {source!r} with {target!r}: "
                    f"the tree of the one begins at {up_source[-1]!r}, of the other at {up_target[-1]!r}"
                )
            T_common_target = self._climb(up_target[: up_target.index(common)], stamp_ns, tolerance_s)
            T_common_source = self._climb(up_source[: up_source.index(common)], stamp_ns, tolerance_s)
        return inverse(T_common_target) @ T_common_source

    def clear(self) -> None:
        """Forgets the transforms that have a time, because time went back; static ones stay."""
        with self._lock:
            self._links = {child: link for child, link in self._links.items() if link.static}

    def _link(self, child: str, parent: str, static: bool) -> Link:
        link = self._links.get(child)
        # A static transform is replaced by whichever comes later, whatever the stamps say.
        if link is None or static or link.static or link.parent != parent:
            link = self._links[child] = Link(child, parent, static, Timeline(1 if static else ENTRIES))
        return link

    def _refuse(self, child: str, parent: str, reason: ValueError) -> None:
        if child not in self._refused and len(self._refused) < ENTRIES:
            self._refused.add(child)
            log.warning("transform of %r in %r ignored (said once for a frame): %s", child, parent, reason)

    def _check_known(self, *frames: str) -> None:
        known = self._links.keys() | {link.parent for link in self._links.values()}
        for frame in frames:
            if frame not in known:
                names = ", ".join(map(repr, sorted(known)[:NAMES])) + ", ..." * (len(known) > NAMES)
                raise LookupError(f"TF has no frame {frame!r}; it has {names or 'no frames at all'}")

    def _ancestry(self, frame: str) -> list[str]:
        """The frame, its parent, and so on to the root."""
        line = [frame]
        while (link := self._links.get(line[-1])) is not None:
            if link.parent in line:
                loop = [*line[line.index(link.parent) :], link.parent]
                raise LookupError(
                    f"TF has a loop, each frame being the next one's child: {' -> '.join(loop)}; "
                    "leave one of these transforms out"
                )
            line.append(link.parent)
        return line

    def _climb(self, children: list[str], stamp_ns: int, tolerance_s: float) -> Array:
        """T_ancestor_frame, the ancestor being the last child's parent and the frame the first child."""
        T = np.eye(4)
        for child in children:
            T = self._links[child].at(stamp_ns, tolerance_s) @ T
        return T


def _decode(transform: Any) -> Pose:
    t, q = transform.translation, transform.rotation
    translation, length = (t.x, t.y, t.z), math.hypot(q.x, q.y, q.z, q.w)
    if not all(map(math.isfinite, (*translation, length))):
        raise ValueError("it has values that are not finite")
    if length < LEAST_LENGTH:
        raise ValueError("its quaternion is zero, which is no rotation; send 0 0 0 1 for none")
    return np.array(translation), np.array((q.x, q.y, q.z, q.w)) / length


def _check_frames(child: str, parent: str) -> None:
    if not child or not parent:
        raise ValueError("a frame without a name; set header.frame_id and child_frame_id")
    if child == parent:
        raise ValueError("a frame cannot be its own parent; give child_frame_id another name")


def _matrix(pose: Pose) -> Array:
    translation, quaternion = pose
    return rigid(rotation_matrix(quaternion), translation)
