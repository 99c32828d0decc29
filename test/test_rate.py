# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pytest
from support.recordings import write_folder

from xsvggt_ros.cli import main
from xsvggt_ros.config import StreamConfig
from xsvggt_ros.evaluation.sweep import Sweep
from xsvggt_ros.rate import LEAST_RATE, MOST_RATE, check_rate
from xsvggt_ros.replay.sources import Reading, open_source

SENSELESS = [0, -1, -30.0, 1e-9, 9e-4, 1_000_001, 1e12, math.inf, -math.inf, math.nan]
COMMANDS = ["replay IMAGES --output OUT", "rooms --output OUT", "eval rooms", "eval --sweep --output OUT", "demo"]


@pytest.mark.parametrize("rate", SENSELESS)
def test_a_senseless_rate_is_refused_with_what_would_be_one(rate):
    with pytest.raises(ValueError, match=r"^rate must be from 0.001 to 1000000 images per second, got .*: give the"):
        check_rate(rate)


@pytest.mark.parametrize("rate", [LEAST_RATE, MOST_RATE])
def test_stamps_increase_at_both_ends_of_what_is_allowed(tmp_path, rate):
    with open_source(write_folder(tmp_path, 12), Reading(rate=rate)) as source:
        stamps = [message.header.stamp for _, message in source]
    seconds = [stamp.sec + stamp.nanosec * 1e-9 for stamp in stamps]
    assert all(b - a == pytest.approx(1 / rate, rel=1e-6) for a, b in itertools.pairwise(seconds))


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "1e-9", "1e12"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_it(tmp_path, capsys, command, rate):
    paths = {"IMAGES": write_folder(tmp_path / "images", 1), "OUT": tmp_path / "out"}
    words = [str(paths.get(word, word)) for word in command.split()]
    assert main([*words, f"--rate={rate}"]) == 2
    error = capsys.readouterr().err
    assert "rate must be from 0.001 to 1000000 images per second" in error and "Traceback" not in error
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_sweep_is_not_started_with_it():
    with pytest.raises(ValueError, match="rate must be from"):
        Sweep(StreamConfig(), rate=math.nan)
