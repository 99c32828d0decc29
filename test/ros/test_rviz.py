# SPDX-License-Identifier: Apache-2.0
"""What RViz subscribes to as it opens is what the node publishes: the topic, its type, and a quality that fits."""

import pytest
import yaml
from support.paths import ROOT

pytest.importorskip("rclpy")

from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)

TYPES = {  # class of a display -> message that it takes
    "rviz_default_plugins/Image": "sensor_msgs/msg/Image",
    "rviz_default_plugins/Odometry": "nav_msgs/msg/Odometry",
    "rviz_default_plugins/Path": "nav_msgs/msg/Path",
    "rviz_default_plugins/PointCloud2": "sensor_msgs/msg/PointCloud2",
    "rviz_default_plugins/PoseArray": "geometry_msgs/msg/PoseArray",
}
DISPLAYS = {
    display["Name"]: display
    for display in yaml.safe_load((ROOT / "config" / "stream.rviz").read_text())["Visualization Manager"]["Displays"]
    if "Topic" in display
}


@pytest.fixture(scope="module")
def node(start_node):
    return start_node(autostart="false")


def wanted(topic):
    """The quality of a subscription, by the words of RViz."""
    word = lambda name: topic[name].upper().replace(" ", "_")  # noqa: E731
    return QoSProfile(
        depth=topic["Depth"],
        history=HistoryPolicy[word("History Policy")],
        reliability=ReliabilityPolicy[word("Reliability Policy")],
        durability=DurabilityPolicy[word("Durability Policy")],
        liveliness=LivelinessPolicy.AUTOMATIC,
    )


@pytest.mark.parametrize("name", DISPLAYS)
def test_a_display_is_of_a_topic_of_the_node(node, client, name):
    topic = DISPLAYS[name]["Topic"]
    publishers = lambda: client.node.get_publishers_info_by_topic(topic["Value"])  # noqa: E731
    client.until(publishers)
    (publisher,) = publishers()
    assert publisher.topic_type == TYPES[DISPLAYS[name]["Class"]]
    compatibility, reason = qos_check_compatible(publisher.qos_profile, wanted(topic))
    assert compatibility == QoSCompatibility.OK, reason


def test_what_does_not_fit_is_told(node, client):
    """So that the test above can fail: who wants latched messages gets none of a publisher that does not latch."""
    topic = DISPLAYS["Path"]["Topic"] | {"Durability Policy": "Transient Local"}
    client.until(lambda: client.node.get_publishers_info_by_topic(topic["Value"]))
    (publisher,) = client.node.get_publishers_info_by_topic(topic["Value"])
    assert qos_check_compatible(publisher.qos_profile, wanted(topic))[0] == QoSCompatibility.ERROR
