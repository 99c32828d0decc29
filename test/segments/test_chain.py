# SPDX-License-Identifier: Apache-2.0
"""Segments of a cube's inside, made up frame by frame: each has axes and a unit of its own."""

import math
from dataclasses import replace

import numpy as np
import pytest
from support.segments import HEIGHT, WIDTH, far_from, pose, seen, segment_at

from xsvggt_ros.config import LoopConfig, SegmentConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import inverse, transform, unproject
from xsvggt_ros.segments.chain import LEAST, PATIENCE, Chain
from xsvggt_ros.segments.map import Map

STEP = 6.0  # degrees that the camera turns from image to image, and it moves on
LOOP = LoopConfig()


def way(index: float) -> np.ndarray:
    """T_world_cam."""
    return pose(turn=(0, STEP * index, 0), at=(0.03 * index, 0, 0.01 * index))


class Drive:
    """A chain, and a camera on its way through segments with true relations."""

    def __init__(self, capacity: int = 8) -> None:
        self.motions: dict = {}  # of the robot, by the indices of two images
        self.chain = Chain(Map(capacity, HEIGHT, WIDTH), 0, lambda a, b: self.motions.get((a, b)))
        self.S = segment_at(way(0))  # of the segment that serves
        self.starts = {0: 0}  # {key: index of the image that is the keyframe}
        self.index = 0
        self.frame = self._see(0)
        self.chain.begin(self.frame)
        self.placed = self.chain.placed(self.frame)

    def _see(self, index: int) -> Frame:
        return seen(way(index), self.S, index)

    def go(self, count: int = 1) -> None:
        for _ in range(count):
            self.index += 1
            self.frame = self._see(self.index)
            self.placed = self.chain.placed(self.frame)

    def join(self, scale: float = 1.0, key: int | None = None, spoil=lambda frame: frame, config=LOOP) -> bool:
        """The newest two images are shared with a next segment, which begins at the first of them or at a keyframe."""
        begins = way(self.index - 1 if key is None else self.starts[key])
        S_world_new = segment_at(begins, scale)
        new = [spoil(seen(way(i), S_world_new, i)) for i in (self.index - 1, self.index)]
        old = [self._see(i) for i in (self.index - 1, self.index)]
        first = new[0] if key is None else seen(begins, S_world_new)
        if took := self.chain.take_over(key, first, list(zip(old, new, strict=True)), old[-1], config):
            self.S, self.newest = S_world_new, new[-1]
            if key is None:
                self.starts[max(self.chain.map.keyframes)] = self.index - 1
        return took


def half_as_deep(frame: Frame) -> Frame:
    """Every other image, so that the two that are shared disagree."""
    return replace(frame, depth=frame.depth * np.float32(0.5)) if frame.index % 2 else frame


def test_after_a_join_it_says_where_the_camera_is_in_the_next_segment():
    drive = Drive()
    drive.go(4)
    assert drive.chain.T_segment_now == pytest.approx(way(4))
    S_new = segment_at(way(3), 2.0)
    old, new = [drive._see(i) for i in (3, 4)], [seen(way(i), S_new, i) for i in (3, 4)]
    drive.go()
    assert drive.chain.take_over(None, new[0], list(zip(old, new, strict=True)), drive.frame, LOOP)
    assert drive.chain.units == pytest.approx(2, rel=1e-3)
    assert drive.chain.T_segment_now == pytest.approx(S_new.inverse().pose(way(5)), abs=1e-3)


def test_a_chain_of_segments_has_the_pose_the_depth_and_the_points_of_one():
    drive = Drive()
    for scale in (0.5, 2.0, 3.0):
        drive.go(4)
        assert drive.join(scale)
        drive.go()
        truth = seen(way(drive.index))
        np.testing.assert_allclose(drive.placed.T_first_cam, way(drive.index), atol=1e-6)
        np.testing.assert_allclose(drive.placed.segment.T_map_cam, way(drive.index), atol=1e-6)
        np.testing.assert_allclose(drive.placed.depth, truth.depth, rtol=1e-6)
        np.testing.assert_allclose(drive.placed.points_world(), truth.points_world(), atol=1e-5)
        assert drive.placed.segment.rescaled == pytest.approx(1)
    assert drive.chain.status.segment == 3 and drive.chain.status.keyframes == 4


