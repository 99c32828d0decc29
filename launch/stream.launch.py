# SPDX-License-Identifier: Apache-2.0
"""The stream node, and on request RViz and a bag: `ros2 launch xsvggt_ros stream.launch.py --show-args`."""

import shlex
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, ExecuteProcess, OpaqueFunction
from launch.events import matches_action
from launch.events.process import ShutdownProcess
from launch.logging import get_logger
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.names import nearest, unknown_names
from xsvggt_ros.parameters_file import facts
from xsvggt_ros.settings import settings

CONFIG = Path(get_package_share_directory("xsvggt_ros"), "config")
BOOLEAN = ["true", "false", "True", "False"]  # other launch files pass Python's words

# name: (default, description)
ARGUMENTS = {
    "image_topic": ("image", "Camera images to read."),
    "camera_info_topic": ("camera_info", "Their intrinsics, if any."),
    "odometry_topic": ("reference/odometry", "Odometry that gives the metres, with scale.source:=odometry."),
    "depth_topic": ("reference/depth", "Depth images that give the metres, with scale.source:=depth."),
    "params_file": (str(CONFIG / "stream.yaml"), "Parameter file of the node."),
    "namespace": ("", "Namespace of the node, its topics and RViz."),
    "respawn": ("false", "Whether to start the node again 2 s after it ended."),
    "rviz": ("false", "Whether to start RViz."),
    "rviz_config": (str(CONFIG / "stream.rviz"), "What RViz shows."),
    "bag": ("", "Bag to play; empty: none."),
    "bag_delay": ("5.0", "Seconds until the bag starts, above 0; raise it if the node loads its weights for longer."),
    "bag_args": ("", "More arguments of `ros2 bag play`, for example '--rate 0.5 --loop'."),
    "use_sim_time": ("", "Take the time from /clock; empty: true if a bag is played, else as in params_file."),
    "enclave": ("", "SROS2 enclave of the node, for example /front/stream; empty: none."),
    "log_level": ("info", "debug, info, warn, error or fatal."),
}
CHOICES = {"respawn": BOOLEAN, "rviz": BOOLEAN, "use_sim_time": ["", *BOOLEAN]}
# Topics of the node in stream.rviz.
DISPLAYED = ("points", "rgb/image", "depth/image", "path", "odometry", "keyframes", "obstacles")
KILL_AFTER_S = "20"  # a step that runs is waited for, and takes seconds with a large model on a CPU


# Likeness from which an argument is taken for one of ours: those of a launch file that includes this one come too.
ALIKE = 0.8


def arguments() -> list[DeclareLaunchArgument]:
    overrides = {s.name: ("", f"{s.description} {facts(s)} Empty: as in params_file.") for s in settings(NodeConfig)}
    return [
        DeclareLaunchArgument(name, default_value=default, description=about, choices=CHOICES.get(name))
        for name, (default, about) in (ARGUMENTS | overrides).items()
    ]


def stream_node(given: dict[str, str], sim_time: dict[str, bool], companions: list[ExecuteProcess]) -> Node:
    """The node; when it ends for good, so do its companions, but not the launch file that may include this one."""
    overrides = {
        setting.name: ParameterValue(setting.parse(given[setting.name]), value_type=setting.type)
        for setting in settings(NodeConfig)
        if given[setting.name]
    }
    respawn = true(given["respawn"])
    end = [EmitEvent(event=ShutdownProcess(process_matcher=matches_action(process))) for process in companions]
    return Node(
        package="xsvggt_ros",
        executable="stream_node",
        name="stream",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), sim_time | overrides],
        remappings=[
            ("image", given["image_topic"]),
            ("image/compressed", f"{given['image_topic']}/compressed"),
            ("camera_info", given["camera_info_topic"]),
            ("reference/odometry", given["odometry_topic"]),
            ("reference/depth", given["depth_topic"]),
        ],
        ros_arguments=[
            *("--log-level", given["log_level"]),
            *(["--enclave", given["enclave"]] if given["enclave"] else []),
        ],
        output="screen",
        emulate_tty=True,
        sigkill_timeout=KILL_AFTER_S,
        respawn=respawn,
        respawn_delay=2.0,
        on_exit=None if respawn else end or None,  # not []: launch fails on it
    )


def rviz_node(given: dict[str, str], sim_time: dict[str, bool]) -> Node:
    # Relative names on the right: RViz resolves them in its namespace, which is the stream node's.
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=LaunchConfiguration("namespace"),
        arguments=["-d", given["rviz_config"], *(["-f", given["world_frame"]] if given["world_frame"] else [])],
        parameters=[sim_time],
        remappings=[(f"/stream/{topic}", f"stream/{topic}") for topic in DISPLAYED],
    )


def bag_player(given: dict[str, str]) -> ExecuteProcess:
    play = ["ros2", "bag", "play", given["bag"], "--clock", "--delay", given["bag_delay"]]
    return ExecuteProcess(cmd=play + shlex.split(given["bag_args"]), output="screen")


def processes(context: LaunchContext) -> list[ExecuteProcess]:
    """What the arguments ask for, once their values are known."""
    say_unknown(context)
    given = context.launch_configurations
    sim_time = {"use_sim_time": true(given["use_sim_time"] or "true")} if given["use_sim_time"] or given["bag"] else {}
    companions: list[ExecuteProcess] = []
    if true(given["rviz"]):
        companions.append(rviz_node(given, sim_time))
    if given["bag"]:
        companions.append(bag_player(given))
    return [stream_node(given, sim_time, companions), *companions]


def say_unknown(context: LaunchContext) -> None:
    """Names what was given in vain: anything on the command line, and what includes pass that resembles an argument."""
    known = [*ARGUMENTS, *(s.name for s in settings(NodeConfig))]
    groups = {name.partition(".")[0] for name in known if "." in name}
    typed = {argument.partition(":=")[0] for argument in context.argv}
    unknown = {
        name
        for name in context.launch_configurations.keys() - known
        if name in typed or name.partition(".")[0] in groups or nearest(name, known, ALIKE)
    }
    if unknown:
        get_logger("stream.launch.py").warning(f"arguments ignored, unknown here: {unknown_names(unknown, known)}")


def true(value: str) -> bool:
    return value.lower() == "true"


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*arguments(), OpaqueFunction(function=processes)])
