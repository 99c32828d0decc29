# SPDX-License-Identifier: Apache-2.0
"""Nav2's parameters name what the node publishes, and agree with its settings."""

import ast

import yaml
from support.paths import ROOT

from xsvggt_ros.config import NodeConfig, ObstacleConfig
from xsvggt_ros.messages.topics import OBSTACLES
from xsvggt_ros.obstacles import why_no_obstacles
from xsvggt_ros.settings import changed, settings

COSTMAP = yaml.safe_load((ROOT / "config" / "nav2_obstacles.yaml").read_text())
LAYER = COSTMAP["local_costmap"]["local_costmap"]["ros__parameters"]["voxel_layer"]
SOURCES = {name: LAYER[name] for name in LAYER["observation_sources"].split()}


def constant(name):
    """Of nav2.launch.py, without importing it: launch exists on ROS distributions only."""
    body = ast.parse((ROOT / "launch" / "nav2.launch.py").read_text()).body
    return next(ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign) and n.targets[0].id == name)


def test_sources_are_topics_of_the_node_of_their_type():
    published = {topic.replace("~", "/stream"): kind.split("/")[2] for topic, kind in OBSTACLES.items()}
    assert {source["topic"]: source["data_type"] for source in SOURCES.values()} == published
    assert len({source["sensor_frame"] for source in SOURCES.values()}) == 1


def test_one_source_marks_and_the_other_clears():
    assert {name: (s["marking"], s["clearing"]) for name, s in SOURCES.items()} == {
        "obstacles": (True, False), "clearing": (False, True),
    }  # fmt: skip


def test_ranges_heights_and_sizes_are_those_of_the_node():
    node, costmap = ObstacleConfig(), COSTMAP["local_costmap"]["local_costmap"]["ros__parameters"]
    assert SOURCES["obstacles"]["obstacle_max_range"] == SOURCES["clearing"]["raytrace_max_range"] == node.max_range
    assert (costmap["update_frequency"], costmap["resolution"]) == (node.rate, node.voxel)
    assert costmap["width"] >= 2 * node.max_range and costmap["height"] >= 2 * node.max_range
    top = LAYER["origin_z"] + LAYER["z_voxels"] * LAYER["z_resolution"]
    assert LAYER["z_voxels"] <= 16  # all that Nav2 has
    assert top >= node.max_height and LAYER["origin_z"] <= node.min_height
    for heights in (LAYER, SOURCES["obstacles"]):
        assert heights["min_obstacle_height"] <= node.min_height < node.max_height <= heights["max_obstacle_height"]
    assert SOURCES["clearing"]["min_obstacle_height"] < -1  # ends on the floor count, wherever they are taken to be


def test_numbers_have_the_type_that_nav2_declares():
    for source in SOURCES.values():
        assert {type(v) for name, v in source.items() if "range" in name or "height" in name} == {float}
    assert {type(LAYER[name]) for name in ("origin_z", "z_resolution", "min_obstacle_height")} == {float}
    assert type(constant("MANAGED")["bond_timeout"]) is float and type(constant("MANAGED")["service_timeout"]) is float


def test_a_node_that_the_manager_starts_does_not_start_itself_nor_come_again():
    assert constant("MANAGERS") == {"autostart": "false", "respawn": "false"}
    launch_file = (ROOT / "launch" / "nav2.launch.py").read_text()
    assert "IncludeLaunchDescription(str(STREAM), launch_arguments=MANAGERS.items())" in launch_file


def test_the_launch_file_asks_for_all_that_obstacles_need():
    defaults = {name: default for name, (default, _) in constant("DEFAULTS").items()}
    known = {setting.name: setting for setting in settings(NodeConfig)}
    ours = {name: known[name].parse(text) for name, text in defaults.items() if name in known}
    assert set(defaults) - set(ours) == {"namespace", "odometry_topic"}
    assert why_no_obstacles(changed(NodeConfig(), ours)) == ""
