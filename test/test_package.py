# SPDX-License-Identifier: Apache-2.0
"""What holds the package's own files together: pip's and colcon's view of it."""

import ast
import os
import subprocess
import sys
from importlib import metadata
from xml.etree import ElementTree

import pytest
import yaml
from support.imports import imports, modules
from support.paths import ROOT
from support.without_ros import is_ros

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.topics import TOPICS

WITH_RCLPY = {"rcl_interfaces", "rosgraph_msgs"}  # depended on by rclpy itself
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()


def test_version_is_the_same_for_pip_and_colcon():
    assert PACKAGE.findtext("version") == metadata.version("xsvggt_ros")


def test_ros_packages_in_use_are_dependencies_of_package_xml():
    declared = {depend.text for depend in PACKAGE.iter() if depend.tag.endswith("depend")}
    imported = {name.split(".")[0] for path in modules().values() for name, _ in imports(path) if is_ros(name)}
    published = {kind.split("/")[0] for kind in TOPICS.values()} - {"xsvggt_ros"}
    assert (imported | published) - WITH_RCLPY - {"xsvggt_ros"} <= declared


@pytest.mark.parametrize("folder", ["xsvggt_ros", "scripts", "launch", "test"])
def test_every_source_file_names_its_licence(folder):
    sources = [path for path in (ROOT / folder).rglob("*") if path.suffix == ".py" or path.name == "stream_node"]
    unnamed = [path for path in sources if "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:200]]
    assert sources
    assert not unnamed


def test_rviz_shows_what_the_node_publishes_in_its_world_frame():
    manager = yaml.safe_load((ROOT / "config" / "stream.rviz").read_text())["Visualization Manager"]
    displays = [(display["Class"].split("/")[1], display.get("Topic", {})) for display in manager["Displays"]]
    shown = {topic["Value"]: kind for kind, topic in displays if topic}
    published = {topic.replace("~", "/stream"): kind.split("/")[2] for topic, kind in TOPICS.items()}
    assert manager["Global Options"]["Fixed Frame"] == NodeConfig().world_frame
    assert "TF" in dict(displays)
    assert set(shown.values()) == {"Path", "Odometry", "PointCloud2", "Image"}
    assert shown == {topic: published.get(topic) for topic in shown}
    # Best effort, a cloud above 512 KiB never arrives: Fast DDS cuts it into datagrams and loses some.
    assert {topic["Reliability Policy"] for _, topic in displays if topic} == {"Reliable"}


def test_launch_file_moves_every_topic_of_rviz_into_the_namespace():
    # Without importing it: launch exists on ROS distributions only.
    launch_file = ast.parse((ROOT / "launch" / "stream.launch.py").read_text())
    (displayed,) = (
        ast.literal_eval(node.value)
        for node in launch_file.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "DISPLAYED"
    )
    manager = yaml.safe_load((ROOT / "config" / "stream.rviz").read_text())["Visualization Manager"]
    shown = {display["Topic"]["Value"] for display in manager["Displays"] if "Topic" in display}
    assert shown == {f"/stream/{topic}" for topic in displayed}


def test_messages_are_generated_outside_the_source_tree():
    pytest.importorskip("rclpy")
    from xsvggt_ros.msg import StreamStatus

    definition = (ROOT / "msg" / "StreamStatus.msg").read_text().splitlines()
    fields = [line.split()[:2] for line in definition if line and not line.startswith("#")]
    msg_names = {"float": "float32", "boolean": "bool"}
    assert {name: kind for kind, name in fields} == {
        name: msg_names.get(kind, kind.replace("/msg", ""))
        for name, kind in StreamStatus.get_fields_and_field_types().items()
    }
    assert not (ROOT / "xsvggt_ros" / "msg").exists()


def test_type_support_of_the_messages_leaves_no_error_state_behind():
    # rcutils prints the error state of a failed type support look-up only when the next error overwrites it, and
    # creating a subscription always sets one.
    pytest.importorskip("rclpy")
    program = """
import rclpy
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage
from xsvggt_ros.msg import StreamStatus

rclpy.init()
node = rclpy.create_node("publishers")
publishers = [node.create_publisher(kind, kind.__name__, 1) for kind in (StreamStatus, TFMessage)]
subscription = node.create_subscription(Image, "image", print, 1)
"""
    environment = os.environ | {"ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert "rcutils" not in run.stderr