def test_poses_stay_rotations_join_after_join(monkeypatch):
    """A camera that starts to move after each join: its last motion goes on then, by rounding threefold off."""

    def stop_and_go(index):
        moves, waits = divmod(index - 1, 4)
        return pose(turn=(0, STEP * moves + 0.1 * waits, 0)) @ pose(turn=(3 * np.sin(moves), 0, 2 * np.cos(moves)))

    monkeypatch.setitem(globals(), "way", stop_and_go)
    drive = Drive()
    for _ in range(100):
        drive.go(4)
        assert drive.join()
    drive.go()
    for T in (drive.placed.T_first_cam, drive.placed.segment.T_map_cam):
        np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-9)


def test_points_of_the_point_head_go_on_as_those_of_the_depth():
    drive = Drive()
    drive.go(4)
    drive.join(2.0)
    frame = drive.newest
    predicted = transform(frame.T_first_cam, unproject(frame.depth, frame.intrinsics))
    placed = drive.chain.placed(replace(frame, predicted_points=predicted))
    np.testing.assert_allclose(placed.points_world(), drive.chain.placed(frame).points_world(), atol=1e-5)


def test_a_camera_that_stands_still_does_not_move_at_a_join():
    """Though the images that are shared do not agree about where it is: the newest goes on where it was."""

    def astray(frame):
        T = pose(turn=(0, 1.0 * (frame.index % 2), 0), at=(0.01 * (frame.index % 2), 0, 0)) @ frame.T_first_cam
        return replace(frame, T_first_cam=T)

    drive = Drive()
    for scale in (0.5, 2.0):
        drive.go(5)
        before = drive.placed.T_first_cam
        assert drive.join(scale, spoil=astray)
        np.testing.assert_allclose(drive.chain.placed(drive.newest).T_first_cam, before, atol=1e-9)
        assert drive.chain.status.join_rotation_spread > 0


def test_what_joins_are_uncertain_of_adds_up():
    def astray(frame):
        return replace(frame, T_first_cam=pose(turn=(0, 2.0 * (frame.index % 2), 0)) @ frame.T_first_cam)

    drive = Drive()
    assert drive.placed.segment.variance == (0, 0)
    rotations = []
    for _ in range(3):
        drive.go(5)
        drive.join(spoil=astray)
        rotations.append(drive.chain.placed(drive.newest).segment.variance[0])
    np.testing.assert_allclose(rotations, np.deg2rad(1.0) ** 2 * np.array([1, 2, 3]), rtol=1e-3)


def test_a_join_that_is_not_trusted_is_put_off_and_then_said():
    drive = Drive()
    drive.go(4)
    for _ in range(PATIENCE):
        before = drive.chain.placed(drive.frame)
        assert not drive.join(spoil=half_as_deep)
        np.testing.assert_array_equal(drive.chain.placed(drive.frame).T_first_cam, before.T_first_cam)
        assert drive.chain.status.segment == 0 and not drive.chain.events()
        drive.go()
    assert drive.join(spoil=half_as_deep)
    status = drive.chain.status
    assert status.segment == 1 and status.join_uncertain and status.join_scale_spread > 0.3
    assert drive.chain.events() == ["a join of segments is uncertain: the images that both share do not agree"]
    assert not drive.chain.events()
    drive.go(4)
    assert not drive.join(spoil=half_as_deep)  # patience is as at first
    assert drive.join() and not drive.chain.status.join_uncertain


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_join_that_is_not_trusted_goes_by_the_robots_motion_where_it_is_known(scale):
    """The segment that ends goes astray while it serves; the robot knows better."""

    def astray(frame):
        turned = pose(turn=(0, 20.0 * (frame.index % 2), 0)) @ frame.T_first_cam
        return replace(frame, T_first_cam=turned)

    def drifting(index):
        off = pose(turn=(0, 3.0 * index, 0), at=(0.02 * index, 0, 0)) @ way(index)
        return replace(seen(way(index), drive.S, index), T_first_cam=drive.S.inverse().pose(off))

    drive = Drive()
    drive.go(4)
    assert drive.join(scale)
    drive.go()
    own = drive.index  # the first that the segment served for
    drive.go(4)
    drive._see = drifting
    for _ in range(PATIENCE):
        assert not drive.join(spoil=astray)
        drive.go()
    drive.motions[own, drive.index - 1] = inverse(way(own)) @ way(drive.index - 1)
    assert drive.join(spoil=astray)
    del drive._see
    (event,) = drive.chain.events()
    assert event.startswith("a join of segments is by the robot's motion")
    assert drive.chain.status.join_uncertain  # as odometry goes by the images
    drive.go()
    assert drive.placed.segment.variance[0] > np.deg2rad(5) ** 2
    np.testing.assert_allclose(drive.placed.segment.T_map_cam, way(drive.index), atol=1e-6)


