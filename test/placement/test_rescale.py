# SPDX-License-Identifier: Apache-2.0
"""The scale where segments join and the stream's unit becomes another: what was measured before still counts."""

import logging
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.frames import frame
from support.mounted import T_BASE_CAM, mounting
from support.recordings import header, message, raw_image

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.frame import InSegment
from xsvggt_ros.geometry import inverse, rigid
from xsvggt_ros.messages.topics import DEPTH
from xsvggt_ros.pipeline import Pipeline
from xsvggt_ros.placement.placement import NotPlaced, Placed, Placement
from xsvggt_ros.rooms import pinhole, stream
from xsvggt_ros.segments import SegmentedStream, chain
from xsvggt_ros.segments.join import join
from xsvggt_ros.settings import changed
from xsvggt_ros.similarity import Similarity

STEP = 100_000_000  # ns between frames
SIZE = (84, 112)
UNITS = (2.0, 2.5)  # metres of the stream's unit, before and after the join
BEFORE, AFTER = 9, 3  # frames
K = pinhole(SIZE[1], SIZE[0])
WINDOW = {"scale.window": 20, "scale.min_motion": 0.05}
SETTINGS = {
    "depth": {"base_frame": "base_link"},
    "camera_height": {"scale.camera_height": float(T_BASE_CAM[2, 3]), "base_frame": "base_link"},
    "odometry": {"base_frame": "base_link"},
    "tf": {"base_frame": "base_link", "scale.parent_frame": "wheels", "scale.child_frame": "base_link"},
}
MEASURED = list(SETTINGS)


def config_of(source, **values):
    settings = SETTINGS.get(source, {}) | WINDOW | {"scale.source": source}
    return changed(NodeConfig(), settings | {name.replace("__", "."): value for name, value in values.items()})


def base(i):
    """The robot after i frames, metres."""
    return rigid(Rotation.from_rotvec([0, 0, 0.02 * i]).as_matrix(), np.array([0.1 * i, 0.01 * i, 0.0]))


def floor_depth():
    """Metres, of the floor that the mounted camera sees, and of a wall 6 m away; the floor is all that is level."""
    rows, columns = np.indices(SIZE)
    rays = (
        np.stack([(columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1], np.ones(SIZE)], -1) @ T_BASE_CAM[:3, :3].T
    )
    with np.errstate(divide="ignore"):
        floor = np.where(rays[..., 2] < 0, -T_BASE_CAM[2, 3] / rays[..., 2], np.inf)
    return np.minimum(floor, 6 / rays[..., 0]).astype(np.float32)


class World:
    """A placement, and the frames of a perfect stream whose unit changes."""

    def __init__(self, config):
        self.config, self.placement = config, Placement(config)
        self.placement.receive_transforms([mounting()], static=True)
        self.depth = floor_depth()
        self.position = np.zeros(3)  # of the camera, in units so far
        self.last = np.zeros(3)  # in metres

    def frame(self, i, unit, rescaled=1.0):
        metres = inverse(T_BASE_CAM) @ base(i) @ T_BASE_CAM
        self.position = self.position + (metres[:3, 3] - self.last) / unit
        self.last = metres[:3, 3]
        T = rigid(metres[:3, :3], self.position)
        segment = InSegment(T, 0, T, {0: Similarity()}, (0.0, 0.0), rescaled)
        depth = self.depth / np.float32(unit)
        sure, picture = np.ones(SIZE, np.float32), np.zeros((*SIZE, 3), np.uint8)
        return frame(i, T_first_cam=T, intrinsics=K, depth=depth, confidence=sure, image=picture, segment=segment)

    def refer(self, i):
        """What the robot or the depth camera says at that frame."""
        source = self.config.scale.source
        if source == "odometry":
            self.placement.receive_pose(i * STEP, base(i))
        elif source == "tf":
            self.placement.receive_transforms([mounting(base(i), "wheels", "base_link", i * STEP)], False)
        elif source == "depth":
            self.placement.receive_depth(i * STEP, self.depth)

    def place(self, i, *args):
        """The placed frame, or None where it is not known yet where."""
        try:
            return self.placement.place(self.frame(i, *args), i * STEP, "lens", self.config)
        except NotPlaced:
            return None

    def through_a_join(self):
        placed = []
        for i in range(BEFORE + AFTER):
            self.refer(i)
            join = UNITS[1] / UNITS[0] if i == BEFORE else 1.0
            placed.append(self.place(i, UNITS[i >= BEFORE], join))
        return placed


@pytest.mark.parametrize("source", MEASURED)
def test_what_was_measured_holds_for_the_new_unit_from_the_first_frame_on(source):
    placed = World(config_of(source)).through_a_join()
    assert placed[BEFORE - 1].scale.scale == pytest.approx(UNITS[0], rel=0.01)
    for each in placed[BEFORE:]:
        assert each.scale.scale == pytest.approx(UNITS[1], rel=0.01)
        np.testing.assert_allclose(each.frame.depth, floor_depth(), rtol=0.01)
    assert placed[-1].scale.scale_measurements > placed[BEFORE - 1].scale.scale_measurements


@pytest.mark.parametrize("source", MEASURED)
def test_after_a_pause_the_unit_is_measured_anew(source):
    """Nothing is given out in the unit of before."""
    world = World(config_of(source))
    for i in range(2 * BEFORE):
        world.refer(i)
        placed = world.place(i, UNITS[i >= BEFORE], math.nan if i == BEFORE else 1.0)
        if i >= BEFORE and placed:
            assert placed.scale.scale == pytest.approx(UNITS[1], rel=0.01)
    assert placed and placed.scale.scale_measurements <= BEFORE


