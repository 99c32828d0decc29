# SPDX-License-Identifier: Apache-2.0
"""Runs the launch file with stand-ins for the programs, which record how they were started."""

import json
import os
import re
import sys
from pathlib import Path
from shutil import copytree

import pytest

pytest.importorskip("launch_ros", reason="needs a ROS distribution")  # "launch" alone could be our own folder

import yaml
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription

from xsvggt_ros.config import NodeConfig, values

ROOT = Path(__file__).resolve().parents[1]
LAUNCH_FILE = ROOT / "launch" / "stream.launch.py"

STAND_IN = f"""#!{sys.executable}
import json, os, sys, time
from pathlib import Path

records, name = Path(os.environ["RECORDS"]), Path(sys.argv[0]).name
files = [Path(file).read_text() for flag, file in zip(sys.argv, sys.argv[1:]) if flag == "--params-file"]
(records / "part").with_suffix("." + name).write_text(json.dumps(dict(arguments=sys.argv[1:], files=files)))
os.rename((records / "part").with_suffix("." + name), records / name)
while name == "stream_node" and not all((records / other).exists() for other in os.environ["AWAITED"].split()):
    time.sleep(0.01)  # the node's end ends the launch, which must not come before the others have started
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Launches with the given arguments; returns {program: record}."""
    prefix, records = tmp_path / "prefix", tmp_path / "records"
    records.mkdir()
    for package, program in (("xsvggt_ros", "stream_node"), ("rviz2", "rviz2")):
        _write(prefix / "share" / "ament_index" / "resource_index" / "packages" / package, "")
        _write(prefix / "lib" / package / program, STAND_IN)
        (prefix / "share" / package).mkdir()
    _write(prefix / "bin" / "ros2", STAND_IN)
    copytree(ROOT / "config", prefix / "share" / "xsvggt_ros" / "config")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(prefix))
    monkeypatch.setenv("PATH", f"{prefix / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RECORDS", str(records))
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))

    def launch(*awaited, **arguments):
        monkeypatch.setenv("AWAITED", " ".join(awaited))
        service = LaunchService(noninteractive=True)
        include = IncludeLaunchDescription(str(LAUNCH_FILE), launch_arguments=arguments.items())
        service.include_launch_description(LaunchDescription([include]))
        assert service.run() == 0
        return {path.name: json.loads(path.read_text()) for path in records.iterdir()}

    return launch


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def parameters(record):
    """The node's parameters in the order ROS applies them: a later file wins."""
    merged = {}
    for text in record["files"]:
        (node,) = yaml.safe_load(text).values()
        merged |= node["ros__parameters"]
    return merged


def remappings(record):
    return dict(argument.split(":=") for argument in record["arguments"] if re.match(r"[\w/]+:=", argument))


def test_without_arguments_only_the_node_starts_with_every_parameter_at_its_default(run):
    records = run()
    assert set(records) == {"stream_node"}
    assert parameters(records["stream_node"]) == values(NodeConfig()) | {"use_sim_time": False}


def test_arguments_override_the_parameter_file_only_when_given(run, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("/**: {ros__parameters: {world_frame: map, model: streamvggt}}")
    record = run(params_file=str(file), weights="a.pt", model="demo")["stream_node"]
    expected = {"world_frame": "map", "model": "demo", "weights": "a.pt", "use_sim_time": False}
    assert parameters(record) == expected


def test_topics_and_namespace_reach_the_node(run):
    record = run(image_topic="/cam/color", camera_info_topic="/cam/info", namespace="front")["stream_node"]
    assert remappings(record) == {
        "image": "/cam/color",
        "image/compressed": "/cam/color/compressed",
        "camera_info": "/cam/info",
        "__node": "stream",
        "__ns": "/front",
    }


def test_a_bag_is_played_and_is_the_clock(run):
    records = run("ros2", bag="drive", bag_rate="0.5")
    assert records["ros2"]["arguments"] == ["bag", "play", "drive", "--rate", "0.5", "--clock"]
    assert parameters(records["stream_node"])["use_sim_time"] is True


def test_use_sim_time_can_be_set_against_the_bag(run):
    assert parameters(run("ros2", bag="drive", use_sim_time="false")["stream_node"])["use_sim_time"] is False


def test_rviz_shows_the_topics_of_the_namespace(run):
    record = run("rviz2", rviz="true", namespace="front")["rviz2"]
    config = Path(record["arguments"][record["arguments"].index("-d") + 1]).read_text()
    shown = set(re.findall(r"Value: (/stream/\S+)", config))
    assert {source: target for source, target in remappings(record).items() if source.startswith("/")} == {
        topic: f"/front{topic}" for topic in shown
    }
