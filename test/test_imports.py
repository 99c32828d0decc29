# SPDX-License-Identifier: Apache-2.0
"""What imports what: cheap where nobody should wait."""

import subprocess
import sys

import pytest

import xsvggt_ros

HEAVY = ("torch", "numpy", "cv2", "scipy", "matplotlib", "rosbags")
LOADED = f"""
import sys

def assert_light():
    loaded = sorted(set({HEAVY}) & set(sys.modules))
    assert not loaded, loaded
"""


def python(program):
    """Runs a program in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_package_its_settings_and_its_command_line_load_nothing_heavy():
    python(f"{LOADED}\nimport xsvggt_ros, xsvggt_ros.cli, xsvggt_ros.config\ndir(xsvggt_ros)\nassert_light()")


@pytest.mark.parametrize("arguments", ["--help", "parameters", "parameters --markdown", "parameters --help"])
def test_commands_that_only_print_load_nothing_heavy(arguments):
    python(f"""{LOADED}
from xsvggt_ros.cli import main

try:
    main({arguments.split()})
except SystemExit as stop:
    assert not stop.code
assert_light()
""")


@pytest.mark.parametrize("name", xsvggt_ros.__all__)
def test_every_public_name_is_found_when_asked_for(name):
    assert name in dir(xsvggt_ros)
    assert getattr(xsvggt_ros, name).__name__ == name


def test_other_names_are_missing_as_in_any_module():
    with pytest.raises(AttributeError, match="'xsvggt_ros' has no attribute 'Dance'"):
        _ = xsvggt_ros.Dance
    with pytest.raises(ImportError, match="cannot import name 'Dance'"):
        from xsvggt_ros import Dance  # noqa: F401
