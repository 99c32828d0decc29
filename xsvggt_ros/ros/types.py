# SPDX-License-Identifier: Apache-2.0
"""Message classes of rclpy's packages by their type names."""

from importlib import import_module
from typing import Any


def message_class(name: str) -> Any:
    """Class of a message type name such as "sensor_msgs/msg/Image". Raises RuntimeError if its package is missing."""
    package, _, kind = name.split("/")
    try:
        return getattr(import_module(f"{package}.msg"), kind)
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"the messages of {package} are missing: install xsvggt_ros once more, now that ROS is there, with colcon "
            "or `pip install --no-build-isolation --no-deps --force-reinstall .`"
        ) from error
