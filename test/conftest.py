# SPDX-License-Identifier: Apache-2.0
"""The small models and arrays of the tests run fastest on one thread, and do not disturb each other there."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--endurance", action="store_true", help="run the tests of endurance and faults at full length")
    parser.addoption("--figures", type=Path, metavar="FILE", help="append what the tests measure to FILE, in Markdown")


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
