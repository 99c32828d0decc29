# SPDX-License-Identifier: Apache-2.0
"""What the demo decides before any ROS; test/ros/test_demo_client.py runs it."""

import sys

import numpy as np

from xsvggt_ros.cli import main
from xsvggt_ros.config import CacheConfig, NodeConfig, StreamConfig
from xsvggt_ros.demo.command import LATER, START, _memory
from xsvggt_ros.settings import changed
from xsvggt_ros.stream import GeometryStream


def test_without_ros_the_remedy_is_named(monkeypatch, capsys, tmp_path):
    for module in ("xsvggt_ros.demo.client", "xsvggt_ros.ros.client"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "rclpy", None)
    assert main(["demo", "--output", str(tmp_path / "new")]) == 2
    assert "needs ROS 2, and rclpy is missing: `make .venv`" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_cache_gets_room_for_whole_frames():
    image = np.zeros((120, 160, 3), np.uint8)
    stream = GeometryStream(StreamConfig(cache=CacheConfig(policy="full")))
    tokens = stream.step(image).status.tokens
    start, later = (changed(NodeConfig(), _memory(NodeConfig(), image, **memory)) for memory in (START, LATER))
    assert start.stream.cache.budget_tokens == START["frames"] * tokens
    assert later.stream.cache.budget_tokens == LATER["frames"] * tokens
    assert (start.stream.cache.key_bits, later.stream.cache.value_bits) == (16, 4)
