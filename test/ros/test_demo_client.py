# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: it starts the node as a process of its own and talks to it over DDS."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.recordings import write_folder

pytestmark = pytest.mark.slow
DEMO = [sys.executable, "-m", "xsvggt_ros.cli", "demo"]


def children(pid: int) -> list[int]:
    """Of a process that has one thread that starts processes (Linux)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """To play where what they show is no matter: a room takes seconds to render."""
    return write_folder(tmp_path_factory.mktemp("images"), 30)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder and the console output of a demo that ran through."""
    output = tmp_path_factory.mktemp("demo") / "new" / "folder"
    command = [*DEMO, "--output", output, "--max-frames", "40", "--rate", "10"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert process.returncode == 0, process.stdout + process.stderr
    return output, process.stdout


def test_all_checks_hold_and_the_summary_says_so(finished):
    output, console = finished
    record = json.loads((output / "record.json").read_text())
    assert [c["problem"] for c in record["checks"]] == [""] * len(record["checks"])
    assert f"{len(record['checks'])} of {len(record['checks'])} hold" in console
    assert f"{output / 'report.html'}" in console
    assert (output / "report.html").read_text().count("data:image/png") > 20


def test_the_record_is_of_the_sequence_that_was_played(finished):
    record = json.loads((finished[0] / "record.json").read_text())
    counts, images = record["counts"], [a["image"] for a in record["answers"]]
    assert record["sent"] == 40
    assert counts["frames_received"] <= 40
    assert len(images) + counts["frames_replaced"] == counts["frames_received"]
    assert counts["resets"] == 1  # the images sent before the start are forgotten
    assert images == sorted(set(images))
    assert [a["status"]["frame"] for a in record["answers"]] == list(range(len(images)))
    assert record["answers"][0]["status"]["event"]


def test_budget_and_bits_change_half_way(finished):
    record = json.loads((finished[0] / "record.json").read_text())
    change = record["change"]
    assert record["answers"][change]["image"] >= record["change_after"] == 20
    before, after = (record["answers"][i]["status"] for i in (change - 1, change))
    for name in ("budget_tokens", "key_bits", "value_bits"):
        assert before[name] == record["settings"][f"cache.{name}"]
        assert after[name] == record["changes"][f"cache.{name}"]
    assert after["budget_tokens"] * 4 == before["budget_tokens"]
    assert after["cache_bytes"] < before["cache_bytes"] / 2


def test_a_node_that_cannot_start_ends_the_demo_with_its_reason(images, tmp_path):
    command = [*DEMO, "--output", tmp_path, "--input", images, "--weights", "no/such/file.pt"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert process.returncode == 1
    assert "the node ended with exit code 1" in process.stderr
    assert "no/such/file.pt" in process.stderr
    assert "Traceback" not in process.stderr


def test_bad_input_is_refused_before_the_node_starts(tmp_path):
    command = [*DEMO, "--output", tmp_path, "--input", tmp_path / "nothing"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert process.returncode == 2
    assert f"{tmp_path / 'nothing'} does not exist" in process.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_demo_and_its_node(images, tmp_path, number):
    command = [*DEMO, "--output", tmp_path, "--input", images, "--rate", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("playing"):
            break
    (node,) = children(process.pid)
    process.send_signal(number)
    assert process.wait(timeout=60) == 130
    assert not Path(f"/proc/{node}").exists()
    assert not (tmp_path / "report.html").exists()
