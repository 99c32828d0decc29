# SPDX-License-Identifier: Apache-2.0
"""The node's ROS parameters, all of them from the fields of config.NodeConfig."""

from __future__ import annotations

import sys

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.settings import Setting, changed, settings, values

_INT64_MAX = 2**63 - 1


class Parameters:
    """Declares the settings as parameters of a node and follows their changes.

    config: the settings in force. A change swaps it for another, so a reader that keeps the reference
    has one consistent set; a refused change leaves it alone.
    in_use: whether the node is configured, when only live settings may change.
    Raises ValueError with the reason for an initial value that is not allowed.
    """

    def __init__(self, node: Node) -> None:
        self.in_use = False
        self._node_name = node.get_fully_qualified_name()
        self._names = {s.name for s in settings(NodeConfig)}
        try:
            initial = {s.name: self._declare(node, s) for s in settings(NodeConfig)}
        except ParameterException as error:
            raise ValueError(str(error)) from None
        self.config = changed(NodeConfig(), initial)
        if hasattr(node, "add_post_set_parameters_callback"):
            node.add_on_set_parameters_callback(self._validate)
            node.add_post_set_parameters_callback(self._apply)
        else:  # Humble
            node.add_on_set_parameters_callback(self._validate_and_apply)

    def _declare(self, node: Node, setting: Setting) -> bool | int | float | str:
        return node.declare_parameter(setting.name, setting.default, _descriptor(setting)).value

    def _changed(self, parameters: list[Parameter]) -> NodeConfig:
        return changed(self.config, {p.name: p.value for p in parameters if p.name in self._names})

    def _validate(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            self._check_use(self._changed(parameters))
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _check_use(self, config: NodeConfig) -> None:
        """Raises ValueError if the configuration differs from the present one where that is in use."""
        new, old = values(config), values(self.config)
        fixed = [s.name for s in settings(NodeConfig) if not s.live and new[s.name] != old[s.name]]
        if self.in_use and fixed:
            raise ValueError(
                f"{', '.join(fixed)} can only change before the node is configured: "
                f"`ros2 lifecycle set {self._node_name} deactivate`, then cleanup, first"
            )

    def _validate_and_apply(self, parameters: list[Parameter]) -> SetParametersResult:
        result = self._validate(parameters)
        if result.successful:
            self._apply(parameters)
        return result

    def _apply(self, parameters: list[Parameter]) -> None:
        self.config = self._changed(parameters)


def _descriptor(setting: Setting) -> ParameterDescriptor:
    unit = f" [{setting.unit}]" if setting.unit else ""
    when = "" if setting.live else " Read when the node is configured."
    descriptor = ParameterDescriptor(description=setting.description + unit + when)
    if setting.choices:
        descriptor.additional_constraints = f"one of {', '.join(map(str, setting.choices))}"
    elif setting.minimum is not None and setting.type is int:
        top = _INT64_MAX if setting.maximum is None else int(setting.maximum)
        descriptor.integer_range = [IntegerRange(from_value=int(setting.minimum), to_value=top)]
    elif setting.minimum is not None:
        limit = sys.float_info.max if setting.maximum is None else float(setting.maximum)
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(setting.minimum), to_value=limit)]
    return descriptor