def test_a_place_seen_again_puts_the_scale_right_and_says_by_how_much():
    """A join that was a fifth too large, which the images did not tell."""
    drive = Drive()
    drive.go(2)
    drive.join(spoil=lambda frame: replace(frame, depth=frame.depth / np.float32(1.2)))
    drive.go(2)
    before = drive.placed.depth * np.float32(1.0)
    np.testing.assert_allclose(before, 1.2 * seen(way(drive.index)).depth, rtol=1e-5)
    assert drive.join(key=0)
    after = drive.chain.placed(drive.newest)
    np.testing.assert_allclose(after.depth, seen(way(drive.index)).depth, rtol=1e-5)
    assert after.segment.rescaled == pytest.approx(float(np.median(before / after.depth)), rel=1e-5)
    assert drive.chain.placed(drive.newest).segment.rescaled == 1
    np.testing.assert_allclose(after.T_first_cam, drive.placed.T_first_cam, atol=1e-9)
    np.testing.assert_allclose(after.segment.T_map_cam, way(drive.index), atol=1e-5)
    assert drive.chain.status.closures == 1


def closes_turned_by(degrees: float, **loop) -> Chain:
    """The chain after it was tried to begin at the first keyframe, by whose view the camera is turned."""
    drive = Drive()
    drive.go(4)
    drive.join()
    drive.go(1)
    new = [seen(way(i), index=i) for i in (0, 1)]
    old = [seen(way(i) @ pose(turn=(degrees, 0, 0)), drive.S, i) for i in (0, 1)]
    before = drive.chain.placed(drive.frame).segment
    took = drive.chain.take_over(0, new[0], list(zip(old, new, strict=True)), old[-1], LoopConfig(**loop))
    assert took == bool(drive.chain.status.closures)
    if not took:
        after = drive.chain.placed(drive.frame).segment
        np.testing.assert_array_equal(after.T_map_cam, before.T_map_cam)
        assert (after.key, drive.chain.status.segment) == (before.key, 1)
    return drive.chain


def test_a_keyframe_that_the_map_has_turned_by_too_much_is_refused_and_counted():
    assert closes_turned_by(20).status.closures_refused == 0
    assert closes_turned_by(50).status.closures_refused == 1
    assert closes_turned_by(20, max_turn=15).status.closures_refused == 1
    assert closes_turned_by(50, max_turn=60).status.closures_refused == 0


@pytest.mark.parametrize("loop", [dict(agreement=1.0), dict(match=1.0)])
def test_a_keyframe_that_does_not_show_the_same_place_is_refused(loop):
    drive = Drive()
    drive.go(2)
    drive.join()
    drive.go(1)
    assert not drive.join(key=0, config=LoopConfig(**loop))
    assert drive.chain.status.closures_refused == 1
    assert drive.join(key=0)


def test_one_image_rules_a_keyframe_of_another_place_out():
    drive = Drive()
    drive.go(2)
    drive.join()
    drive.go(1)
    S_world_new = segment_at(way(0))
    first, second = seen(way(0), S_world_new), seen(way(drive.index), S_world_new, drive.index)
    assert not drive.chain.rules_out(0, first, second, LOOP)
    assert not drive.chain.rules_out(None, first, second, LoopConfig(match=1.0))  # an own image is of this place
    assert drive.chain.status.closures_refused == 0
    assert drive.chain.rules_out(0, first, second, LoopConfig(match=1.0))
    assert drive.chain.status.closures_refused == 1


def test_a_keyframe_whose_shared_images_do_not_agree_is_refused_however_often():
    drive = Drive()
    drive.go(2)
    drive.join()
    drive.go(1)
    older = drive.index - 1
    for _ in range(PATIENCE + 2):
        assert not drive.join(key=0, spoil=lambda f: replace(f, depth=f.depth / 2) if f.index == older else f)
    assert drive.chain.status.closures_refused == PATIENCE + 2
    assert drive.join(key=0)


def interrupted(turn: float = 0.0) -> Drive:
    """A drive after a pause in which the camera has moved to somewhere that the chain does not know."""
    drive = Drive()
    drive.go(5)
    drive.join()
    drive.go(3)
    drive.before = drive.placed
    drive.chain.interrupt()
    drive.S = segment_at(way(drive.index) @ pose(turn=(0, turn, 0)), 0.8)
    drive.frame = seen(way(drive.index) @ pose(turn=(0, turn, 0)), drive.S, drive.index + 1)
    drive.chain.begin(drive.frame)
    drive.placed = drive.chain.placed(drive.frame)
    return drive


