# SPDX-License-Identifier: Apache-2.0
"""Runs the launch file with stand-ins for the programs, which record how they were started."""

import json
import logging
import os
import sys
from pathlib import Path
from shutil import copytree

import pytest
from support.paths import ROOT

pytest.importorskip("launch_ros", reason="needs a ROS distribution")  # "launch" alone could be our own folder

import rclpy
import yaml
from launch import LaunchDescription, LaunchService
from launch.actions import ExecuteProcess, GroupAction, IncludeLaunchDescription, SetLaunchConfiguration, Shutdown
from launch_ros.actions import PushRosNamespace

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.topics import REFERENCES
from xsvggt_ros.settings import settings, values

LAUNCH_FILE = ROOT / "launch" / "stream.launch.py"
NAV2_LAUNCH_FILE = ROOT / "launch" / "nav2.launch.py"
REFERENCE_TOPICS = [topic for topic in REFERENCES if not topic.startswith("/")]
INPUTS = ("image", "image/compressed", "camera_info", *REFERENCE_TOPICS)

# Writes records/[NAMESPACE.]PROGRAM. The node then ends once $AWAITED are there, the others when they are told to.
STAND_IN = f"""#!{sys.executable}
import json, os, signal, sys, time
from pathlib import Path

records, program = Path(os.environ["RECORDS"]), Path(sys.argv[0]).name
signal.signal(signal.SIGINT, lambda *_: sys.exit((records / (program + ".interrupted")).touch()))
namespace = [a.removeprefix("__ns:=/").replace("/", ".") for a in sys.argv if a.startswith("__ns:=/")]
name = ".".join([n for n in namespace if n] + [program])
files = [Path(file).read_text() for flag, file in zip(sys.argv, sys.argv[1:]) if flag == "--params-file"]
part = records.with_name(name + ".part")
part.write_text(json.dumps(dict(arguments=sys.argv[1:], files=files)))
part.rename(records / name)
end = time.monotonic() + 30  # if nobody is there to interrupt, or what is awaited does not come
while time.monotonic() < end:
    if program == "stream_node" and all((records / other).exists() for other in os.environ["AWAITED"].split()):
        break
    time.sleep(0.01)
"""
# A program of a larger launch file; says that a record came while it was running.
BYSTANDER = """
import os, sys, time
from pathlib import Path

end = time.monotonic() + 30
while time.monotonic() < end:
    if Path(os.environ["RECORDS"], sys.argv[1]).exists():
        Path(os.environ["RECORDS"], "bystander").touch()
        break
    time.sleep(0.01)
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Launches actions until the records awaited are there; returns {program: record}."""
    prefix, records = tmp_path / "prefix", tmp_path / "records"
    records.mkdir()
    programs = {"xsvggt_ros": "stream_node", "rviz2": "rviz2", "nav2_lifecycle_manager": "lifecycle_manager"}
    for package, program in programs.items():
        _write(prefix / "share" / "ament_index" / "resource_index" / "packages" / package, "")
        _write(prefix / "lib" / package / program, STAND_IN)
        (prefix / "share" / package).mkdir()
    _write(prefix / "bin" / "ros2", STAND_IN)
    for folder in ("config", "launch"):
        copytree(ROOT / folder, prefix / "share" / "xsvggt_ros" / folder)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(prefix))
    monkeypatch.setenv("PATH", f"{prefix / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("RECORDS", str(records))
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "log"))

    def launch(*actions, awaited=(), argv=(), code=0):
        monkeypatch.setenv("AWAITED", " ".join(awaited))
        service = LaunchService(argv=argv, noninteractive=True)
        service.include_launch_description(LaunchDescription(actions))
        assert service.run() == code
        return {path.name: json.loads(path.read_text() or "{}") for path in records.iterdir()}

    return launch


@pytest.fixture
def said(monkeypatch):
    """Warnings and errors of launch, whose loggers keep them from pytest."""
    messages = []
    for level in ("warning", "error"):
        monkeypatch.setattr(logging.Logger, level, lambda logger, message, *_: messages.append(message))
    return messages


@pytest.fixture
def run(launch):
    """Launches our file with arguments until the records awaited are there; returns {program: record}."""
    return lambda *awaited, **arguments: launch(stream(**arguments), awaited=awaited)


def stream(**arguments):
    return IncludeLaunchDescription(str(LAUNCH_FILE), launch_arguments=arguments.items())


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


def resolved(record, *topics):
    """What rclpy makes of topic names in a node that is started like this one."""
    rules = [argument for argument in record["arguments"] if ":=" in argument]
    context = rclpy.Context()
    rclpy.init(args=["--ros-args", *(word for rule in rules for word in ("-r", rule))], context=context)
    node = rclpy.create_node("unnamed", context=context)
    names = [node.resolve_topic_name(topic) for topic in topics]
    node.destroy_node()
    context.try_shutdown()
    return names


