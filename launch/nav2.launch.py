# SPDX-License-Identifier: Apache-2.0
"""The stream node as Nav2's depth camera, started and stopped by a lifecycle manager of its own; docs/nav2.md.

The arguments of stream.launch.py are arguments here too, but for MANAGERS; some have other defaults.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

STREAM = Path(get_package_share_directory("xsvggt_ros"), "launch", "stream.launch.py")

# name: (default, description)
DEFAULTS = {
    "namespace": ("", "Namespace of the node, its topics and the manager."),
    "base_frame": ("base_link", "Frame of the obstacles, to which TF has the camera's mounting."),
    "scale.source": ("odometry", "Where the metres come from."),
    "odometry_topic": ("odom", "Odometry that gives them."),
    "world_frame": ("visual_odom", "Frame of ~/odometry and ~/path; the robot's own odometry has odom."),
    "publish_tf": ("false", "Whether to send the pose to /tf, where base_frame has a parent already."),
    "dense": ("subscribed", "When depth is computed."),
}
MANAGERS = {"autostart": "false", "respawn": "false"}  # without a bond it would not configure what started again
MANAGED = {
    "autostart": True,
    "node_names": ["stream"],
    "bond_timeout": 0.0,  # none: rclpy's lifecycle nodes hold no bond
    "service_timeout": 600.0,  # seconds for a transition: configure reads the weights
}


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(name, default_value=d, description=about) for name, (d, about) in DEFAULTS.items()
    ]
    stream = IncludeLaunchDescription(str(STREAM), launch_arguments=MANAGERS.items())
    manager = Node(
        package="nav2_lifecycle_manager",
        executable="lifecycle_manager",
        name="lifecycle_manager_stream",
        namespace=LaunchConfiguration("namespace"),
        parameters=[MANAGED],
        output="screen",
    )
    return LaunchDescription([*arguments, stream, manager])
