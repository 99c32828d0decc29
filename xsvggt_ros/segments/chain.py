# SPDX-License-Identifier: Apache-2.0
"""The segments of a world: where each lies, when the next begins, and at which keyframe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from xsvggt_ros.config import LoopConfig, SegmentConfig
from xsvggt_ros.frame import Frame, InSegment
from xsvggt_ros.geometry import Array, inverse, rigid, transform
from xsvggt_ros.segments.compare import agreement, match, overlap
from xsvggt_ros.segments.join import Join, Shared, join
from xsvggt_ros.segments.map import Map
from xsvggt_ros.segments.watch import Watch
from xsvggt_ros.similarity import Similarity
from xsvggt_ros.status import SegmentStatus

VIEW = 60.0  # degrees by which a camera that sees the same may be turned
LEAST = 4  # images that a segment has of its own before the next begins
REMEMBERED = 500  # images for which the robot's motion is known for sure
CHANGE = 1.1  # of the camera's motion over a join, as a multiple of the motion before: it may stop, or go twice as fast
NEAR = 4  # joins to a keyframe at which the map may be off by as much as is set
NEWEST = 2  # of the shared images tell how segments join: with each image the next one knows its unit better
PATIENCE = 2  # joins in a row that are not trusted; the next is made nevertheless
STRICTER = 0.05  # likeness, agreement and match, where the map does not say how a keyframe lies
MOST_STRETCH = 0.6  # of the logarithm of the scale, and
MOST_SHIFT = 1.2  # in the keyframe's unit, by which the map may be off at a place seen again

Motion = Callable[[int, int], Array | None]
"""T_a_b [4, 4] of the camera at two frames of these indices, in the unit of T_first_cam; None: nothing measures it."""


@dataclass(frozen=True)
class _Joint:
    """Where the camera was at the last frame of a segment, in odometry and as the next segment would have it."""

    T_odom_now: Array
    T_new_now: Array  # by what the old segment says of the motion since the newest shared image
    motion: Array  # [4, 4], of the camera at that frame, in the new unit
    scale: float  # of the new segment

    def S_odom_segment(self, T_new_cam: Array) -> Similarity:
        """By the next segment's first frame: a step over a join differs from the last by about that one's size at most.

        What differs more would be what the old segment was off by, and not a motion; the camera is then taken to go on
        as it did.
        """
        step = _stretched(inverse(self.T_new_now) @ T_new_cam, self.scale)
        off = _sizes(inverse(self.motion) @ step)
        if any(size > CHANGE * last for size, last in zip(off, _sizes(self.motion), strict=True)):
            step = self.motion
        return _exact(self.T_odom_now @ step, T_new_cam, self.scale)


class Chain:
    """Maps frames of the segment that serves into the world. Frames given to it are in that segment's axes and unit."""

    def __init__(self, map_: Map, index: int, motion: Motion) -> None:
        self.map = map_
        self.status = SegmentStatus()
        self._motion = motion
        self.carried = False  # whether the camera was, elsewhere, so that the segment knows nothing of where it is
        self.anchor: int | None = None  # key of the keyframe that the segment began at; None: before there were any
        self._extends: int | None = None  # that of the segment before, if the keyframe is new
        self._first: Frame | None = None  # its first frame, and
        self._own: Frame | None = None  # the first that it served for, or a later one of a camera that stood still
        self._S_map_segment = self._S_odom_segment = Similarity()
        self._before = self._now = np.eye(4)  # T_odom_cam of the newest two frames
        self._T_map_now = np.eye(4)  # T_map_cam of the newest
        self.T_segment_now = np.eye(4)  # T_segment_cam
        self._joint: _Joint | None = None  # after a join, until the next frame
        self._rescaled = 1.0  # of the next frame
        self._keyframes: Mapping[int, Similarity] = {}
        self._variance = (0.0, 0.0)
        self._begun = index  # of its first image that the segment before does not have
        self._untrusted = 0  # joins in a row
        self.units = 1.0  # of the segment before, that the present one's is by their join
        self._measured = 0  # how often that of the present one was
        self._events: list[str] = []
        self._watch = Watch()

    # --- frames -----------------------------------------------------------------------------------

    def placed(self, frame: Frame) -> Frame:
        """The frame in the axes and the unit of the world, with where the map has it."""
        if self._joint:  # the first that the segment has for itself
            self._S_odom_segment, self._joint = self._joint.S_odom_segment(frame.T_first_cam), None
        if self._own is None or frame.index - self._own.index > REMEMBERED:
            self._own = frame
        S, points = self._S_odom_segment, frame.predicted_points
        if points is not None:
            points = transform(S.pose(np.eye(4)), points * np.float32(S.scale))
        self._before, self._now = self._now, S.pose(frame.T_first_cam)
        self._T_map_now, self.T_segment_now = self._S_map_segment.pose(frame.T_first_cam), frame.T_first_cam
        placed = replace(
            frame,
            T_first_cam=self._now,
            depth=frame.depth * np.float32(S.scale),
            predicted_points=points,
            segment=InSegment(
                T_map_cam=self._T_map_now,
                key=-1 if self.anchor is None else self.anchor,
                T_key_cam=frame.T_first_cam,
                keyframes=self._keyframes,
                variance=self._variance,
                located=self.status.located,
                rescaled=self._rescaled,
            ),
        )
        self._rescaled = 1.0
        return placed

    def events(self) -> list[str]:
        """What there is to say since last asked."""
        events, self._events = self._events, []
        return events

    def say(self, event: str) -> None:
        self._events.append(event)

    def resize(self, keyframes: int) -> None:
        """Another number of keyframes at most."""
        if keyframes != self.map.capacity:
            self.map = self.map.resized(keyframes, set() if self.anchor is None else {self.anchor})
            self._note_keyframes()

    # --- the next segment -------------------------------------------------------------------------

    def begin(self, frame: Frame) -> None:
        """A segment without a past, at this frame: the first of a world, or after a pause, where the camera was."""
        self.anchor, self._first = self.map.add(frame, self._S_map_segment, set()), frame
        self.map.use(self.anchor)
        self._extends, self._begun = None, frame.index
        self._tell()

    def look(self, frame: Frame, config: SegmentConfig) -> None:
        """Notes in `carried` whether the camera was carried elsewhere. Every frame of a world that has segments."""
        self.carried = self._watch.carried(frame, config.carried)

    def interrupt(self) -> None:
        """The next frame is of a segment without a past; its camera is taken to be where it was in the last."""
        T_odom_cam, T_map_cam = self._now, self._T_map_now
        self._joint = self._own = None
        self._rescaled = math.nan
        self._watch.forget()
        self._S_odom_segment = Similarity(self._S_odom_segment.scale, T_odom_cam[:3, :3], T_odom_cam[:3, 3])
        self._S_map_segment = Similarity(self._S_map_segment.scale, T_map_cam[:3, :3], T_map_cam[:3, 3])
        why = "the view has changed altogether:" if self.carried else "after the pause"
        self.carried = False
        self._events.append(f"{why} a new segment starts where the camera was")

    def ends(self, frame: Frame, config: SegmentConfig) -> bool:
        """Whether a next segment should begin."""
        if self._first is None:
            return True
        return frame.index - self._begun >= LEAST and overlap(self._first, frame) < config.overlap

    def seen_before(self, frame: Frame, config: LoopConfig) -> int | None:
        """Key of the keyframe that looks most like the frame, if it is one that the camera may be near."""
        if not config.enabled:
            return None
        R_map_cam, joins = self._S_map_segment.rotation @ frame.T_first_cam[:3, :3], self._joins()
        for likeness, key in self.map.alike(frame, self.anchor):
            if likeness < config.likeness:
                break
            turn = _degrees(self.map.S_map_key(key).rotation.T @ R_map_cam)
            if turn <= config.max_turn + VIEW if key in joins else likeness >= config.likeness + STRICTER:
                return key
        return None

    def rules_out(self, key: int | None, first: Frame, second: Frame, config: LoopConfig) -> bool:
        """Whether the keyframe of that key, `first`, shows another place than the image after it; refused then."""
        ruled_out = key is not None and not self._same_place(key, first, second, config)
        if ruled_out:
            self._refuse(key)
        return ruled_out

    def take_over(self, key: int | None, first: Frame, shared: Shared, now: Frame, config: LoopConfig) -> bool:
        """Joins the next segment, which serves from now on; whether that can be trusted. It stays as it is if not.

        It begins with the frame `first`: at the keyframe of that key, or at an image of its own. The present one is at
        the frame `now`.
        """
        joined = join(shared[-NEWEST:])
        if key is not None and self._verified(key, first, shared, joined, config):
            self._close(key, joined)
        elif key is None and (joined.trusted or self._untrusted >= PATIENCE):
            joined = joined if joined.trusted else self._without_trust(joined, shared[0][0].index)
            self._extend(first, joined)
        else:
            self._refuse(key)
            return False
        self._go_on(first, shared, joined, now)
        return True

    def measured(self, key: int, units: float) -> None:
        """The present segment's unit is so many of the one that begins at the keyframe of that key.

        That counts as much as what the join said, where the segment began at an image of its own, and as each answer
        before. What is out of all proportion does not count. Metres per unit are what they were before the join, as far
        as one knows.
        """
        before = self._extends
        if before is None or self.anchor in (None, key) or not {key, before} <= self.map.keyframes.keys():
            return
        S = self.map.S_map_key(self.anchor)
        off = math.log(self.map.S_map_key(key).scale * units / S.scale)
        if abs(off) > MOST_STRETCH:
            return
        self._measured += 1
        grown = math.exp(-off / (1 + self._measured))  # what lengths in the new unit are divided by
        self.map.move(before, self.anchor, Similarity(S.scale / grown, S.rotation, S.translation))
        self._S_map_segment = self.map.S_map_key(self.anchor)
        scale = self._S_odom_segment.scale / grown
        self._S_odom_segment = _exact(self._now, self.T_segment_now, scale)
        if self._joint:
            self._joint = replace(self._joint, scale=scale)
        else:
            self._T_map_now = self._S_map_segment.pose(self.T_segment_now)
        rotation, position = self._variance
        self._variance = rotation, position / grown**2
        self._note_keyframes()

    # --- inside -----------------------------------------------------------------------------------

    def _verified(self, key: int, first: Frame, shared: Shared, joined: Join, config: LoopConfig) -> bool:
        """Whether the keyframe shows the same place: both the new segment and the map have to agree."""
        if not (joined.trusted and self._same_place(key, first, shared[-1][1], config)):
            return False
        joins = self._joins().get(key)
        if joins is None:
            return True
        slack = max(1.0, math.sqrt(joins / NEAR))  # errors add up from join to join
        off = self.map.S_map_key(key).inverse() @ self._S_map_segment @ joined.relation
        return (
            _degrees(off.rotation) <= config.max_turn * slack
            and abs(np.log(off.scale)) <= MOST_STRETCH * slack
            and float(np.linalg.norm(off.translation)) <= MOST_SHIFT * slack
        )

    def _same_place(self, key: int, first: Frame, newest: Frame, config: LoopConfig) -> bool:
        """Whether two images of the next segment, which begins at that key, see the same surfaces."""
        stricter = STRICTER * (key not in self._joins())
        alike = match(first, newest, self.map.mean) >= config.match + stricter
        return alike and agreement(first, newest) >= config.agreement + stricter

    def _joins(self) -> dict[int, int]:
        """{key: how many relations lead there}; of other keyframes the map does not say where they are from here."""
        return {} if self.anchor is None else self.map.relations.distances(self.anchor)

    def _close(self, key: int, joined: Join) -> None:
        if self.anchor is not None:  # else there is nothing to relate it to
            self.map.relate(self.anchor, key, joined.relation)
            self.map.correct(key)
        self.anchor, self._extends = key, None
        self.status = replace(self.status, closures=self.status.closures + 1)

    def _extend(self, first: Frame, joined: Join) -> None:
        before = self._extends = self.anchor
        S_map_new = self._S_map_segment @ joined.relation
        self.anchor = self.map.add(first, S_map_new, set() if before is None else {before})
        if before is not None:
            self.map.relations.add(before, self.anchor, joined.relation)

    def _without_trust(self, joined: Join, first: int) -> Join:
        """In the map by the robot's own motion since the segment served first, where that is known; says what was done.

        first: index of the image that the next segment begins with.
        """
        T_own_first = self._motion(self._own.index, first) if self._own else None
        if self._own is None or T_own_first is None:
            self._events.append("a join of segments is uncertain: the images that both share do not agree")
            return joined
        self._events.append("a join of segments is by the robot's motion: the images that both share do not agree")
        T = self._own.T_first_cam @ _stretched(T_own_first, 1 / self._S_odom_segment.scale)
        return replace(joined, relation=Similarity(joined.relation.scale, T[:3, :3], T[:3, 3]))

    def _refuse(self, key: int | None) -> None:
        if key is None:
            self._untrusted += 1
        else:
            self.status = replace(self.status, closures_refused=self.status.closures_refused + 1)

    def _go_on(self, first: Frame, shared: Shared, joined: Join, now: Frame) -> None:
        """The new segment serves: odometry goes on from where the camera is now, in the map's present unit."""
        assert self.anchor is not None
        self.map.use(self.anchor)
        before = self._S_odom_segment
        self._S_map_segment = self.map.S_map_key(self.anchor)
        scale = self._S_map_segment.scale
        grown = before.scale * joined.relation.scale / scale
        self._rescaled *= grown
        old, new = shared[-1]
        moved = _stretched(inverse(old.T_first_cam) @ now.T_first_cam, 1 / joined.relation.scale)
        self.T_segment_now = new.T_first_cam @ moved
        self._joint = _Joint(
            T_odom_now=self._now,
            T_new_now=self.T_segment_now,
            motion=_stretched(inverse(self._before) @ self._now, 1 / grown),
            scale=scale,
        )
        self._S_odom_segment = Similarity(scale)  # until then
        depth = scale * float(np.median(first.depth))
        rotation, position = self._variance
        self._variance = (
            rotation + joined.rotation_spread**2,
            position / grown**2 + (joined.position_spread * depth) ** 2,
        )
        self._first, self._own, self._begun, self._untrusted = first, None, old.index + 1, 0
        self.units, self._measured = joined.relation.scale, 0
        self._tell(joined)

    def _tell(self, joined: Join | None = None) -> None:
        assert self.anchor is not None
        located = min(self.map.keyframes) in self.map.relations.component(self.anchor)
        if located and not self.status.located:
            self._events.append("the place is known again: the map goes on")
        self.status = replace(
            self.status,
            segment=self.status.segment + (joined is not None),
            located=located,
            join_rotation_spread=joined.rotation_spread if joined else 0.0,
            join_scale_spread=joined.scale_spread if joined else 0.0,
            join_uncertain=joined is not None and not joined.trusted,
        )
        self._note_keyframes()

    def _note_keyframes(self) -> None:
        self._keyframes = {key: keyframe.S_map_key for key, keyframe in sorted(self.map.keyframes.items())}
        self.status = replace(self.status, keyframes=len(self.map.keyframes), keyframe_bytes=self.map.nbytes)


def _stretched(T: Array, factor: float) -> Array:
    """With another unit of length."""
    return rigid(T[:3, :3], factor * T[:3, 3])


def _sizes(motion: Array) -> tuple[float, float]:
    """Degrees and length."""
    return _degrees(motion[:3, :3]), float(np.linalg.norm(motion[:3, 3]))


def _exact(T_target_cam: Array, T_source_cam: Array, scale: float) -> Similarity:
    """S_target_source of that scale that brings one pose of a camera to the other."""
    rotation = Rotation.from_matrix(T_target_cam[:3, :3] @ T_source_cam[:3, :3].T).as_matrix()  # errors would multiply
    return Similarity(scale, rotation, T_target_cam[:3, 3] - scale * rotation @ T_source_cam[:3, 3])


def _degrees(rotation: Array) -> float:
    return float(np.rad2deg(Rotation.from_matrix(rotation).magnitude()))
