# SPDX-License-Identifier: Apache-2.0
"""Two ROS distributions beside each other: an environment may have the other's torch, but nothing of its ROS."""

import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from support.borrow import lend


@pytest.fixture
def lender(tmp_path):
    """A folder of modules: one wheel of ROS, one of this package, two of others, of which one has a file of paths."""
    folder = tmp_path / "lender" / "site-packages"
    wheels = {
        "ros-rclpy": ["rclpy/__init__.py", "rclpy-9.egg-info", "ros_rclpy.libs/rcl.so"],
        "xsvggt_ros": ["tf2_msgs/msg/__init__.py", "xsvggt_ros/msg/__init__.py", "__editable__.xsvggt_ros.pth"],
        "rosbags": ["rosbags/__init__.py"],
        "torch": ["torch/__init__.py", "torch.pth", "../../bin/torchrun"],
    }
    for name, files in wheels.items():
        metadata = f"{name.replace('-', '_')}-9.dist-info"
        for file in [*files, f"{metadata}/METADATA", f"{metadata}/RECORD"]:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("")
        (folder / metadata / "METADATA").write_text(f"Name: {name}\nVersion: 9\n")
        (folder / metadata / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{metadata}/RECORD"]))
    return folder


def test_all_is_lent_but_ros_and_this_package(lender, tmp_path):
    borrower = tmp_path / "borrower"
    borrower.mkdir()
    for _ in range(2):
        lend(lender, borrower)
        (lent,) = (borrower / "lent.pth").read_text().splitlines()
        assert {path.name for path in Path(lent).iterdir()} == {
            "rosbags", "rosbags-9.dist-info", "torch", "torch-9.dist-info"
        }  # fmt: skip
        assert (Path(lent) / "torch" / "__init__.py").samefile(lender / "torch" / "__init__.py")
    assert {wheel.name for wheel in distributions(path=[lent])} == {"rosbags", "torch"}


def test_ros_in_this_environment_is_its_own():
    elsewhere = [
        wheel.name
        for wheel in distributions()
        if (wheel.name or "").startswith("ros-")
        if not Path(wheel.locate_file("")).resolve().is_relative_to(Path(sys.prefix).resolve())
    ]
    assert not elsewhere, f"{elsewhere} are of another environment than {sys.prefix}"