def test_after_a_pause_the_camera_is_where_it_was_and_not_located():
    drive = interrupted(turn=10)
    np.testing.assert_allclose(drive.placed.T_first_cam, drive.before.T_first_cam, atol=1e-12)
    np.testing.assert_allclose(drive.placed.segment.T_map_cam, drive.before.segment.T_map_cam, atol=1e-12)
    assert not drive.chain.status.located and drive.chain.status.keyframes == 3
    assert drive.chain.events() == ["after the pause a new segment starts where the camera was"]
    assert math.isnan(drive.placed.segment.rescaled)


def test_a_place_from_before_the_pause_locates_the_camera_again():
    drive = interrupted(turn=-40)
    drive.chain.events()
    T = way(1)
    old = [seen(T @ pose(turn=(0, i, 0)), drive.S, 20 + i) for i in (0, 1)]
    new = [seen(T @ pose(turn=(0, i, 0)), index=20 + i) for i in (0, 1)]
    last = drive.chain.placed(old[-1])
    assert drive.chain.take_over(0, seen(way(0)), list(zip(old, new, strict=True)), old[-1], LOOP)
    placed = drive.chain.placed(new[-1])
    assert drive.chain.status.located and drive.chain.events() == ["the place is known again: the map goes on"]
    np.testing.assert_allclose(placed.segment.T_map_cam, T @ pose(turn=(0, 1, 0)), atol=1e-6)
    np.testing.assert_allclose(placed.T_first_cam, last.T_first_cam, atol=1e-9)
    assert drive.chain.map.relations.component(0) == {0, 1, 2}


def test_a_segment_ends_when_its_view_is_left_but_serves_a_few_images():
    chain, config = Drive().chain, SegmentConfig()
    assert not chain.ends(seen(way(1), index=LEAST), config)
    assert chain.ends(seen(way(8), index=LEAST), config)
    assert not chain.ends(seen(way(8), index=LEAST - 1), config)
    assert Chain(Map(4, HEIGHT, WIDTH), 0, lambda a, b: None).ends(seen(way(0)), config)  # it has none yet


def test_a_keyframe_is_seen_again_where_the_camera_may_be_near():
    drive = Drive(capacity=16)
    for _ in range(4):
        drive.go(4)
        assert drive.join()
    assert drive.chain.seen_before(seen(way(drive.index), drive.S), LOOP) not in (None, 4)  # not its own
    there = seen(way(0), drive.S)
    assert drive.chain.seen_before(there, LOOP) == 0
    assert drive.chain.seen_before(there, LoopConfig(enabled=False)) is None
    behind = replace(there, T_first_cam=there.T_first_cam @ pose(turn=(0, 180, 0)))
    assert drive.chain.seen_before(behind, LOOP) is None


def test_frames_bring_the_keyframes_that_are_remembered_the_oldest_first():
    drive = Drive(capacity=3)
    for count in range(4):
        drive.go(4)
        drive.join()
        keys = list(drive.chain.placed(drive.newest).segment.keyframes)
        assert keys == sorted(keys) and keys[0] == 0 and keys[-1] == count + 1 and len(keys) == min(count + 2, 3)


def test_a_chain_with_the_fewest_keyframes_goes_on():
    drive = Drive(capacity=3)
    for count in range(5):
        drive.go(4)
        assert drive.join()
        assert drive.chain.placed(drive.newest).segment.key == count + 1
    np.testing.assert_allclose(drive.chain.placed(drive.newest).T_first_cam, way(drive.index), atol=1e-5)


