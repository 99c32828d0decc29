# SPDX-License-Identifier: Apache-2.0
"""The ROS packages of one environment are of one distribution, or no messages are built in it."""

import sys
from importlib import import_module

import pytest
from support.paths import ROOT

pytest.importorskip("rosidl_adapter")
JAZZY = {"ros-rclpy": ("7.1.6", []), "ros-jazzy-rclpy": ("7.1.6", ["ros-rclpy==7.1.6"])}
KILTED = {"ros-rclpy": ("9.1.2", []), "ros-kilted-rclpy": ("9.1.2", ["ros-rclpy==9.1.2"])}
UPGRADED = JAZZY | {"ros-rclpy": ("9.1.2", [])}
GENERATOR = {"ros-rosidl-adapter": ("4.9.5", []), "ros-jazzy-rosidl-adapter": ("4.6.6", ["ros-rosidl-adapter==4.6.6"])}


@pytest.fixture
def mixture(monkeypatch, tmp_path):
    """build_messages.mixture in an environment of these wheels: name -> version, requirements."""
    monkeypatch.setenv("AMENT_PREFIX_PATH", sys.prefix)
    monkeypatch.syspath_prepend(ROOT)
    module = import_module("build_messages")
    monkeypatch.delenv("ROS_DISTRO", raising=False)

    def of(wheels):
        for name, (version, requirements) in wheels.items():
            folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requirements)]
            (folder / "METADATA").write_text("\n".join(lines))
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        return module.mixture()

    return of


@pytest.mark.parametrize("wheels", [{}, JAZZY, KILTED, {"ros-rclpy": ("9.1.2", ["pyyaml"])}])
def test_wheels_of_one_distribution_fit_together(mixture, wheels):
    assert mixture(wheels) == ""


@pytest.mark.parametrize("wheels", [UPGRADED, JAZZY | KILTED, JAZZY | GENERATOR])
def test_a_wheel_that_replaced_one_of_another_distribution_is_named_with_the_fix(mixture, wheels):
    reason = mixture(wheels)
    assert "of another ROS distribution has replaced it: make a new virtual environment" in reason
    assert "ros-jazzy-r" in reason


def test_wheels_beside_a_sourced_distribution_are_refused(mixture, monkeypatch):
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert "ROS 2 jazzy is sourced, and the Python environment" in mixture(KILTED)


def test_a_sourced_distribution_alone_is_what_it_is(mixture, monkeypatch):
    monkeypatch.setenv("ROS_DISTRO", "jazzy")
    assert mixture({"numpy": ("2.4.6", [])}) == ""
