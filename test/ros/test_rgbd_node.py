# SPDX-License-Identifier: Apache-2.0
"""The node for those who take RGB-D, and who navigate: outputs of the camera's size, and an odom without jumps."""

import numpy as np
import pytest

pytest.importorskip("rclpy")

from geometry_msgs.msg import TransformStamped

from xsvggt_ros.geometry import rigid, rotation_matrix

SIZE = (168, 224)
IMAGES = ("~/depth/image", "~/confidence/image", "~/rgb/image", "~/depth/camera_info", "~/rgb/camera_info", "~/points")


@pytest.fixture(scope="module")
def user(start_node, client):
    start_node(device="cpu", dtype="float32", queue="all", queue_size=300, point_stride=1, continue_odom="true")
    client.connect()
    return client


def exchange(user, **options):
    """The messages that answer an image, by topic, and the image."""
    for received in user.received.values():
        received.clear()
    image = user.image(**options)
    user.exchange(image)
    user.until(lambda: all(user.stamps(topic)[-1:] == [user.stamp] for topic in user.received))
    return {topic: received[-1] for topic, received in user.received.items()}, image


def sizes(made):
    return {(made[topic].height, made[topic].width) for topic in IMAGES}


def test_outputs_are_of_the_cameras_size_while_that_is_asked_for(user):
    assert user.reset().success
    small, _ = exchange(user, height=SIZE[0], width=SIZE[1])
    assert sizes(small) == {(84, 112)}
    assert user.set_parameters(output__resolution="input").successful
    large, image = exchange(user, height=SIZE[0], width=SIZE[1])
    assert sizes(large) == {SIZE}
    headers = [large[topic].header for topic in IMAGES]
    assert {header.frame_id for header in headers} == {"lens"}
    assert all(header.stamp == image.header.stamp for header in headers)
    sent = np.frombuffer(image.data, np.uint8).reshape(*SIZE, 3)
    shown = np.frombuffer(large["~/rgb/image"].data, np.uint8).reshape(*SIZE, 3)
    np.testing.assert_array_equal(shown, sent[..., ::-1])  # bgr8 came
    np.testing.assert_allclose(large["~/rgb/camera_info"].p, large["~/depth/camera_info"].p)
    assert user.set_parameters(output__resolution="network").successful
    again, _ = exchange(user, height=SIZE[0], width=SIZE[1])
    assert sizes(again) == {(84, 112)}


def matrix(transform: TransformStamped) -> np.ndarray:
    p, q = transform.transform.translation, transform.transform.rotation
    return rigid(rotation_matrix(np.array([q.x, q.y, q.z, q.w])), np.array([p.x, p.y, p.z]))


def transforms(made):
    return {(t.header.frame_id, t.child_frame_id): matrix(t) for t in made["/tf"].transforms}


def test_a_reset_moves_map_to_odom_and_leaves_odom_alone(user):
    assert user.reset().success  # images are of another size
    for _ in range(3):
        before, _ = exchange(user)
    assert user.reset().success
    after, _ = exchange(user)
    assert after["~/status"].frame == 0 and len(after["~/path"].poses) == 1
    was, now = transforms(before), transforms(after)
    assert was.keys() == now.keys() == {("odom", "lens"), ("map", "odom")}
    assert np.abs(now["odom", "lens"][:3, 3]).max() > 1e-4
    np.testing.assert_allclose(now["odom", "lens"], was["odom", "lens"], atol=1e-9)
    assert np.abs(now["map", "odom"] - was["map", "odom"]).max() > 1e-4
    level = rigid(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), np.zeros(3))
    np.testing.assert_allclose(now["map", "odom"] @ now["odom", "lens"], level, atol=1e-9)
