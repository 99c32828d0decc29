# SPDX-License-Identifier: Apache-2.0
"""Against rotations about one axis, whose products and interpolations are sums of angles, and against scipy."""

import logging
import sys
from importlib import import_module
from threading import Thread
from types import SimpleNamespace as Message

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from xsvggt_ros.messages.bag import TYPES
from xsvggt_ros.placement.tf_buffer import ENTRIES, HISTORY_S, TOLERANCE_S, TransformBuffer

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND


def stamped(parent, child, seconds=0.0, xyz=(0.0, 0.0, 0.0), quaternion=(0.0, 0.0, 0.0, 1.0)):
    """A TransformStamped, so many seconds after NOW."""
    sec, nanosec = divmod(NOW + round(seconds * SECOND), SECOND)
    return Message(
        header=Message(stamp=Message(sec=sec, nanosec=nanosec), frame_id=parent),
        child_frame_id=child,
        transform=Message(
            translation=Message(**dict(zip("xyz", xyz, strict=True))),
            rotation=Message(**dict(zip("xyzw", quaternion, strict=True))),
        ),
    )


def yawed(parent, child, seconds, xyz, yaw):
    return stamped(parent, child, seconds, xyz, (0.0, 0.0, np.sin(yaw / 2), np.cos(yaw / 2)))


def matrix(xyz, rotation):
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = rotation.as_matrix(), xyz
    return T


def random_pose(rng):
    quaternion = rng.normal(size=4)
    return rng.normal(size=3), quaternion * rng.uniform(0.5, 2) / np.linalg.norm(quaternion)


def at(seconds):
    return NOW + round(seconds * SECOND)


def tree(*transforms, static=False):
    tree = TransformBuffer()
    tree.add(transforms, static)
    return tree


def test_a_point_goes_from_source_to_target():
    """The camera sits 0.2 m ahead and 0.5 m above the base, turned left: what lies before it lies left of the base."""
    mounted = tree(yawed("base_link", "camera", 0, (0.2, 0.0, 0.5), np.pi / 2), static=True)
    before_camera = np.array([3.0, 0, 0, 1])
    np.testing.assert_allclose(mounted.lookup("base_link", "camera", NOW) @ before_camera, [0.2, 3, 0.5, 1], atol=1e-12)
    back = mounted.lookup("camera", "base_link", NOW)
    np.testing.assert_allclose(back @ [0.2, 3, 0.5, 1], before_camera, atol=1e-12)


def test_up_and_down_through_the_common_ancestor():
    """map -> odom -> base -> head -> camera on one side, base -> arm -> hand on the other."""
    rng = np.random.default_rng(0)
    links = [("map", "odom"), ("odom", "base"), ("base", "head"), ("head", "camera"), ("base", "arm"), ("arm", "hand")]
    poses = {child: random_pose(rng) for _, child in links}
    frames = tree(*(stamped(parent, child, 0, *poses[child]) for parent, child in links))
    T = {child: matrix(xyz, Rotation.from_quat(q)) for child, (xyz, q) in poses.items()}  # parent <- child
    expected = {
        ("base", "camera"): T["head"] @ T["camera"],
        ("hand", "camera"): np.linalg.inv(T["arm"] @ T["hand"]) @ T["head"] @ T["camera"],
        ("camera", "map"): np.linalg.inv(T["odom"] @ T["base"] @ T["head"] @ T["camera"]),
        ("map", "hand"): T["odom"] @ T["base"] @ T["arm"] @ T["hand"],
    }
    for (target, source), T_target_source in expected.items():
        np.testing.assert_allclose(frames.lookup(target, source, NOW), T_target_source, atol=1e-12)


def test_only_what_lies_between_the_frames_must_be_up_to_date():
    frames = tree(stamped("map", "odom", -60), stamped("odom", "base", -60))
    frames.add([stamped("base", "left", xyz=(0.0, 1.0, 0.0)), stamped("base", "right", xyz=(0.0, -1.0, 0.0))], True)
    np.testing.assert_allclose(frames.lookup("left", "right", NOW)[:3, 3], [0, -2, 0])
    with pytest.raises(LookupError, match=r"'base' in 'odom' is 60\.000 s older"):
        frames.lookup("map", "left", NOW)


