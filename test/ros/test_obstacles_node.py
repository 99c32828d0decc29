# SPDX-License-Identifier: Apache-2.0
"""Obstacles for a costmap over DDS: once TF has the camera, in metres, while someone listens, at their own rate."""

import pytest

pytest.importorskip("rclpy")

from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from support.messages import rclpy_class
from support.mounted import T_BASE_CAM
from tf2_msgs.msg import TFMessage

from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.encode import Encoder

METRIC = dict(base_frame="base_link", scale__source="fixed", scale__factor=2.0)


@pytest.fixture(scope="module")
def bare(start_node):
    """A node without a robot, beside the one that is tested."""
    return start_node("stream", {"__ns": "/bare"}, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def user(bare, start_node, start_client):
    """A client that hears what the node has taken in, and nothing that would need depth."""
    client = start_client(topics=("~/status",))
    start_node(device="cpu", dtype="float32", queue="all", queue_size=300, dense="subscribed", **METRIC)
    client.until(lambda: client.images.get_subscription_count())
    client.until(lambda: client.images.publish(client.image()) or client.received["~/status"])
    return client


def mount(user):
    """Publishes where the camera is on the robot, for all who come."""
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    encode = Encoder(rclpy_class)
    transform = encode.transform(encode.header(0, "base_link"), "lens", encode.pose(T_BASE_CAM))
    user.transforms = user.node.create_publisher(TFMessage, "/tf_static", latched)
    user.transforms.publish(encode.transforms([transform]))


def test_obstacles_come_once_the_camera_is_in_tf_at_their_rate_and_with_their_subscribers(user):
    clouds = user.listen(PointCloud2, "stream/obstacles")
    clearing = user.listen(PointCloud2, "stream/obstacles/clearing")
    user.until(lambda: user.exchange(user.image()).dense)
    assert not clouds and user.received["~/status"][-1].frames_unplaced
    mount(user)
    user.until(lambda: user.exchange(user.image()) and clouds and clearing)
    assert {msg.header.frame_id for msg in (*clouds, *clearing)} == {"base_link"}
    clouds.clear()
    sent = [user.image(seed) for seed in range(30)]  # at 30 Hz: one second
    user.play(sent)
    user.until(lambda: user.stamp in user.stamps("~/status"))
    user.until(lambda: len(clouds) >= 5)
    user.spin(0.3)
    assert 5 <= len(clouds) <= 6
    assert {stamp_ns(msg.header) for msg in clouds} <= {stamp_ns(msg.header) for msg in sent}
    assert user.set_parameters(obstacles__rate=100.0, obstacles__min_height=50.0, obstacles__max_height=51.0).successful
    user.exchange(user.image())
    user.until(lambda: stamp_ns(clouds[-1].header) == user.stamp)
    assert (clouds[-1].width, len(clouds[-1].data)) == (0, 0)


def test_depth_in_millimetres_and_as_png_while_the_node_runs(user):
    depths = user.listen(Image, "stream/depth/image")
    pictures = user.listen(CompressedImage, "stream/depth/image/compressedDepth")
    user.until(lambda: user.exchange(user.image()) and depths)
    assert depths[-1].encoding == "32FC1" and not pictures
    assert user.set_parameters(depth_encoding="16UC1", compressed_depth=True).successful
    user.until(lambda: user.exchange(user.image()) and pictures)
    user.until(lambda: depths[-1].encoding == "16UC1")
    assert pictures[-1].format == "16UC1; compressedDepth png" and pictures[-1].header.frame_id == "lens"


def test_a_node_that_cannot_make_them_tells_who_subscribes_why(user, bare):
    user.listen(PointCloud2, "/bare/stream/obstacles")
    user.listen(CompressedImage, "/bare/stream/depth/image/compressedDepth")
    user.until(lambda: "~/obstacles is not published: set base_frame, now empty" in bare.output())
    user.until(lambda: "compressedDepth is not published: set compressed_depth to true" in bare.output())