def shown(record):
    """(fixed frame, topics) of RViz as it was started."""
    options = dict(zip(record["arguments"], record["arguments"][1:], strict=False))
    manager = yaml.safe_load(Path(options["-d"]).read_text())["Visualization Manager"]
    topics = [display["Topic"]["Value"] for display in manager["Displays"] if "Topic" in display]
    return options.get("-f", manager["Global Options"]["Fixed Frame"]), set(resolved(record, *topics))


def test_without_arguments_only_the_node_starts_with_every_parameter_at_its_default(run):
    records = run()
    assert set(records) == {"stream_node"}
    assert parameters(records["stream_node"]) == values(NodeConfig())
    assert "--enclave" not in records["stream_node"]["arguments"]
    assert resolved(records["stream_node"], "~/status", *INPUTS) == ["/stream/status", *(f"/{i}" for i in INPUTS)]


def test_every_setting_is_an_argument_of_its_own_type(run):
    # Text that YAML would read as another type than the setting's, and the setting's value that it means.
    texts = {bool: ("False", False), int: ("3", 3), float: ("3", 3.0), str: ("12", "12")}
    arguments = {setting.name: texts[setting.type] for setting in settings(NodeConfig)}
    found = parameters(run(**{name: text for name, (text, _) in arguments.items()})["stream_node"])
    expected = {name: value for name, (_, value) in arguments.items()}
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {s.name: s.type for s in settings(NodeConfig)}


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("cache.budget_tokens", "2.5", "type int, got '2.5'"),
        ("target_latency_ms", "fast", "type float, got 'fast'"),
        ("publish_tf", "maybe", "type bool, got 'maybe'; it is true or false"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name_and_nothing_starts(launch, said, name, text, wanted):
    assert not launch(stream(**{name: text}), code=1)
    (error,) = said
    assert error.endswith(f": {name} must be of {wanted}")


def test_whole_numbers_are_taken_for_either_type_of_numbers(run):
    found = parameters(run(target_latency_ms="100", **{"cache.budget_tokens": "3e3"})["stream_node"])
    assert (found["target_latency_ms"], found["cache.budget_tokens"]) == (100.0, 3000)
    assert (type(found["target_latency_ms"]), type(found["cache.budget_tokens"])) == (float, int)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("cache.budget_tokns", "cache.budget_tokns (did you mean cache.budget_tokens?)"),
        ("cache.gibberish", "cache.gibberish"),
        ("wrold_frame", "wrold_frame (did you mean world_frame?)"),
        ("budget_mib", "budget_mib (did you mean cache.budget_mib?)"),
        ("image_topics", "image_topics (did you mean image_topic?)"),
    ],
)
def test_what_resembles_an_argument_and_is_none_is_named(launch, said, name, hint):
    records = launch(stream(**{name: "5"}))
    assert parameters(records["stream_node"]) == values(NodeConfig())
    assert said == [f"arguments ignored, unknown here: {hint}"]


def test_arguments_of_the_launch_file_that_includes_this_one_are_left_alone(launch, said):
    launch(SetLaunchConfiguration("robot", "red"), SetLaunchConfiguration("lidar_height", "2"), stream(rviz="false"))
    assert not said


def test_whatever_is_given_on_the_command_line_in_vain_is_named(launch, said):
    launch(stream(gibberish="1", device="cpu"), argv=["gibberish:=1", "device:=cpu"])
    assert said == ["arguments ignored, unknown here: gibberish"]