def test_between_two_stamps_position_and_rotation_are_interpolated():
    rng = np.random.default_rng(1)
    times, poses = np.array([0.0, 0.1, 0.25, 0.3]), [random_pose(rng) for _ in range(4)]
    frames = tree(*(stamped("odom", "base", t, *pose) for t, pose in zip(times, poses, strict=True)))
    slerp = Slerp(times, Rotation.from_quat([q for _, q in poses]))
    for t in [*times, *rng.uniform(0, 0.3, 20).round(9)]:
        xyz = [np.interp(t, times, axis) for axis in np.transpose([xyz for xyz, _ in poses])]
        np.testing.assert_allclose(frames.lookup("odom", "base", at(t)), matrix(xyz, slerp(t)), atol=1e-9)


def test_rotations_are_interpolated_over_the_shorter_way():
    """From 170 to -170 degrees a robot turns by 20, through 180; and a quaternion's sign means nothing."""
    for sign in (1, -1):
        end = stamped("odom", "base", 1, (0.0, 0.0, 0.0), sign * Rotation.from_euler("z", np.deg2rad(-170)).as_quat())
        frames = tree(yawed("odom", "base", 0, (0, 0, 0), np.deg2rad(170)), end)
        T = frames.lookup("odom", "base", at(0.25))
        np.testing.assert_allclose(T[:3, 0], [np.cos(np.deg2rad(175)), np.sin(np.deg2rad(175)), 0], atol=1e-9)


def test_order_of_arrival_means_nothing_and_the_same_stamp_replaces():
    rng = np.random.default_rng(2)
    stamps = np.arange(20) * 0.04
    frames = tree(*(stamped("odom", "base", t, (7.0, t, 0.0)) for t in rng.permutation(stamps)))
    frames.add([stamped("odom", "base", t, (t, 0.0, 0.0)) for t in rng.permutation(stamps)], static=False)
    for t in rng.uniform(0, stamps[-1], 20):
        np.testing.assert_allclose(frames.lookup("odom", "base", at(t))[:3, 3], [t, 0, 0], atol=1e-8)


def test_the_newest_holds_for_the_tolerance_and_not_longer():
    frames = tree(stamped("odom", "base", -1, (1.0, 0.0, 0.0)), stamped("odom", "base", 0, (2.0, 0.0, 0.0)))
    np.testing.assert_array_equal(frames.lookup("odom", "base", at(TOLERANCE_S))[:3, 3], [2, 0, 0])
    with pytest.raises(LookupError, match=r"newest transform of 'base' in 'odom' is 0\.101 s older .*use_sim_time"):
        frames.lookup("odom", "base", at(TOLERANCE_S + 0.001))
    with pytest.raises(LookupError, match=r"0\.010 s older"):
        frames.lookup("odom", "base", at(0.01), tolerance_s=0.0)
    np.testing.assert_array_equal(frames.lookup("odom", "base", NOW, tolerance_s=0.0)[:3, 3], [2, 0, 0])


def test_before_the_history_nothing_is_made_up():
    frames = tree(stamped("odom", "base", 0), stamped("odom", "base", 1))
    with pytest.raises(LookupError, match=r"oldest transform of 'base' in 'odom' is 2\.500 s newer"):
        frames.lookup("odom", "base", at(-2.5))


def test_history_is_bounded_in_time():
    frames = TransformBuffer()
    for t in np.arange(0, 30, 0.1):
        frames.add([stamped("odom", "base", t, (t, 0.0, 0.0))], static=False)
    newest = 29.9
    kept = newest - HISTORY_S
    np.testing.assert_allclose(frames.lookup("odom", "base", at(kept))[:3, 3], [kept, 0, 0], atol=1e-9)
    with pytest.raises(LookupError, match="newer"):
        frames.lookup("odom", "base", at(kept - 0.2))


def test_history_is_bounded_in_number():
    excess = 100
    frames = tree(*(stamped("odom", "base", i * 1e-6) for i in range(ENTRIES + excess)))
    frames.lookup("odom", "base", at(excess * 1e-6))
    with pytest.raises(LookupError, match="newer"):
        frames.lookup("odom", "base", at((excess - 1) * 1e-6))


def test_static_transforms_hold_always_and_the_last_that_came_is_the_one():
    frames = tree(stamped("base", "camera", 100, (1.0, 0.0, 0.0)), static=True)
    frames.add([stamped("base", "camera", 0, (2.0, 0.0, 0.0))], static=True)
    for seconds in (-1e6, 0, 1e6):
        np.testing.assert_array_equal(frames.lookup("base", "camera", at(seconds))[:3, 3], [2, 0, 0])


