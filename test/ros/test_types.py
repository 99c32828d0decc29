# SPDX-License-Identifier: Apache-2.0
import sys

import pytest

pytest.importorskip("rclpy")

from sensor_msgs.msg import Image

from xsvggt_ros.messages.topics import TOPICS
from xsvggt_ros.ros.types import message_class


def test_classes_are_found_by_their_type_names():
    assert message_class("sensor_msgs/msg/Image") is Image
    assert {name: message_class(name).__name__ for name in TOPICS.values()} == {
        n: n.split("/")[2] for n in TOPICS.values()
    }


@pytest.mark.parametrize("name", ["xsvggt_ros/msg/StreamStatus", "tf2_msgs/msg/TFMessage"])
def test_messages_that_were_never_generated_are_named_with_the_fix(monkeypatch, name):
    package = name.partition("/")[0]
    monkeypatch.setitem(sys.modules, f"{package}.msg", None)
    with pytest.raises(RuntimeError, match=rf"^the messages of {package} are missing: install xsvggt_ros once more"):
        message_class(name)
