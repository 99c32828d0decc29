# SPDX-License-Identifier: Apache-2.0
"""stream.launch.py with the real node, by launch_testing: an image is answered, and the end is exit code 0."""

import os
import sys
import tempfile
import unittest
from pathlib import Path

import pytest
from support.paths import ROOT

pytest.importorskip("rclpy")
pytest.importorskip("launch_ros", reason="needs a ROS distribution")
pytest.importorskip("launch_testing", reason="needs launch_testing of a ROS distribution")

import launch_testing
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch_testing.actions import ReadyToTest
from support.two_processes import Client

PREFIX = tempfile.TemporaryDirectory(prefix="xsvggt_ros_")  # until this Python ends
ARGUMENTS = {"device": "cpu", "world_frame": "map", "cache.key_bits": "8", "log_level": "warn", "enclave": "/robot"}


def _install(prefix):
    """What launch needs to find of an installed package, from this checkout and for this Python."""
    marker = prefix / "share" / "ament_index" / "resource_index" / "packages" / "xsvggt_ros"
    program = prefix / "lib" / "xsvggt_ros" / "stream_node"
    for path in (marker, program, prefix / "share" / "xsvggt_ros" / "config"):
        path.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    (prefix / "share" / "xsvggt_ros" / "config").symlink_to(ROOT / "config")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "scripts" / "stream_node"}" "$@"\n')
    program.chmod(0o755)
    os.environ["AMENT_PREFIX_PATH"] = os.pathsep.join(filter(None, [str(prefix), os.environ.get("AMENT_PREFIX_PATH")]))


@pytest.mark.launch_test
def generate_test_description():
    _install(Path(PREFIX.name))
    launch_file = str(ROOT / "launch" / "stream.launch.py")
    include = IncludeLaunchDescription(launch_file, launch_arguments=ARGUMENTS.items())
    return LaunchDescription([include, ReadyToTest()])


class TestWhileItRuns(unittest.TestCase):
    def test_an_image_is_answered_with_the_arguments_in_force(self):
        client = Client()
        self.addCleanup(client.close)
        client.connect()
        status = client.exchange(client.image())
        self.assertEqual(status.key_bits, 8)
        client.until(lambda: client.received["/tf"])
        client.until(lambda: ("stream", "/", "/robot") in client.node.get_node_names_and_namespaces_with_enclaves())
        (transform,) = client.received["/tf"][0].transforms
        self.assertEqual((transform.header.frame_id, transform.child_frame_id), ("map", "lens"))


@launch_testing.post_shutdown_test()
class TestAfterTheEnd(unittest.TestCase):
    def test_the_node_ended_with_exit_code_0(self, proc_info):
        launch_testing.asserts.assertExitCodes(proc_info)
        self.assertEqual(len(proc_info.process_names()), 1)
