# SPDX-License-Identifier: Apache-2.0
"""However and whenever the node is asked to end, it does, with exit code 0; and with 1 where it cannot work."""

import signal

import pytest

pytest.importorskip("rclpy")

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("moment", ["import", "load", "step"])
def test_signal_ends_the_node(start_node, client, moment):
    names = [f"{moment}_{number.name.lower()}" for number in SIGNALS]
    nodes = [start_node(name, device="cpu", queue="all", queue_size=1000) for name in names]

    def reached(name, node):
        if moment == "import":
            return node.catches_signals()
        if moment == "load":
            return name in client.node.get_node_names()
        client.images.publish(client.image())
        return "cache:" in node.output()  # said after the first step, while many images wait

    for number, name, node in zip(SIGNALS, names, nodes, strict=True):
        client.until(lambda name=name, node=node: reached(name, node))
        node.send_signal(number)
    for node in nodes:
        assert node.exit_code() == 0, node.output()
        assert "Traceback" not in node.output()


def test_idle_node_says_what_images_there_are_and_ends(start_node, client):
    node = start_node("idle", {"image": "camera/missing"}, device="cpu")
    client.until(lambda: "no image on" in node.output())
    assert "no image on /camera/missing for 5 s; it has 0 publishers" in node.output()
    assert "/image (sensor_msgs/msg/Image)" in node.output()
    assert "/depth/image" not in node.output()
    node.send_signal(signal.SIGINT)
    assert node.exit_code() == 0, node.output()


def test_what_cannot_work_ends_the_node_with_the_reason(start_node):
    reasons = {
        start_node("weights", device="cpu", weights="/nowhere/model.pt"): "/nowhere/model.pt",
        start_node("policy", cache__policy="best"): "cache.policy must be one of xstream",
    }
    for node, reason in reasons.items():
        assert node.exit_code() == 1
        assert reason in node.output()
        assert "Traceback" not in node.output()