def test_a_frame_moves_to_another_parent():
    frames = tree(stamped("world", "cup", 0, (1.0, 0.0, 0.0)), stamped("world", "hand", 0, (5.0, 0.0, 0.0)))
    frames.add([stamped("hand", "cup", 0.01, (0.1, 0.0, 0.0))], static=False)
    np.testing.assert_allclose(frames.lookup("world", "cup", at(0.01))[:3, 3], [5.1, 0, 0])
    frames.add([stamped("world", "cup", 0, (3.0, 0.0, 0.0))], static=True)  # put down for good
    np.testing.assert_allclose(frames.lookup("world", "cup", at(100))[:3, 3], [3, 0, 0])


def test_clear_forgets_what_has_a_time():
    frames = tree(stamped("odom", "base", 5))
    frames.add([stamped("base", "camera", 5, (0.3, 0.0, 0.0))], static=True)
    frames.clear()
    np.testing.assert_array_equal(frames.lookup("base", "camera", at(0))[:3, 3], [0.3, 0, 0])
    with pytest.raises(LookupError, match="no frame 'odom'; it has 'base', 'camera'"):
        frames.lookup("odom", "base", at(5))
    frames.add([stamped("odom", "base", 0, (1.0, 0.0, 0.0))], static=False)
    np.testing.assert_array_equal(frames.lookup("odom", "base", at(0))[:3, 3], [1, 0, 0])


def test_a_stamp_from_far_ahead_does_not_block_the_ones_to_come():
    """A last message of a bag's former loop, or of a node with another clock."""
    frames = tree(stamped("odom", "base", 3600, (9.0, 9.0, 9.0)))
    frames.add([stamped("odom", "base", t, (t, 0.0, 0.0)) for t in (0.0, 0.1)], static=False)
    np.testing.assert_allclose(frames.lookup("odom", "base", at(0.05))[:3, 3], [0.05, 0, 0], atol=1e-9)
    np.testing.assert_allclose(frames.lookup("odom", "base", at(0.15))[:3, 3], [0.1, 0, 0], atol=1e-9)


def test_what_is_missing_is_named():
    empty = TransformBuffer()
    with pytest.raises(LookupError, match="no frame 'base'; it has no frames at all"):
        empty.lookup("base", "camera", NOW)
    two = tree(stamped("odom", "base"), stamped("mast", "lens"))
    with pytest.raises(LookupError, match="no frame 'camera'; it has 'base', 'lens', 'mast', 'odom'"):
        two.lookup("base", "camera", NOW)
    with pytest.raises(LookupError, match=r"not connect 'lens' with 'base'.* begins at 'mast', of the other at 'odom'"):
        two.lookup("base", "lens", NOW)


def test_a_long_list_of_frames_is_cut():
    many = tree(*(stamped("odom", f"joint_{i:03}") for i in range(200)))
    with pytest.raises(LookupError) as error:
        many.lookup("odom", "camera", NOW)
    assert "'joint_000'" in str(error.value) and "'joint_199'" not in str(error.value)
    assert str(error.value).endswith(", ...")


def test_a_loop_is_named_and_does_not_hang():
    loop = tree(stamped("a", "b"), stamped("b", "c"), stamped("c", "a"), stamped("a", "leaf"))
    with pytest.raises(LookupError, match=r"loop.*: b -> a -> c -> b;"):
        loop.lookup("b", "leaf", NOW)


def test_a_leading_slash_is_no_part_of_the_name():
    frames = tree(stamped("/odom", "/base", 0, (1.0, 0.0, 0.0)), stamped("//base", " camera\n", 0, (0.0, 2.0, 0.0)))
    np.testing.assert_array_equal(frames.lookup("odom", "/base", NOW)[:3, 3], [1, 0, 0])
    np.testing.assert_array_equal(frames.lookup("odom", "camera", NOW)[:3, 3], [1, 2, 0])


