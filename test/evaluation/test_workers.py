# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from xsvggt_ros.config import StreamConfig
from xsvggt_ros.evaluation.workers import in_processes
from xsvggt_ros.model.loading import RANDOM

RUN = "from test_workers import run; run()"


def run() -> None:
    list(in_processes(sleep, [0], StreamConfig(weights=RANDOM), 1))


def sleep(seed: int, model) -> None:
    print("at work", flush=True)
    time.sleep(300)


def test_workers_end_with_the_command_that_is_killed():
    here = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, "-c", RUN], env=here, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout.readline() == "at work\n"
        command.send_signal(signal.SIGKILL)
        said, _ = command.communicate(timeout=60)  # until no worker holds its output open any more
        assert said == ""
