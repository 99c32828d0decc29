# SPDX-License-Identifier: Apache-2.0
"""Worlds that continue one another in odom, where REP 105 allows no jump: map -> odom takes it."""

import numpy as np
import pytest
from support.frames import frame
from support.mounted import T_BASE_CAM, mounting

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.frame import InSegment
from xsvggt_ros.geometry import inverse, rigid, rotation_matrix
from xsvggt_ros.placement.placement import NotPlaced, Placement
from xsvggt_ros.settings import changed
from xsvggt_ros.similarity import Similarity

LEVEL = rigid(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), np.zeros(3))  # of a camera in the origin
CHILDREN = {"": "lens", "base_link": "base_link"}


def pose(i):
    """T_first_cam of a way that turns about all axes."""
    half = np.array([0.05, 0.1, -0.025]) * i
    return rigid(rotation_matrix(np.array([*half, 1])), np.array([0.3, -0.2, 0.5]) * i)


def placement_of(base_frame, continues=True, known=True):
    settings = {"base_frame": base_frame, "continue_odom": continues, "scale.source": "fixed", "scale.factor": 2.0}
    config = changed(NodeConfig(), settings)
    placement = Placement(config)
    if known:
        placement.receive_transforms([mounting()], static=True)
    return placement, config


def place(placement, config, stamp, i, segment=None):
    """Of image i of its world."""
    return placement.place(frame(i, T_first_cam=pose(i), segment=segment), stamp, "lens", config)


def two_worlds(placement, config, at=3):
    """The frames of one world, and of the one that follows."""
    return [[place(placement, config, 10 * world + i, i) for i in range(at)] for world in range(2)]


@pytest.mark.parametrize("base_frame", CHILDREN)
def test_the_child_goes_on_in_odom_where_it_was(base_frame):
    first, second = two_worlds(*placement_of(base_frame))
    np.testing.assert_allclose(second[0].T_odom_child, first[-1].T_odom_child, atol=1e-12)
    assert second[0].starts and second[0].child == CHILDREN[base_frame]
    for before, after in zip(first, second, strict=True):  # and then moves as it does, from there
        moved = inverse(second[0].T_odom_child) @ after.T_odom_child
        np.testing.assert_allclose(moved, inverse(first[0].T_odom_child) @ before.T_odom_child, atol=1e-12)


@pytest.mark.parametrize("base_frame", CHILDREN)
def test_in_the_map_each_world_begins_at_the_origin(base_frame):
    placement, config = placement_of(base_frame)
    alone, as_ever = placement_of(base_frame, continues=False)
    worlds = zip(two_worlds(placement, config), two_worlds(alone, as_ever), strict=True)
    for placed, other in [pair for ours, theirs in worlds for pair in zip(ours, theirs, strict=True)]:
        np.testing.assert_allclose(placed.T_map_odom @ placed.T_odom_child, other.T_odom_child, atol=1e-12)
        np.testing.assert_allclose(placed.T_map_odom @ placed.T_odom_cam, other.T_odom_cam, atol=1e-12)
        np.testing.assert_allclose(placed.T_map_first, other.T_map_first, atol=1e-12)
        assert other.T_map_odom is None


@pytest.mark.parametrize("base_frame", CHILDREN)
def test_by_default_each_world_begins_at_the_origin_of_odom(base_frame):
    _, second = two_worlds(*placement_of(base_frame, continues=False))
    expected = np.eye(4) if base_frame else LEVEL
    np.testing.assert_allclose(second[0].T_odom_child, expected, atol=1e-12)


def test_map_and_odom_are_one_in_the_first_world_and_jump_apart_at_the_next():
    first, second = two_worlds(*placement_of("base_link"))
    for placed in first:
        np.testing.assert_allclose(placed.T_map_odom, np.eye(4), atol=1e-12)
    for placed in second:
        np.testing.assert_allclose(placed.T_map_odom, inverse(first[-1].T_odom_child), atol=1e-12)


def test_a_world_whose_first_frames_cannot_be_placed_has_moved_on_by_its_first_that_can():
    """The mounting is forgotten with the time it was of, and comes again late."""
    placement, config = placement_of("base_link", known=False)
    placement.receive_transforms([mounting(stamp=0)], static=False)
    last = place(placement, config, 0, 0)
    far = 100 * 10**9
    with pytest.raises(NotPlaced):
        place(placement, config, far, 0)
    placement.receive_transforms([mounting(stamp=far)], static=False)
    placed = place(placement, config, far, 2)
    moved = T_BASE_CAM @ rigid(pose(2)[:3, :3], 2 * pose(2)[:3, 3]) @ inverse(T_BASE_CAM)
    np.testing.assert_allclose(inverse(last.T_odom_child) @ placed.T_odom_child, moved, atol=1e-12)


@pytest.mark.parametrize("located", [True, False])
def test_segments_correct_the_map_of_a_world_that_continues(located):
    placement, config = placement_of("base_link")
    for i in range(3):
        last = place(placement, config, i, i)
    corrected = rigid(np.eye(3), np.array([0.5, 0, -1.0])) @ pose(1)
    segment = InSegment(corrected, 0, np.eye(4), {0: Similarity()}, (0.0, 0.0), 1.0, located)
    first = place(placement, config, 10, 0)
    placed = place(placement, config, 11, 1, segment)
    np.testing.assert_allclose(first.T_odom_child, last.T_odom_child, atol=1e-12)
    if not located:  # nobody knows where that is on the map
        assert placed.T_map_odom is None
        return
    expected = T_BASE_CAM @ rigid(corrected[:3, :3], 2 * corrected[:3, 3])
    np.testing.assert_allclose(placed.T_map_odom @ placed.T_odom_cam, expected, atol=1e-12)


def test_map_frame_must_have_a_name_of_its_own():
    for taken in ({"world_frame": "map"}, {"base_frame": "map"}, {"map_frame": "odom"}):
        assert changed(NodeConfig(), taken)
        with pytest.raises(ValueError, match="map_frame must have a name of its own"):
            changed(NodeConfig(), {"continue_odom": True} | taken)