def test_a_frame_in_itself_needs_no_transform():
    np.testing.assert_array_equal(TransformBuffer().lookup("camera", "/camera", NOW), np.eye(4))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (stamped("odom", "base", 0, (np.nan, 0.0, 0.0)), "not finite"),
        (stamped("odom", "base", 0, (0.0, 0.0, 0.0), (0.0, 0.0, np.inf, 1.0)), "not finite"),
        (stamped("odom", "base", 0, (0.0, 0.0, 0.0), (1e308, 1e308, 1e308, 1e308)), "not finite"),
        (stamped("odom", "base", 0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)), "quaternion is zero"),
        (stamped("odom", "base", 0, (0.0, 0.0, 0.0), (0.0, 1e-200, 0.0, 0.0)), "quaternion is zero"),
        (stamped("", "base"), "without a name"),
        (stamped("odom", "/"), "without a name"),
        (stamped("odom", " "), "without a name"),
        (stamped("base", "/base"), "its own parent"),
        (stamped("//base", "base "), "its own parent"),
    ],
)
def test_what_is_no_transform_is_ignored_and_said_once(bad, words, caplog):
    frames = TransformBuffer()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            frames.add([bad, stamped("odom", "arm", 0, (1.0, 0.0, 0.0))], static=False)
    assert len(caplog.records) == 1 and words in caplog.text
    np.testing.assert_array_equal(frames.lookup("odom", "arm", NOW)[:3, 3], [1, 0, 0])
    with pytest.raises(LookupError, match=r"no frame 'base'; it has 'arm', 'odom'$"):
        frames.lookup("odom", "base", NOW)


@pytest.mark.parametrize("length", [1e-3, 0.99, 1e100])
def test_quaternions_of_another_length_are_rotations(length):
    frames = tree(stamped("odom", "base", 0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.6 * length, 0.8 * length)))
    yaw = 2 * np.arctan2(0.6, 0.8)
    np.testing.assert_allclose(frames.lookup("odom", "base", NOW)[:2, 0], [np.cos(yaw), np.sin(yaw)], atol=1e-12)


@pytest.fixture(params=["rclpy", "rosbags"])
def message_class(request):
    if request.param == "rosbags":
        return lambda package, kind: TYPES.types[f"{package}/msg/{kind}"]
    pytest.importorskip("rclpy")
    return lambda package, kind: getattr(import_module(f"{package}.msg"), kind)


def test_messages_of_either_library(message_class):
    geometry = {name: message_class("geometry_msgs", name) for name in ("Vector3", "Quaternion", "Transform")}
    stamp = message_class("builtin_interfaces", "Time")(sec=NOW // SECOND, nanosec=500_000_000)
    msg = message_class("geometry_msgs", "TransformStamped")(
        header=message_class("std_msgs", "Header")(stamp=stamp, frame_id="base"),
        child_frame_id="camera",
        transform=geometry["Transform"](
            translation=geometry["Vector3"](x=1.0, y=2.0, z=3.0),
            rotation=geometry["Quaternion"](x=0.5, y=0.5, z=0.5, w=0.5),
        ),
    )
    frames = tree(msg)
    expected = [[0, 0, 1, 1], [1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(frames.lookup("base", "camera", at(0.5), tolerance_s=0.0), expected, atol=1e-15)
    with pytest.raises(LookupError, match=r"0\.500 s newer"):
        frames.lookup("base", "camera", NOW)


@pytest.fixture
def hasty_threads():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_threads_see_whole_transforms(hasty_threads):
    """A frame moves at 1 m/s, its history being cut and new frames coming: who asks at t sees x = t or is refused."""
    frames = tree(stamped("odom", "base", 0))
    written, faults = [0], []

    def write():
        for i in range(1, 2000):
            t = 0.1 * i
            frames.add([stamped("odom", "base", t, (t, 0.0, 0.0)), stamped("base", f"new_{i}")], static=False)
            written[0] = t

    def read(writer):
        rng = np.random.default_rng(3)
        while writer.is_alive():
            t = max(written[0] - rng.uniform(0, HISTORY_S), 0)
            try:
                x = frames.lookup("odom", "base", at(t))[0, 3]
            except LookupError as error:
                if isinstance(error, IndexError | KeyError) or "newer" not in str(error):
                    faults.append(error)
            except RuntimeError as error:
                faults.append(error)
            else:
                if abs(x - t) > 1e-6:
                    faults.append((x, t))

    writer = Thread(target=write)
    threads = [writer, *(Thread(target=read, args=(writer,)) for _ in range(2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not faults and not writer.is_alive()
    np.testing.assert_allclose(frames.lookup("odom", "base", at(199.9))[0, 3], 199.9)
