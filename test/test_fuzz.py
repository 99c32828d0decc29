# SPDX-License-Identifier: Apache-2.0
"""Random messages of every input topic: refused with a reason, or what is made of them is right. Nothing else.

15,500 cases with --endurance, a tenth of them without; test/ros/test_fuzz_node.py sends 5,000 more to a running node.
"""

import math
import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")
os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"  # before the message classes, which read it

from geometry_msgs.msg import Transform, TransformStamped, Vector3
from hypothesis import strategies as st
from nav_msgs.msg import Odometry
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header
from support import fuzz
from tf2_msgs.msg import TFMessage

from xsvggt_ros.camera import Rectifier
from xsvggt_ros.config import NodeConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import rigid, unproject
from xsvggt_ros.messages.decode import decode_depth, decode_image, decode_pose, stamp_ns
from xsvggt_ros.messages.topics import references
from xsvggt_ros.pipeline import hand_over
from xsvggt_ros.placement.placement import NotPlaced, Placement
from xsvggt_ros.placement.tf_buffer import TransformBuffer
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.settings import changed
from xsvggt_ros.status import StepStatus

pytestmark = pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value", "ignore:divide by zero")


def refused(function, *args):
    """Whether the function raises a ValueError, whose text says something; otherwise what it returns."""
    try:
        return function(*args)
    except ValueError as error:
        assert str(error).strip()
        return None


def test_images(endurance):
    def check(msg):
        rows = fuzz.rows_of(msg, fuzz.PIXEL_BYTES)
        decoded = refused(decode_image, msg)
        assert (decoded is None) == (rows is None)
        if rows is not None:
            fuzz.check_pixels(decoded, msg, rows)

    fuzz.run_cases(endurance, check, fuzz.images(), 4500)


def test_compressed_images(endurance):
    def check(drawn):
        msg, picture, damage = drawn
        decoded = refused(decode_image, msg)
        assert decoded is not None or picture is None, damage
        if decoded is not None:
            assert damage not in ("png cut", "jpg cut"), damage
            fuzz.check_compressed(decoded, msg, picture)

    fuzz.run_cases(endurance, check, fuzz.compressed(), 2500)


HEIGHT, WIDTH = fuzz.SIZE
# A pixel says where it is: 8 a column, 10 a row.
RAMP = np.dstack([*np.meshgrid(8 * np.arange(WIDTH), 10 * np.arange(HEIGHT)), np.full(fuzz.SIZE, 99)]).astype(np.uint8)


def test_camera_infos(endurance):
    rectifier = Rectifier()

    def check(drawn):
        info, rectify = drawn
        answer = refused(rectifier, RAMP, info, rectify)
        if answer is None:
            return
        image, K = answer
        assert (image.shape, image.dtype) == (RAMP.shape, np.uint8)
        matrix = info.p.reshape(3, 4) if info.p[0] > 0 and not (rectify and info.k.any()) else info.k.reshape(3, 3)
        np.testing.assert_allclose(K, window(info, matrix), atol=1e-9)
        check_geometry(K)
        if rectify and any(info.d):
            check_rectified(image, K, info)
        else:
            assert image is RAMP

    fuzz.run_cases(endurance, check, st.tuples(fuzz.camera_infos(), st.booleans()), 3000)


def test_plausible_camera_infos_are_accepted(endurance):
    """So that the test above is one of what is accepted, too."""
    accepted = []

    def check(info):
        accepted.append(refused(Rectifier(), RAMP, info, True) is not None)

    fuzz.run_cases(endurance, check, fuzz.camera_infos(), 5000)  # a share of fewer would be one of chance
    assert np.mean(accepted) > 0.5


def window(info, matrix):
    """K of the image from the sensor's, by what a pixel of the one is in the other."""
    x, y = info.roi.x_offset, info.roi.y_offset
    columns, rows = max(1, info.binning_x), max(1, info.binning_y)
    centre = [(matrix[0, 2] - x + 0.5) / columns - 0.5, (matrix[1, 2] - y + 0.5) / rows - 0.5]
    return [[matrix[0, 0] / columns, 0, centre[0]], [0, matrix[1, 1] / rows, centre[1]], [0, 0, 1]]


def check_geometry(K):
    """That points of depth 1 are somewhere, also after the image is resized for the network."""
    resized = Resize.of(*fuzz.SIZE, 112, 14).intrinsics(K)
    assert np.isfinite(resized).all() and resized[0, 0] > 0 and resized[1, 1] > 0
    assert np.isfinite(unproject(np.ones((84, 112), np.float32), resized)).all()


def check_rectified(image, K, info):
    """A pixel of the pinhole image has the value of where the lens shows its ray, by OpenCV's projection."""
    rows, columns = np.indices(fuzz.SIZE).astype(float)
    x, y = (columns - K[0, 2]) / K[0, 0], (rows - K[1, 2]) / K[1, 1]
    rays = np.dstack([x, y, np.ones_like(x)]).reshape(-1, 1, 3)
    fisheye = info.distortion_model == "equidistant"
    project = cv2.fisheye.projectPoints if fisheye else cv2.projectPoints
    d = np.resize([*info.d, *np.zeros(14)], 4 if fisheye else 14)  # what is left off or over is 0
    pixels = project(rays, np.zeros(3), np.zeros(3), K, d)[0].reshape(*fuzz.SIZE, 2)
    inside = ((pixels >= 0) & (pixels <= [WIDTH - 1, HEIGHT - 1])).all(-1)
    error = np.abs(image[..., :2] - pixels * [8, 10])[inside]
    assert error.max(initial=0) <= 1  # rounding, and 1/32 of a pixel


