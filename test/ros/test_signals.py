# SPDX-License-Identifier: Apache-2.0
"""However and whenever the node is asked to end, it does, with exit code 0; and with 1 where it cannot work."""

import json
import random
import signal
import struct

import pytest

pytest.importorskip("rclpy")

from sensor_msgs.msg import Image

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MOMENTS = ("import", "load", "step", "publish")
TENSORS = 200_000  # take seconds to load


@pytest.fixture(scope="module")
def slow_weights(tmp_path_factory):
    """A weights file of very many empty tensors, which fits no model."""
    path = tmp_path_factory.mktemp("weights") / "slow.safetensors"
    header = json.dumps({str(i): dict(dtype="F32", shape=[0], data_offsets=[0, 0]) for i in range(TENSORS)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


@pytest.mark.parametrize("moment", MOMENTS)
def test_signal_ends_the_node(start_node, client, slow_weights, endurance, figures, moment):
    chance = random.Random(moment)
    rounds = 25 if endurance else 1
    for turn in range(rounds):
        names = [f"{moment}_{number.name.lower()}_{turn}" for number in SIGNALS]
        settings = dict(weights=slow_weights) if moment == "load" else {}
        nodes = [start_node(name, device="cpu", queue="all", queue_size=1000, **settings) for name in names]
        depths = {name: client.listen(Image, f"/{name}/depth/image") for name in names}

        def reached(name, node, depths=depths):
            if moment == "import":
                return node.catches_signals()
            if moment == "load":
                return node.maps(slow_weights)
            client.images.publish(client.image())
            if moment == "step":
                return "cache:" in node.output()  # said after the first step, while many images wait
            return depths[name]  # the first of a frame's messages

        for number, name, node in zip(SIGNALS, names, nodes, strict=True):
            client.until(lambda name=name, node=node: reached(name, node))
            client.spin(chance.uniform(0, 0.3))
            assert node.running()
            node.send_signal(number)
        for node in nodes:
            assert node.exit_code() == 0, node.output()
            assert "Traceback" not in node.output()
            assert "does not fit" not in node.output()  # slow weights, had they been loaded
    figures(f"SIGINT and SIGTERM during {moment}: exit code 0 and no traceback", f"{2 * rounds} of {2 * rounds}")


def test_what_cannot_work_ends_the_node_with_the_reason(start_node):
    reasons = {
        start_node("weights", device="cpu", weights="/nowhere/model.pt"): "/nowhere/model.pt",
        start_node("policy", cache__policy="best"): "cache.policy must be one of coreset",
    }
    for node, reason in reasons.items():
        assert node.exit_code() == 1
        assert reason in node.output()
        assert "Traceback" not in node.output()
