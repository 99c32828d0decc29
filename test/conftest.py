# SPDX-License-Identifier: Apache-2.0
"""The small models and arrays of the tests run fastest on one thread, and do not disturb each other there."""

import gc
import os
import re
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

import pytest
import torch

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
torch.set_num_threads(1)
gc.disable()  # what is made until the tests begin stays, and need not be looked through

ROS = re.compile(r"\b(rclpy|ament_index_python|rosidl_adapter|xsvggt_ros\.(ros|msg))\b")


def pytest_addoption(parser):
    parser.addoption("--endurance", action="store_true", help="run the tests of endurance and faults at full length")
    parser.addoption("--figures", type=Path, metavar="FILE", help="append what the tests measure to FILE, in Markdown")


def pytest_report_header():
    """Which ROS 2 the tests run on."""
    if sourced := os.environ.get("ROS_DISTRO"):
        return f"ROS 2: {sourced}, sourced"
    names = " ".join(wheel.name or "" for wheel in distributions())
    return f"ROS 2: {' '.join(re.findall(r'ros-([a-z]+)-rclpy', names)) or 'no distribution by name'}, as wheels"


def pytest_ignore_collect(collection_path, config):
    """With -m ros, what would be deselected need not be read."""
    other = collection_path.match("test_*.py") and not of_ros(collection_path)
    return True if other and config.option.markexpr == "ros" else None


def pytest_collection_modifyitems(items):
    """Marks what names ROS, in its own file or its folder's conftest.py.

    What waits for other processes comes first, then what takes long: no process is left alone with it at the end.
    """
    for item in items:
        if of_ros(item.path):
            item.add_marker("ros")
    order = {"ros": 0, "training": 1}
    items.sort(key=lambda item: order.get(item.path.parent.name, len(order)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    gc.freeze()
    gc.enable()


def of_ros(path):
    return names_ros(path) or names_ros(path.with_name("conftest.py"))


@cache
def names_ros(path):
    return path != Path(__file__) and path.is_file() and ROS.search(path.read_text()) is not None


@pytest.fixture(scope="session")
def endurance(request):
    """Whether tests run at full length: minutes rather than seconds."""
    return request.config.getoption("endurance")


@pytest.fixture
def figures(request):
    """figures(what, value): one row of what was measured, in the table that --figures names."""
    path = request.config.getoption("figures")

    def add(what, value):
        if path:
            with path.open("a") as file:
                if not file.tell():
                    file.write("| what | figure | test |\n|---|---|---|\n")
                file.write(f"| {what} | {value} | `{request.node.nodeid}` |\n")

    return add


@pytest.fixture(scope="module")
def interpreter():
    """call(function, *arguments) where Triton interprets kernels; see support/interpreted.py."""
    from support import interpreted

    with interpreted.process(TRITON_INTERPRET="1") as call:
        yield call


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """The same where Triton compiles them."""
    from support import interpreted

    folder = tmp_path_factory.mktemp("triton")
    with interpreted.process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(folder)) as call:
        yield call