def test_depth_images(endurance):
    def check(msg):
        rows = fuzz.rows_of(msg, fuzz.DEPTH_BYTES)
        decoded = refused(decode_depth, msg)
        assert (decoded is None) == (rows is None)
        if rows is not None:
            assert decoded.dtype == np.float32
            np.testing.assert_allclose(decoded, fuzz.depth_of(msg, rows), rtol=1e-6)

    fuzz.run_cases(endurance, check, fuzz.images(fuzz.DEPTH_BYTES), 1000)


def test_odometries(endurance):
    def check(msg):
        p, q = msg.pose.pose.position, msg.pose.pose.orientation
        T = refused(decode_pose, msg)
        quaternion = np.array([q.x, q.y, q.z, q.w])
        if not np.isfinite([p.x, p.y, p.z, *quaternion]).all() or not quaternion.any():
            assert T is None
        if T is not None:
            assert T[:3, 3].tolist() == [p.x, p.y, p.z]
            quaternion /= np.abs(quaternion).max()
            np.testing.assert_allclose(T[:3, :3], Rotation.from_quat(quaternion).as_matrix(), atol=1e-9)

    fuzz.run_cases(endurance, check, fuzz.odometries(), 1000)


def test_stamps(endurance):
    """Output messages carry the stamp of their image: one that no message can hold is refused."""

    def check(time):
        stamp = refused(stamp_ns, SimpleNamespace(stamp=time))
        assert (stamp is None) == (time.nanosec >= 10**9 or time.sec < 0)
        if stamp is not None:
            assert fuzz.stamp(stamp) == time

    fuzz.run_cases(endurance, check, fuzz.stamps, 500)


def test_transforms(endurance):
    def check(drawn):
        tree = TransformBuffer()
        for transforms, static in drawn:
            tree.add(transforms, static)
        for target in fuzz.FRAMES:
            for source in fuzz.FRAMES:
                check_lookup(tree, target, source)

    messages = st.tuples(st.lists(fuzz.transforms(), max_size=4), st.booleans())
    fuzz.run_cases(endurance, check, st.lists(messages, min_size=1, max_size=4), 1000)


def check_lookup(tree, target, source):
    try:
        T = tree.lookup(target, source, 10**9)
    except LookupError as error:
        assert error.args[0]
        return
    assert np.isfinite(T).all()
    np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-9)


SOURCES = {"odometry": {}, "tf": {"scale.parent_frame": "map", "scale.child_frame": "base"}, "depth": {}}
RANDOM = {
    "/tf": st.lists(fuzz.transforms(), max_size=3).map(lambda transforms: TFMessage(transforms=transforms)),
    "reference/odometry": fuzz.odometries(),
    "reference/depth": fuzz.images(fuzz.DEPTH_BYTES),
}
RANDOM["/tf_static"] = RANDOM["/tf"]
PERIOD_NS = 100_000_000
DEPTH = np.random.default_rng(0).uniform(1, 3, (14, 14)).astype(np.float32)


@pytest.mark.parametrize("base", ["base", ""])
@pytest.mark.parametrize("source", SOURCES)
def test_placement_of_frames_among_random_references(endurance, source, base):
    """Frames are placed where something finite says, or not at all."""
    config = changed(NodeConfig(), {"scale.source": source, "base_frame": base, **SOURCES[source]})
    received = st.one_of(*(st.tuples(st.just(topic), RANDOM[topic]) for topic in references(config)))
    placed = []

    def check(frames):
        placement = Placement(config)
        hand_over(placement, "/tf_static", TFMessage(transforms=[between("base", "lens", 0.1, 0)]))
        for index, (good, others) in enumerate(frames):
            for topic, msg in [usual(source, index)] * good + others:
                refused(hand_over, placement, topic, msg)
            placed.append(check_placed(placement, index, config))

    good = st.sampled_from([True, True, True, False])
    messages = st.tuples(good, st.just([]) | st.lists(received, max_size=2))
    fuzz.run_cases(endurance, check, st.lists(messages, min_size=6, max_size=12), 250)
    assert any(placed)


def between(parent, child, x, index):
    """TransformStamped of a frame at x in its parent, at the time of the frame of that index."""
    header = Header(stamp=fuzz.stamp(index * PERIOD_NS), frame_id=parent)
    return TransformStamped(
        header=header, child_frame_id=child, transform=Transform(translation=Vector3(x=x, y=0.0, z=0.0))
    )


def usual(source, index):
    """Topic and message of a reference that is as it should be: half a metre for a unit."""
    stamped = between("map", "base", 0.1 * index, index)
    if source == "tf":
        return "/tf", TFMessage(transforms=[stamped])
    if source == "odometry":
        msg = Odometry(header=stamped.header)
        msg.pose.pose.position.x = 0.1 * index
        return "reference/odometry", msg
    msg = fuzz.image("32FC1", 14, 56, 14, DEPTH / 2)
    msg.header = stamped.header
    return "reference/depth", msg


def check_placed(placement, index, config):
    """Whether the frame is placed."""
    K = np.array([[10.0, 0, 7], [0, 10, 7], [0, 0, 1]])
    pose = rigid(np.eye(3), np.array([0.2 * index, 0.0, 0.0]))
    frame = Frame(index, pose, K, DEPTH, np.ones_like(DEPTH), np.zeros((14, 14, 3), np.uint8), StepStatus(frame=index))
    try:
        placed = placement.place(frame, index * PERIOD_NS, "lens", config)
    except NotPlaced as error:
        assert error.args[0]
        return False
    assert 0 < placed.scale.scale < math.inf
    for values in (placed.T_odom_cam, placed.T_odom_child, placed.frame.depth, placed.frame.points_cam()):
        assert np.isfinite(values).all()
    return True
