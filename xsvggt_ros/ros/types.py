# SPDX-License-Identifier: Apache-2.0
"""Message classes of rclpy's packages by their type names."""

from importlib import import_module
from typing import Any


def message_class(name: str) -> Any:
    """Class of a message type name such as "sensor_msgs/msg/Image"."""
    package, _, kind = name.split("/")
    return getattr(import_module(f"{package}.msg"), kind)
