# SPDX-License-Identifier: Apache-2.0
"""The stream node, and on request RViz and a bag: `ros2 launch xsvggt_ros stream.launch.py --show-args`."""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, Shutdown
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

CONFIG = PathJoinSubstitution([FindPackageShare("xsvggt_ros"), "config"])

# name: (default, description)
ARGUMENTS = {
    "image_topic": ("image", "Camera images to read."),
    "camera_info_topic": ("camera_info", "Their intrinsics, if any."),
    "params_file": (PathJoinSubstitution([CONFIG, "stream.yaml"]), "Parameter file of the node."),
    "namespace": ("", "Namespace of the node and its topics."),
    "rviz": ("false", "Whether to start RViz."),
    "rviz_config": (PathJoinSubstitution([CONFIG, "stream.rviz"]), "What RViz shows."),
    "bag": ("", "Bag to play; empty: none."),
    "bag_rate": ("1.0", "Speed of the bag; 1.0: as recorded."),
    "use_sim_time": ("", "Take the time from /clock; empty: if a bag is played, which then is the clock."),
    "log_level": ("info", "debug, info, warn, error or fatal."),
}
# Parameters of the node that are arguments too: those given override the parameter file.
PARAMETERS = {
    "image_transport": "raw (sensor_msgs/Image) or compressed (CompressedImage on <image_topic>/compressed).",
    "weights": "Checkpoint: .pt, .pth or .safetensors; empty: the one that comes with the model.",
    "model": "Named model configuration the weights belong to.",
    "world_frame": "Parent frame of the published pose.",
    "base_frame": "Child frame of the published pose.",
}
CHOICES = {"rviz": ["true", "false"], "use_sim_time": ["", "true", "false"]}
DISPLAYED = ("points", "depth/image", "path", "odometry")  # topics of the node in stream.rviz


def arguments() -> list[DeclareLaunchArgument]:
    overrides = {name: ("", f"{about} Empty: as in params_file.") for name, about in PARAMETERS.items()}
    return [
        DeclareLaunchArgument(name, default_value=default, description=about, choices=CHOICES.get(name))
        for name, (default, about) in (ARGUMENTS | overrides).items()
    ]


def stream_node(use_sim_time: bool, overrides: dict[str, str]) -> Node:
    image = LaunchConfiguration("image_topic")
    return Node(
        package="xsvggt_ros",
        executable="stream_node",
        name="stream",
        namespace=LaunchConfiguration("namespace"),
        parameters=[LaunchConfiguration("params_file"), {"use_sim_time": use_sim_time, **overrides}],
        remappings=[
            ("image", image),
            ("image/compressed", [image, "/compressed"]),
            ("camera_info", LaunchConfiguration("camera_info_topic")),
        ],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        output="screen",
        emulate_tty=True,
        on_exit=Shutdown(reason="the stream node ended"),
    )


def rviz_node(use_sim_time: bool, namespace: str) -> Node:
    prefix = f"/{namespace.strip('/')}" if namespace else ""
    return Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", LaunchConfiguration("rviz_config")],
        parameters=[{"use_sim_time": use_sim_time}],
        remappings=[(f"/stream/{topic}", f"{prefix}/stream/{topic}") for topic in DISPLAYED],
    )


def bag_player(bag: str) -> ExecuteProcess:
    rate = LaunchConfiguration("bag_rate")
    return ExecuteProcess(cmd=["ros2", "bag", "play", bag, "--rate", rate, "--clock"], output="screen")


def processes(context: LaunchContext) -> list[ExecuteProcess]:
    """What the arguments ask for, once their values are known."""
    given = context.launch_configurations
    use_sim_time = given["use_sim_time"] == "true" if given["use_sim_time"] else bool(given["bag"])
    overrides = {name: given[name] for name in PARAMETERS if given[name]}
    started: list[ExecuteProcess] = [stream_node(use_sim_time, overrides)]
    if given["rviz"] == "true":
        started.append(rviz_node(use_sim_time, given["namespace"]))
    if given["bag"]:
        started.append(bag_player(given["bag"]))
    return started


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*arguments(), OpaqueFunction(function=processes)])
