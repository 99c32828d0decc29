# SPDX-License-Identifier: Apache-2.0
"""A process ends with the one that has started it, however that ends."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from xsvggt_ros.processes import end_with_parent

PARENT = "from test_processes import start; start()"


def start() -> None:
    child = get_context("spawn").Process(target=sleep)
    child.start()
    child.join()


def sleep() -> None:
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(300)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_ends_with_its_parent(number):
    here = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", PARENT], env=here, stdout=subprocess.PIPE, text=True) as parent:
        child = Path("/proc", parent.stdout.readline().strip())
        assert child.exists()
        parent.send_signal(number)
        said, _ = parent.communicate(timeout=60)  # until nobody holds its output open any more
        assert said == ""
    assert parent.returncode == -number
