# SPDX-License-Identifier: Apache-2.0
"""Two nodes in namespaces, as docs/recipes.md starts them for two cameras: each is on its own."""

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Odometry
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_srvs.srv import SetBool, Trigger
from tf2_msgs.msg import TFMessage
from xsvggt_ros.msg import StreamStatus

from xsvggt_ros.messages.decode import stamp_ns

pytestmark = pytest.mark.slow

CAMERAS = ("front", "rear")
# Of the whole robot, and by convention so: they say in themselves which node or frame they are about.
SHARED = {"/tf", "/tf_static", "/diagnostics", "/rosout", "/parameter_events", "/clock"}
# What is looked at of a node's outputs.
OUTPUTS = {"status": StreamStatus, "odometry": Odometry, "depth/image": Image}


class Camera:
    """What a robot has for one camera: its images, and what its node gives out."""

    def __init__(self, name, client):
        self.name, self.client = name, client
        node, qos = client.node, QoSProfile(depth=200)
        self.images = node.create_publisher(Image, f"/{name}/image", qos)
        self.received = {topic: [] for topic in OUTPUTS}
        for topic, kind in OUTPUTS.items():
            node.create_subscription(kind, f"/{name}/stream/{topic}", self.received[topic].append, qos)
        self._reset = node.create_client(Trigger, f"/{name}/stream/reset")
        self._enable = node.create_client(SetBool, f"/{name}/stream/enable")
        self._parameters = AsyncParameterClient(node, f"/{name}/stream")

    def send(self):
        """Publishes the next image; returns its stamp."""
        msg = self.client.image()
        msg.header.frame_id = f"{self.name}_optical"
        self.images.publish(msg)
        return stamp_ns(msg.header)

    def stamps(self, topic="status"):
        return [stamp_ns(msg.header) for msg in self.received[topic]]

    def settle(self, stamp):
        """Waits until every output of the image of that stamp is there."""
        self.client.until(lambda: all(stamp in self.stamps(topic) for topic in OUTPUTS))

    def exchange(self):
        """The status that answers an image."""
        self.settle(self.send())
        return self.received["status"][-1]

    def connect(self):
        """Sends images until each output has come once."""
        self.client.until(self.images.get_subscription_count)
        self.client.until(lambda: self.send() and all(self.received.values()))
        self.exchange()

    def reset(self):
        return self.client.response(self._reset.call_async(Trigger.Request()))

    def enable(self, value):
        return self.client.response(self._enable.call_async(SetBool.Request(data=value)))

    def set_key_bits(self, bits):
        request = self._parameters.set_parameters_atomically([Parameter("cache.key_bits", value=bits)])
        return self.client.response(request).result


@pytest.fixture(scope="module")
def transforms(client):
    """(parent, child) of all that was ever sent to /tf."""
    links = set()

    def on_tf(msg):
        links.update((t.header.frame_id, t.child_frame_id) for t in msg.transforms)

    client.node.create_subscription(TFMessage, "/tf", on_tf, QoSProfile(depth=200))
    return links


@pytest.fixture(scope="module")
def cameras(start_node, client, transforms):
    """One node for each, all answering; each test must leave them so."""
    # Long queues: images are sent until the slower one of the two nodes has answered.
    settings = dict(device="cpu", queue="all", queue_size=1000)
    for name in CAMERAS:
        start_node("stream", {"__ns": f"/{name}"}, world_frame=f"{name}_odom", **settings)
    cameras = [Camera(name, client) for name in CAMERAS]
    for camera in cameras:
        camera.connect()
    return cameras


def test_each_answers_its_own_images_in_its_own_frames(cameras, client, transforms):
    before = [camera.exchange().frame for camera in cameras]
    for camera in cameras:
        for messages in camera.received.values():
            messages.clear()
    sent = {camera.name: [] for camera in cameras}
    for turn in (0, 1, 1, 0, 1, 1):  # twice as many from the rear
        sent[cameras[turn].name].append(cameras[turn].send())
    for camera, frame in zip(cameras, before, strict=True):
        own = sent[camera.name]
        camera.settle(own[-1])
        assert all(camera.stamps(topic) == own for topic in OUTPUTS)
        frames = [status.frame for status in camera.received["status"]]
        assert frames == list(range(frame + 1, frame + 1 + len(own)))
        lens, world = f"{camera.name}_optical", f"{camera.name}_odom"
        assert {(o.header.frame_id, o.child_frame_id) for o in camera.received["odometry"]} == {(world, lens)}
        assert {depth.header.frame_id for depth in camera.received["depth/image"]} == {lens}
    client.until(lambda: len(transforms) == len(CAMERAS))
    assert transforms == {("front_odom", "front_optical"), ("rear_odom", "rear_optical")}


def test_services_and_parameters_are_of_one_camera(cameras):
    front, rear = cameras
    before = rear.exchange()
    assert front.reset().success
    assert front.set_key_bits(2).successful
    changed = front.exchange()
    assert (changed.frame, changed.key_bits) == (0, 2)
    after = rear.exchange()
    assert (after.frame, after.resets, after.key_bits) == (before.frame + 1, before.resets, before.key_bits)
    assert rear.enable(False).success
    unseen = rear.send()
    assert front.exchange().frame == 1
    assert rear.enable(True).success
    assert rear.exchange().frame == after.frame + 1
    assert unseen not in rear.stamps()


def test_no_name_but_those_of_the_whole_robot_is_used_by_both(cameras, client):
    node, used = client.node, {}
    for camera in CAMERAS:
        looks = (
            node.get_publisher_names_and_types_by_node,
            node.get_subscriber_names_and_types_by_node,
            node.get_service_names_and_types_by_node,
        )
        used[camera] = {name for look in looks for name, _ in look("stream", f"/{camera}")}
        assert {name for name in used[camera] if not name.startswith(f"/{camera}/")} <= SHARED
    assert {"/front/image", "/front/stream/points", "/front/stream/reset"} <= used["front"]
    assert used["front"] & used["rear"] <= SHARED


def test_diagnostics_say_which_camera_they_are_about(cameras, client):
    names = []
    client.node.create_subscription(
        DiagnosticArray, "/diagnostics", lambda m: names.extend(s.name for s in m.status), 10
    )
    client.until(lambda: len(set(names)) > 1 and len(names) > 4)
    assert set(names) == {f"/{camera}/stream" for camera in CAMERAS}
