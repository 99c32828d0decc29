# SPDX-License-Identifier: Apache-2.0
"""What a stream of segments sends beside the rest: map -> odom, and where its keyframes are."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.messages import STAMP, TYPES, place, rclpy_class

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.frame import InSegment
from xsvggt_ros.geometry import rigid, ros_pose, rotation_matrix
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.topics import KEYFRAMES, TOPICS, TRACKS, FrameMessages, outputs
from xsvggt_ros.settings import changed
from xsvggt_ros.similarity import Similarity
from xsvggt_ros.status import ScaleStatus

TURN = Rotation.from_rotvec([0, np.pi / 2, 0]).as_matrix()  # of an optical frame to the right
ARRAY = "geometry_msgs/msg/PoseArray"
T_MAP_ODOM = rigid(Rotation.from_rotvec([0.1, 0.2, 0.3]).as_matrix(), np.array([1.0, -2.0, 0.5]))
KEYS = {0: Similarity(), 7: Similarity(1.5, TURN, np.array([1.0, 2.0, 3.0]))}


def placed_of(frame, segments=True, keyframes=KEYS, scale=2.0):
    segment = InSegment(frame.T_first_cam, 0, frame.T_first_cam, keyframes, (0.0, 0.0), 1.0)
    placed = place(replace(frame, segment=segment if segments else None), scale=ScaleStatus("fixed", scale))
    origin = ros_pose(np.eye(4))
    return replace(placed, T_map_odom=T_MAP_ODOM if segments else None, T_map_first=origin)


def made_of(message_class, placed, **settings):
    made = FrameMessages(message_class).convert(placed, changed(NodeConfig(), settings))
    return {topic: make() for topic, make in made.items()}


def matrix(transform):
    p, q = transform.translation, transform.rotation
    return rigid(rotation_matrix(np.array([q.x, q.y, q.z, q.w])), np.array([p.x, p.y, p.z]))


def names(transform):
    return transform.header.frame_id, transform.child_frame_id


def test_keyframes_are_listed_only_with_segments():
    on = changed(NodeConfig(), {"segment.enabled": True})
    assert outputs(NodeConfig()) == TOPICS
    assert outputs(on) == TOPICS | KEYFRAMES
    assert outputs(changed(on, {"track_groups": 1})) == TOPICS | TRACKS | KEYFRAMES
    assert outputs(changed(on, {"publish_map": False})) == TOPICS


def test_tf_has_map_to_odom_beside_the_pose_only_with_segments(message_class, frame):
    (alone,) = made_of(message_class, placed_of(frame, segments=False))["/tf"].transforms
    child, corrected = made_of(message_class, placed_of(frame))["/tf"].transforms
    assert names(child) == names(alone) == ("odom", "lens") and names(corrected) == ("map", "odom")
    assert {stamp_ns(each.header) for each in (alone, child, corrected)} == {STAMP}
    np.testing.assert_array_equal(matrix(child.transform), matrix(alone.transform))
    np.testing.assert_allclose(matrix(corrected.transform), T_MAP_ODOM, atol=1e-12)


def test_both_transforms_are_inverted_as_a_frame_has_one_parent(message_class, frame):
    straight, inverted = (
        made_of(message_class, placed_of(frame), invert_tf=invert)["/tf"].transforms for invert in (False, True)
    )
    assert [names(each) for each in inverted] == [("lens", "odom"), ("odom", "map")]
    for before, after in zip(straight, inverted, strict=True):
        np.testing.assert_allclose(matrix(after.transform) @ matrix(before.transform), np.eye(4), atol=1e-12)


def test_frames_are_named_as_the_settings_say_and_no_tf_is_none(message_class, frame):
    named = {"map_frame": "building", "world_frame": "drift"}
    made = made_of(message_class, placed_of(frame), **named)
    assert [names(each) for each in made["/tf"].transforms] == [("drift", "lens"), ("building", "drift")]
    assert made["~/keyframes"].header.frame_id == "building"
    assert made["~/odometry"].header.frame_id == made["~/path"].header.frame_id == "drift"
    made = made_of(message_class, placed_of(frame), publish_map=False)
    (alone,) = made["/tf"].transforms
    assert names(alone) == ("odom", "lens")
    assert "~/keyframes" not in made  # the map is another node's
    made = made_of(message_class, placed_of(frame), publish_tf=False)
    assert "/tf" not in made and "~/keyframes" in made


def test_map_frame_must_have_a_name_of_its_own_where_there_is_a_map():
    for taken in ({"world_frame": "map"}, {"base_frame": "map"}, {"map_frame": "odom"}):
        with pytest.raises(ValueError, match="map_frame must have a name of its own"):
            changed(NodeConfig(), {"segment.enabled": True} | taken)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_keyframes_look_along_x_from_where_they_are_in_the_map(message_class, frame, scale):
    msg = made_of(message_class, placed_of(frame, scale=scale))["~/keyframes"]
    assert isinstance(msg, message_class(ARRAY))
    assert (msg.header.frame_id, stamp_ns(msg.header)) == ("map", STAMP)
    first, second = msg.poses
    at = [(pose.position.x, pose.position.y, pose.position.z) for pose in (first, second)]
    # Optical right, down, forward (1, 2, 3) is forward 3, left -1, up -2.
    np.testing.assert_allclose(at, [(0, 0, 0), (3 * scale, -scale, -2 * scale)], atol=1e-12)
    turned = [rotation_matrix(np.array([q.x, q.y, q.z, q.w])) for q in (first.orientation, second.orientation)]
    np.testing.assert_allclose(turned[0], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(turned[1][:, 0], [0, -1, 0], atol=1e-12)  # it looks to the right
    np.testing.assert_allclose(turned[1][:, 2], [0, 0, 1], atol=1e-12)  # and is upright


def test_without_segments_there_are_no_keyframes(message_class, frame):
    assert "~/keyframes" not in made_of(message_class, placed_of(frame, segments=False))
    assert made_of(message_class, placed_of(frame, keyframes={}))["~/keyframes"].poses == []


def test_both_libraries_write_the_same_keyframes_and_transforms(frame):
    serialization = pytest.importorskip("rclpy.serialization")
    ours, theirs = (made_of(c, placed_of(frame)) for c in (rclpy_class, lambda name: TYPES.types[name]))
    for topic, name in (("~/keyframes", ARRAY), ("/tf", TOPICS["/tf"])):
        decoded = TYPES.deserialize_cdr(serialization.serialize_message(ours[topic]), name)
        assert bytes(TYPES.serialize_cdr(decoded, name)) == bytes(TYPES.serialize_cdr(theirs[topic], name)), topic
