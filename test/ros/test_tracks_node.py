# SPDX-License-Identifier: Apache-2.0
"""Points given to the node by topic and by click, in pixels of the camera's image, and where it says that they are."""

import numpy as np
import pytest

pytest.importorskip("rclpy")

from geometry_msgs.msg import Point, Point32, Polygon
from rclpy.qos import QoSProfile
from sensor_msgs.msg import PointCloud2

from xsvggt_ros import rooms
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.encode import TRACK

HEIGHT, WIDTH = 168, 224  # the network sees half of it
QUERIES = [(40.0, 60.0), (180.0, 100.0)]


@pytest.fixture(scope="module")
def user(start_node, client):
    """A client that also gives points and listens to where they are."""
    client.process = start_node(device="cpu", dtype="float32", queue="all", queue_size=300, track_groups=2)
    client.connect()
    client.polygons = client.node.create_publisher(Polygon, "stream/track_points", QoSProfile(depth=10))
    client.clicks = client.node.create_publisher(Point, "stream/track_click", QoSProfile(depth=10))
    client.clouds = client.listen(PointCloud2, "stream/tracks")
    client.until(lambda: client.polygons.get_subscription_count() and client.clicks.get_subscription_count())
    client.until(lambda: client.node.count_publishers("stream/tracks"))
    return client


def view(user):
    """The same view of a room, with the next stamp."""
    frame = next(iter(rooms.stream(3, 1, WIDTH, HEIGHT, "robot", 4.0)))
    msg = user.image(height=HEIGHT, width=WIDTH)
    msg.data = frame.rgb[..., ::-1].tobytes()
    return msg


def tracks(user):
    """Of an image that is sent now: structured array [N] of TRACK."""
    msg = view(user)
    user.exchange(msg)
    user.until(lambda: user.clouds and stamp_ns(user.clouds[-1].header) == stamp_ns(msg.header))
    cloud = user.clouds[-1]
    assert cloud.width == len(cloud.data) // cloud.point_step and cloud.header.frame_id == "lens"
    return np.frombuffer(cloud.data, TRACK)


def test_points_by_topic_and_by_click_are_where_they_were_while_nothing_moves(user):
    assert user.reset().success
    assert len(tracks(user)) == 0
    user.polygons.publish(Polygon(points=[Point32(x=x, y=y) for x, y in QUERIES]))
    user.until(lambda: len(tracks(user)) == 2)
    user.clicks.publish(Point(x=100.0, y=90.0))
    user.until(lambda: len(tracks(user)) == 3)
    for _ in range(3):
        found = tracks(user)
        assert len(set(found["id"])) == 3 and found["visible"].all()
        np.testing.assert_allclose(np.stack([found["u"], found["v"]], -1), [*QUERIES, (100.0, 90.0)], atol=12)
        np.testing.assert_allclose(found["x"] / found["z"], (found["u"] - (WIDTH - 1) / 2) / 160, atol=0.1)
    assert user.reset().success
    assert len(tracks(user)) == 0  # points end with their world


def test_points_outside_the_image_are_refused_in_the_log_and_images_go_on(user):
    assert user.reset().success
    assert len(tracks(user)) == 0  # the first image: there must be one to give points of
    user.clicks.publish(Point(x=5000.0, y=0.0))
    user.until(lambda: len(tracks(user)) == 0 and "track_click ignored: points must lie in" in user.process.output())
    assert len(tracks(user)) == 0