def test_arguments_override_the_parameter_file_only_when_given(run, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("/**: {ros__parameters: {world_frame: map, model: streamvggt}}")
    record = run(params_file=str(file), weights="a.pt", model="demo")["stream_node"]
    assert parameters(record) == {"world_frame": "map", "model": "demo", "weights": "a.pt"}


def test_topics_and_namespace_reach_the_node(run):
    names = dict(camera_info_topic="info", odometry_topic="/wheels", depth_topic="/lidar/depth", namespace="front")
    record = run(image_topic="/cam/color", **names)["front.stream_node"]
    expected = ["/cam/color", "/cam/color/compressed", "/front/info", "/wheels", "/lidar/depth", "/front/stream/status"]
    assert resolved(record, *INPUTS, "~/status") == expected


def test_enclave_reaches_the_node(run):
    arguments = run(enclave="/robot/stream")["stream_node"]["arguments"]
    assert arguments[arguments.index("--enclave") + 1] == "/robot/stream"
    assert "--ros-args" in arguments[: arguments.index("--enclave")]


def test_a_bag_is_played_and_is_the_clock(run):
    records = run("ros2", bag="drive", bag_delay="9", bag_args="--rate 0.5 --topics '/a b'", rviz="true")
    play = ["bag", "play", "drive", "--clock", "--delay", "9", "--rate", "0.5", "--topics", "/a b"]
    assert records["ros2"]["arguments"] == play
    assert parameters(records["stream_node"])["use_sim_time"] is True
    assert parameters(records["rviz2"])["use_sim_time"] is True


@pytest.mark.parametrize(("bag", "use_sim_time"), [("drive", "False"), ("", "True")])
def test_use_sim_time_can_be_set_with_or_against_the_bag(run, bag, use_sim_time):
    records = run(*["ros2"] * bool(bag), bag=bag, use_sim_time=use_sim_time)
    assert parameters(records["stream_node"])["use_sim_time"] is (use_sim_time == "True")


@pytest.mark.parametrize("world_frame", ["", "map"])
def test_rviz_shows_the_topics_and_the_world_of_the_node_wherever_it_is_pushed(launch, world_frame):
    include = stream(rviz="true", namespace="front", world_frame=world_frame)
    records = launch(GroupAction([PushRosNamespace("robot"), include]), awaited=["robot.front.rviz2"])
    displayed = ("points", "rgb/image", "depth/image", "path", "odometry", "keyframes", "obstacles")
    topics = resolved(records["robot.front.stream_node"], *(f"~/{topic}" for topic in displayed))
    assert shown(records["robot.front.rviz2"]) == (world_frame or NodeConfig().world_frame, set(topics))


def test_two_cameras_share_no_name_and_no_argument(launch):
    """As in docs/recipes.md: each include in a group of its own, so that neither sees the other's arguments."""
    front = stream(namespace="front", world_frame="front_odom", image_topic="/front/image_raw", device="cuda:1")
    rear = stream(namespace="rear", world_frame="rear_odom", rviz="true")
    records = launch(
        GroupAction([front], scoped=True, forwarding=False),
        GroupAction([rear], scoped=True, forwarding=False),
        awaited=["front.stream_node", "rear.stream_node", "rear.rviz2"],
    )
    assert set(records) - {"rviz2.interrupted"} == {"front.stream_node", "rear.stream_node", "rear.rviz2"}
    defaults = values(NodeConfig())
    changes = {"front": dict(world_frame="front_odom", device="cuda:1"), "rear": dict(world_frame="rear_odom")}
    names = {}
    for camera, changed in changes.items():
        node = records[f"{camera}.stream_node"]
        assert parameters(node) == defaults | changed
        names[camera] = set(resolved(node, "~/status", "~/reset", "~/points", *INPUTS))
    assert not names["front"] & names["rear"]
    frame, topics = shown(records["rear.rviz2"])
    assert frame == "rear_odom"
    assert all(topic.startswith("/rear/stream/") for topic in topics)


def test_the_end_of_the_node_ends_what_shows_and_feeds_it_and_nothing_else(launch):
    bystander = ExecuteProcess(cmd=[sys.executable, "-c", BYSTANDER, "rviz2.interrupted"])
    records = launch(stream(rviz="true", bag="drive"), bystander, awaited=["rviz2", "ros2"])
    assert {"rviz2.interrupted", "ros2.interrupted", "bystander"} <= set(records)


def test_respawn_starts_the_node_again_and_leaves_the_others(launch, tmp_path):
    count = "(records / ('again' if (records / 'ended').exists() else 'ended')).touch()\n"
    _write(tmp_path / "prefix" / "lib" / "xsvggt_ros" / "stream_node", STAND_IN + count)
    bystander = ExecuteProcess(cmd=[sys.executable, "-c", BYSTANDER, "again"], on_exit=Shutdown())
    records = launch(stream(rviz="true", respawn="true"), bystander, awaited=["rviz2"])
    assert {"ended", "again", "bystander"} <= set(records)


def nav2(launch, **arguments):
    include = IncludeLaunchDescription(str(NAV2_LAUNCH_FILE), launch_arguments=arguments.items())
    manager = f"{arguments['namespace']}.lifecycle_manager" if "namespace" in arguments else "lifecycle_manager"
    ends = ExecuteProcess(cmd=[sys.executable, "-c", BYSTANDER, manager], on_exit=Shutdown())  # nobody else ends it
    return launch(include, ends, awaited=[manager])


def test_nav2s_manager_starts_the_node_and_waits_for_no_bond(launch, said):
    records = nav2(launch, image_topic="/cam/color")
    (text,) = records["lifecycle_manager"]["files"]
    (manager,) = yaml.load(text, yaml.FullLoader).values()  # launch_ros writes lists as Python's tuples
    assert manager["ros__parameters"] == {
        "autostart": True, "node_names": ("stream",), "bond_timeout": 0.0, "service_timeout": 600.0,
    }  # fmt: skip
    changed = {
        "autostart": False, "base_frame": "base_link", "world_frame": "visual_odom", "scale.source": "odometry",
        "publish_tf": False, "dense": "subscribed",
    }  # fmt: skip
    assert parameters(records["stream_node"]) == values(NodeConfig()) | changed
    assert resolved(records["stream_node"], "image", "reference/odometry") == ["/cam/color", "/odom"]
    assert not said


def test_arguments_of_nav2s_launch_file_reach_the_node_and_its_namespace_both(launch):
    given = {
        "base_frame": "base_footprint",
        "scale.source": "camera_height",
        "obstacles.max_range": "3",
        "device": "cpu",
    }
    records = nav2(launch, namespace="front", **given)
    found = parameters(records["front.stream_node"])
    assert {name: found[name] for name in given} == given | {"obstacles.max_range": 3.0}
    assert set(records) >= {"front.stream_node", "front.lifecycle_manager"}
