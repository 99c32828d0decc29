# SPDX-License-Identifier: Apache-2.0
"""Where the node gets its calibration from, and what it says when it gets none."""

from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo

from xsvggt_ros.messages.topics import CAMERA_INFO_TYPE
from xsvggt_ros.ros.calibration import PATIENCE, CalibrationWatch
from xsvggt_ros.status import NO_CAMERA_INFO

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def info(f: float, width: int = 112, height: int = 84) -> CameraInfo:
    k = [float(f), 0.0, width / 2, 0.0, float(f), height / 2, 0.0, 0.0, 1.0]
    return CameraInfo(width=width, height=height, k=k)


class Graph:
    """As much of a node as the watch asks."""

    def __init__(self, **topics):
        self.topics, self.said = topics, []
        self.publishers = [SimpleNamespace(topic_name="/stream/depth/camera_info")]

    def get_logger(self):
        return SimpleNamespace(warning=self.said.append)

    def get_topic_names_and_types(self):
        return [(f"/{name}/camera_info", [kind]) for name, kind in self.topics.items()]

    def count_publishers(self, topic):
        return int(topic != "/camera_info")


def test_a_calibration_that_stays_away_is_said_once_with_the_topics_there_are():
    graph = Graph(left=CAMERA_INFO_TYPE, right=CAMERA_INFO_TYPE, odd="std_msgs/msg/String")
    graph.topics["stream/depth"] = CAMERA_INFO_TYPE
    watch = CalibrationWatch(graph)
    assert [watch.look(NO_CAMERA_INFO, "/camera_info") for _ in range(PATIENCE)] == [""] * PATIENCE
    assert not graph.said
    where = {watch.look(NO_CAMERA_INFO, "/camera_info") for _ in range(3 * PATIENCE)}
    assert graph.said == [f"{NO_CAMERA_INFO}; {where.pop()}"] and not where
    for words in (
        "camera_info (after remapping: /camera_info)",
        "/left/camera_info (sensor_msgs/msg/CameraInfo), /right/camera_info (sensor_msgs/msg/CameraInfo); ",
        "camera_info_topic:=TOPIC (launch) or `--ros-args -r camera_info:=TOPIC`",
    ):
        assert words in graph.said[0]
    assert "odd" not in graph.said[0] and "/stream/depth" not in graph.said[0]


def test_a_calibration_that_comes_late_is_not_missed_and_another_reason_is_another():
    graph = Graph(left=CAMERA_INFO_TYPE)
    watch = CalibrationWatch(graph)
    for reason in [NO_CAMERA_INFO] * PATIENCE + [""] * 9:
        assert watch.look(reason, "/left/camera_info") == ""
    assert not graph.said
    for _ in range(2 * PATIENCE):
        watch.look("camera_info ignored: it is of another size", "/left/camera_info")
    assert len(graph.said) == 1 and graph.said[0].endswith("there are no other CameraInfo topics")


@pytest.fixture(scope="module")
def late(start_node, start_client):
    """A client whose camera_info was published once, before the node was there; images of any durability are taken."""
    client = start_client("/late")
    client.node.destroy_publisher(client.camera_infos)
    client.camera_infos = client.node.create_publisher(CameraInfo, "camera_info", LATCHED)
    client.camera_infos.publish(info(150))
    override = {"qos_overrides./late/camera_info.subscription.depth": 7}
    override |= {"qos_overrides./late/image.subscription.durability": "transient_local"}
    override |= {"qos_overrides./late/stream/status.publisher.durability": "transient_local"}
    client.node.destroy_publisher(client.images)
    client.images = client.node.create_publisher(client.image().__class__, "image", LATCHED)
    client.log = start_node("stream", {"__ns": "/late"}, device="cpu", **override)
    client.until(lambda: client.images.publish(client.image()) or client.received["~/status"])
    return client


def focal(client) -> float:
    """Of the answer to the next image."""
    client.received["~/depth/camera_info"].clear()
    client.images.publish(client.image())
    client.until(lambda: client.received["~/depth/camera_info"])
    return client.received["~/depth/camera_info"][-1].k[0]


def test_a_camera_info_that_was_latched_before_the_node_came_is_used(late):
    late.until(lambda: focal(late) == pytest.approx(150))
    assert late.exchange(late.image()).calibration == ""


def test_beside_it_those_that_are_not_latched_are_used_too(late):
    for qos, value in ((QoSProfile(depth=5), 160), (qos_profile_sensor_data, 170)):
        publisher = late.node.create_publisher(CameraInfo, "camera_info", qos)
        late.until(lambda publisher=publisher, value=value: publisher.publish(info(value)) or focal(late) == value)
        late.node.destroy_publisher(publisher)
    assert "incompatible" not in late.log.output()


def test_durability_can_be_overridden_as_the_other_policies_can(late):
    (images,) = (p.qos_profile for p in late.node.get_subscriptions_info_by_topic("/late/image"))
    (status,) = (p.qos_profile for p in late.node.get_publishers_info_by_topic("/late/stream/status"))
    assert images.durability == status.durability == DurabilityPolicy.TRANSIENT_LOCAL


def test_calibrations_that_are_not_in_use_show_in_log_status_and_diagnostics(start_node, start_client):
    client = start_client("/bare")
    client.node.destroy_publisher(client.camera_infos)
    client.camera_infos = client.node.create_publisher(CameraInfo, "other/camera_info", QoSProfile(depth=5))
    diagnostics = client.listen(DiagnosticArray, "/diagnostics")
    names = {"__ns": "/bare", "camera_info": "mine/camera_info"}
    node = start_node("stream", names, device="cpu")
    client.until(lambda: client.images.publish(client.image()) or client.received["~/status"])

    def verdict() -> DiagnosticStatus:
        client.images.publish(client.image())
        diagnostics.clear()
        client.until(lambda: any(array.status[0].name == "/bare/stream" for array in diagnostics))
        return next(array.status[0] for array in diagnostics if array.status[0].name == "/bare/stream")

    client.until(lambda: "/bare/other/camera_info" in verdict().message)
    said = verdict()
    assert said.level == DiagnosticStatus.OK and said.message.startswith(NO_CAMERA_INFO)
    assert client.exchange(client.image()).calibration == NO_CAMERA_INFO
    (line,) = (line for line in node.output().splitlines() if NO_CAMERA_INFO in line)
    assert "camera_info (after remapping: /bare/mine/camera_info)" in line and "/bare/other/camera_info" in line

    mine = client.node.create_publisher(CameraInfo, "mine/camera_info", QoSProfile(depth=5))
    client.until(lambda: mine.publish(info(150, 224, 168)) or verdict().level == DiagnosticStatus.WARN)
    reason = "camera_info is for 224 x 168 pixels, the image has 112 x 84"
    assert reason in verdict().message
    assert reason in client.exchange(client.image()).calibration
    client.until(lambda: mine.publish(info(150)) or verdict().message == "every image is used")
    assert "camera_info ignored: " + reason in node.output()