def test_another_number_of_keyframes_leaves_the_one_of_the_segment():
    drive = Drive()
    for _ in range(3):
        drive.go(4)
        drive.join()
    drive.chain.resize(2)
    status = drive.chain.status
    assert drive.chain.map.keyframes.keys() == {0, 3}
    assert (status.keyframes, status.keyframe_bytes) == (2, Map.nbytes_of(2, HEIGHT, WIDTH))
    before = drive.chain.placed(drive.newest).T_first_cam
    np.testing.assert_allclose(before, way(drive.index), atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_unit_of_a_join_is_between_what_it_says_and_what_is_measured(scale):
    """By a stream that began with the first segment; the camera does not move for that."""

    def deeper(frame):
        return replace(frame, depth=frame.depth / np.float32(1.21))

    drive = Drive()
    drive.go(4)
    assert drive.join(scale, spoil=deeper)  # its unit seems larger than it is
    drive.go()
    before = drive.placed
    drive.chain.measured(0, scale)
    after = drive.chain.placed(drive.frame)
    np.testing.assert_allclose(after.T_first_cam, before.T_first_cam, atol=1e-9)
    np.testing.assert_allclose(before.depth / after.depth, 1.1, rtol=1e-5)
    assert after.segment.rescaled == 1  # metres are those of before the join
    assert after.segment.variance[1] == pytest.approx(before.segment.variance[1] / 1.1**2, rel=1e-5)
    S_map_new = drive.chain.map.S_map_key(1)
    assert S_map_new.scale == pytest.approx(1.1 * scale, rel=1e-5)
    assert far_from(drive.chain.map.relations.between(0, 1), S_map_new) < 1e-9


def test_what_is_measured_before_a_segments_first_own_image_counts_there_too():
    drive, other = Drive(), Drive()
    for each in (drive, other):
        each.go(4)
        assert each.join(2.0)
    drive.chain.measured(0, 2.42)
    for each in (drive, other):
        each.go()
    assert drive.chain.map.S_map_key(1).scale == pytest.approx(2.2, rel=1e-5)
    np.testing.assert_allclose(drive.placed.depth / other.placed.depth, 1.1, rtol=1e-5)
    drive.chain.measured(0, 2.2)  # as the map has it: nothing changes
    np.testing.assert_allclose(drive.chain.placed(drive.frame).depth, drive.placed.depth, rtol=1e-5)


def test_after_an_answer_a_pause_leaves_the_camera_where_the_map_has_it_by_then():
    drive = Drive()
    drive.go(4)
    assert drive.join(2.0)
    drive.go()
    drive.chain.measured(0, 2.42)
    at = drive.chain.map.S_map_key(1).pose(drive.frame.T_first_cam)
    drive.chain.interrupt()
    assert drive.chain._S_map_segment.translation == pytest.approx(at[:3, 3])


def test_each_answer_counts_as_much_as_the_join():
    drive = Drive()
    drive.go(4)
    assert drive.join(2.0) and drive.chain.units == pytest.approx(2, rel=1e-3)
    drive.go()
    for units in (2.2, 2.5, 1.9):
        drive.chain.measured(0, units)
    mean = math.exp(np.log([2.0, 2.2, 2.5, 1.9]).mean())
    assert drive.chain.map.S_map_key(1).scale == pytest.approx(mean, rel=1e-5)
    np.testing.assert_allclose(drive.chain.placed(drive.frame).T_first_cam, drive.placed.T_first_cam, atol=1e-9)
    drive.go(4)
    assert drive.join(3.0) and drive.chain.units == pytest.approx(1.5, rel=1e-3)
    drive.chain.measured(0, 3.3)  # of another segment: it counts as the first one did
    known = 3.0 * mean / 2.0
    assert drive.chain.map.S_map_key(2).scale == pytest.approx(math.sqrt(known * 3.3), rel=1e-5)


def test_what_is_measured_says_nothing_of_a_place_seen_again_or_by_a_keyframe_that_is_gone():
    drive = Drive()
    drive.go(4)
    drive.chain.measured(0, 5.0)  # of the first segment
    assert drive.join()
    drive.go(1)
    for key, units in ((77, 1.2), (1, 1.2), (0, 50.0)):  # gone; its own; out of all proportion
        drive.chain.measured(key, units)
    assert [drive.chain.map.S_map_key(key).scale for key in (0, 1)] == pytest.approx([1, 1])
    assert drive.join(key=0)
    drive.chain.measured(0, 5.0)
    assert drive.chain.placed(drive.newest).segment.rescaled == pytest.approx(1)
    drive.go(4)
    assert drive.join() and drive.join(key=1)
    drive.chain.measured(0, 1.2)
    assert drive.chain.map.S_map_key(1).scale == pytest.approx(1, abs=1e-4)
    assert drive.chain.placed(drive.newest).segment.rescaled == pytest.approx(1, abs=1e-4)


def test_what_is_measured_says_nothing_where_the_keyframe_before_has_made_room():
    drive = Drive()
    for _ in range(3):
        drive.go(4)
        assert drive.join()
    drive.chain.resize(2)
    assert drive.chain.map.keyframes.keys() == {0, 3}
    drive.chain.measured(0, 1.21)
    assert drive.chain.map.S_map_key(3).scale == pytest.approx(1, abs=1e-4)