@pytest.mark.parametrize("source", MEASURED)
def test_the_way_in_metres_has_no_jump_where_the_unit_changes(source):
    placed = World(config_of(source)).through_a_join()
    at = [each.T_odom_child[:3, 3] for each in placed[BEFORE - 1 :]]
    true = [base(i)[:3, 3] for i in range(BEFORE - 1, BEFORE + AFTER)]
    np.testing.assert_allclose(np.diff(at, axis=0), np.diff(true, axis=0), atol=0.003)


@pytest.mark.parametrize("source", ["none", "fixed"])
def test_what_is_set_stays_as_it_is_set(source):
    placed = World(config_of(source, scale__factor=2.0)).through_a_join()
    assert {each.scale.scale for each in placed} == {1.0 if source == "none" else 2.0}


@pytest.mark.parametrize("source", MEASURED)
def test_a_new_world_knows_nothing_of_the_unit_of_before(source):
    world = World(config_of(source))
    world.through_a_join()
    world.position = world.last = np.zeros(3)
    world.refer(BEFORE + AFTER)
    first = replace(world.frame(BEFORE + AFTER, UNITS[1]), index=0)
    with pytest.raises(NotPlaced, match="the scale is not known yet"):
        world.placement.place(first, (BEFORE + AFTER) * STEP, "lens", world.config)


@pytest.mark.parametrize("source", ["depth", "odometry"])
def test_what_comes_late_is_compared_in_the_unit_that_its_frames_had(source):
    """References of the last frames before the join come after it; the window has room for little else."""
    world = World(config_of(source, scale__window=4))
    for i in range(BEFORE - 4):
        world.refer(i)
        world.place(i, UNITS[0])
    for i in range(BEFORE - 4, BEFORE):
        world.place(i, UNITS[0])
    for i in range(BEFORE - 4, BEFORE):
        world.refer(i)
    placed = world.place(BEFORE, UNITS[1], UNITS[1] / UNITS[0])
    assert placed.scale.scale == pytest.approx(UNITS[1], rel=0.01)


def test_a_join_counts_though_its_frame_cannot_be_placed():
    """Its image says that another camera took it, as one whose mounting is not known."""
    world = World(config_of("depth"))
    for i in range(BEFORE):
        world.refer(i)
        world.place(i, UNITS[0])
    joined = world.frame(BEFORE, UNITS[1], UNITS[1] / UNITS[0])
    with pytest.raises(NotPlaced, match="mounting"):
        world.placement.place(joined, BEFORE * STEP, "unknown", world.config)
    assert world.place(BEFORE + 1, UNITS[1]).scale.scale == pytest.approx(UNITS[1], rel=0.01)


# --- a real stream ----------------------------------------------------------------------------------

SOON = {"segment.enabled": True, "segment.work": 1.0, "segment.overlap": 0.9, "segment.shared": 1}
AT_ANY_RATE = {"loop.likeness": 0.3, "loop.agreement": 0.1, "loop.match": 0.2}
ROOM_FRAMES = 14  # in which a place is seen again


def depth_image(depth, stamp):
    rows, columns = depth.shape
    values = dict(height=rows, width=columns, encoding="32FC1", is_bigendian=0, step=4 * columns)
    data = depth.astype("<f4").view(np.uint8).ravel()
    return message("sensor_msgs/msg/Image", header=header(stamp, "lens"), data=data, **values)


@pytest.fixture(scope="module", params=[32, 33], ids="room {}".format)
def followed(request):
    """Placed frames of a room with the true depth of each, and what its segments shared where they joined."""
    settings = SOON | AT_ANY_RATE | {"device": "cpu", "dtype": "float32", "scale.source": "depth"}
    config = changed(NodeConfig(), settings)
    pipeline = Pipeline(SegmentedStream(config.stream), config, logging.getLogger(__name__))
    placed, joins = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain, "join", lambda shared: joins.append((shared, join(shared))) or joins[-1][1])
        for truth in stream(request.param, ROOM_FRAMES, SIZE[1], SIZE[0], "robot", 4.0):
            pipeline.receive(DEPTH, depth_image(truth.depth, truth.stamp_ns))
            (answer,) = pipeline.process(raw_image(truth.rgb, truth.stamp_ns), config)
            if isinstance(answer.result, Placed):
                placed.append((answer.result, truth.depth))
    return placed, joins


def log_ratio(depth, truth):
    """Of the scale that depth has."""
    return float(np.median(np.log(depth / truth)))


def test_the_join_tells_how_the_unit_changes_as_the_true_depth_does(followed):
    """Within 2 %, on the image that both segments have."""
    placed, joins = followed
    truth = {each.frame.index: depth for each, depth in placed}
    known = [(shared[-1], joined) for shared, joined in joins if shared[-1][0].index in truth]
    assert len(known) >= 2
    for (old, new), joined in known[1:]:  # the first comes before there is much to see
        change = log_ratio(old.depth, truth[old.index]) - log_ratio(new.depth, truth[old.index])
        assert np.log(joined.relation.scale) == pytest.approx(change, abs=0.02)


def test_depth_in_metres_does_not_jump_where_the_unit_does(followed):
    """By no more than 4 %, of which the network's own from image to image is 1 to 2; here the unit changes by more."""
    placed, _ = followed
    jumps = []
    for (before, true_before), (after, true_after) in pairwise(placed):
        if after.frame.segment.rescaled != 1:
            jumps.append(abs(np.log(after.frame.segment.rescaled)))
            jump = log_ratio(after.frame.depth, true_after) - log_ratio(before.frame.depth, true_before)
            assert abs(jump) < 0.04
    assert max(jumps) > 0.05
