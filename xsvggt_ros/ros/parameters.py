# SPDX-License-Identifier: Apache-2.0
"""The node's ROS parameters, all of them from the fields of config.NodeConfig."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.names import unknown_names
from xsvggt_ros.settings import Setting, changed, settings, values

_INT64_MAX = 2**63 - 1
Value = bool | int | float | str


class Parameters:
    """Declares the settings as parameters of a node and follows their changes.

    config: the settings in force. A change swaps it for another, so a reader that keeps the reference has one
    consistent set; a refused change leaves it alone. A change that contradicts other settings is taken, since tools
    set one parameter after the other; it comes into force with the one that ends the contradiction.
    check: set while the node is configured, when only live settings may change: raises ValueError with the reason for
    a configuration that cannot work with what is loaded.
    Raises ValueError with the reason for an initial value that is not allowed.
    """

    def __init__(self, node: Node) -> None:
        self.check: Callable[[NodeConfig], None] | None = None
        self._node = node
        self._settings = {s.name: s for s in settings(NodeConfig)}
        self._waiting = ""  # what was last said about changes that are not in force
        self._say_unknown()
        try:
            self._asked = {s.name: self._declare(s) for s in self._settings.values()}  # as the parameters say
        except ParameterException as error:
            raise ValueError(str(error)) from None
        self.config = self.settled()
        if hasattr(node, "add_post_set_parameters_callback"):
            node.add_pre_set_parameters_callback(self._convert)
            node.add_on_set_parameters_callback(self._validate)
            node.add_post_set_parameters_callback(self._apply)
        else:  # Humble, which stores an integer for a float as it comes
            node.add_on_set_parameters_callback(self._validate_and_apply)

    def settled(self) -> NodeConfig:
        """The configuration that all parameters make together. Raises ValueError if they contradict each other."""
        return changed(NodeConfig(), self._asked)

    def change(self, new: dict[str, Value]) -> str:
        """Sets parameters, all of them or none, as `ros2 param set` does; what to know about it.

        For the node's thread. Raises ValueError with the reason where that is refused.
        """
        result = self._node.set_parameters_atomically([Parameter(name, value=value) for name, value in new.items()])
        if not result.successful:
            raise ValueError(result.reason)
        return self._waiting or "from the next image on"

    def _say_unknown(self) -> None:
        """A warning only: a parameter file may be for several nodes."""
        given = getattr(self._node, "_parameter_overrides", {})  # rclpy has no public way to them
        known = {*self._settings, *filter(self._node.has_parameter, given)}
        unknown = {name for name in given if name not in known and not name.startswith("qos_overrides.")}
        if unknown:
            self._node.get_logger().warning(f"parameters ignored, unknown here: {unknown_names(unknown, known)}")

    def _declare(self, setting: Setting) -> Value:
        """The initial value, which the parameter then has in the setting's type."""
        given = self._node.declare_parameter(setting.name, setting.default, _descriptor(setting)).value
        value = setting.check(given)
        self._node.set_parameters([Parameter(setting.name, value=value)])
        return value

    def _convert(self, parameters: list[Parameter]) -> list[Parameter]:
        return [self._converted(parameter) for parameter in parameters]

    def _converted(self, parameter: Parameter) -> Parameter:
        try:
            return Parameter(parameter.name, value=self._settings[parameter.name].check(parameter.value))
        except (KeyError, ValueError):  # of another owner, or about to be refused
            return parameter

    def _checked(self, parameters: list[Parameter]) -> dict[str, Value]:
        """What is asked for, each value by itself. Raises ValueError with the reason for one that is not allowed."""
        return {p.name: self._settings[p.name].check(p.value) for p in parameters if p.name in self._settings}

    def _validate(self, parameters: list[Parameter]) -> SetParametersResult:
        try:
            new = self._checked(parameters)
            if self.check:
                self._check_live(new)
                self.check(self._with(new)[0])
        except ValueError as error:
            self._restore_descriptors(parameters)
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _check_live(self, new: dict[str, Value]) -> None:
        """Raises ValueError if something changes that is in use."""
        fixed = [name for name, value in new.items() if not self._settings[name].live and value != self._asked[name]]
        if fixed:
            raise ValueError(
                f"{', '.join(fixed)} can only change before the node is configured: "
                f"`ros2 lifecycle set {self._node.get_fully_qualified_name()} deactivate`, then cleanup, first"
            )

    def _with(self, new: dict[str, Value]) -> tuple[NodeConfig, str]:
        """The configuration once these are asked for too, and what contradicts what, if something does."""
        try:
            return changed(NodeConfig(), self._asked | new), ""
        except ValueError as contradiction:
            config = self.config
            with suppress(ValueError):  # what has no part in it is in force at once
                config = changed(config, new)
            return config, str(contradiction)

    def _restore_descriptors(self, parameters: list[Parameter]) -> None:
        """rclpy has put the refused types into them."""
        for parameter in parameters:
            if parameter.name in self._settings:
                self._node.set_descriptor(parameter.name, _descriptor(self._settings[parameter.name]))

    def _validate_and_apply(self, parameters: list[Parameter]) -> SetParametersResult:
        result = self._validate(parameters)
        if result.successful:
            self._apply(parameters)
        return result

    def _apply(self, parameters: list[Parameter]) -> None:
        new = self._checked(parameters)
        self.config, contradiction = self._with(new)
        self._asked |= new
        said, self._waiting = self._waiting, ""
        if contradiction:
            in_force = values(self.config)
            waiting = ", ".join(name for name, value in self._asked.items() if value != in_force[name])
            self._waiting = f"not in force yet: {waiting}; {contradiction}"
        if self._waiting not in ("", said):
            self._node.get_logger().warning(self._waiting)


def _descriptor(setting: Setting) -> ParameterDescriptor:
    unit = f" [{setting.unit}]" if setting.unit else ""
    when = "" if setting.live else " Read when the node is configured."
    # Typed by the checks of the setting, which take a whole number for either type of numbers, and say what is wrong.
    descriptor = ParameterDescriptor(description=setting.description + unit + when, dynamic_typing=True)
    if setting.choices:
        descriptor.additional_constraints = f"one of {', '.join(map(str, setting.choices))}"
    elif setting.minimum is not None and setting.type is int:
        top = _INT64_MAX if setting.maximum is None else int(setting.maximum)
        descriptor.integer_range = [IntegerRange(from_value=int(setting.minimum), to_value=top, step=setting.step or 0)]
    elif setting.minimum is not None:
        limit = sys.float_info.max if setting.maximum is None else float(setting.maximum)
        descriptor.floating_point_range = [FloatingPointRange(from_value=float(setting.minimum), to_value=limit)]
    return descriptor
