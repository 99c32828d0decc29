# SPDX-License-Identifier: Apache-2.0
"""`xsvggt batch` on a Ray of its own: what is asked for is there, once, whatever happens on the way."""

import csv
import io
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Thread

import pytest
from support.batches import FLAGS, assert_same, replayed
from support.full_disk import limited
from support.paths import ROOT
from support.recordings import image_bag, write_folder
from tqdm import tqdm

from xsvggt_ros.batch import command
from xsvggt_ros.batch.fleet import Again, connected
from xsvggt_ros.batch.recordings import Job, Record
from xsvggt_ros.batch.summary import Outcome
from xsvggt_ros.batch.worker import Cause, Failure, Progress
from xsvggt_ros.cli import main

LONG = 24  # images: time enough to do something in the middle
MARK = "XSVGGT_BATCH_TEST"  # in the environment of all that a command starts


@pytest.fixture(scope="module")
def ray():
    if find_spec("ray") is None:
        pytest.skip("needs the extra batch")
    with connected(None) as ray:
        yield ray


@pytest.fixture
def batch(ray, monkeypatch):
    """Runs the command on the module's Ray."""
    monkeypatch.setattr(command, "connected", lambda address: nullcontext(ray))
    return lambda *arguments: main(["batch", *map(str, arguments), *FLAGS])


@pytest.fixture
def recordings(tmp_path):
    """One name twice, a bag, and one that cannot be read."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no image")
    rooms = [write_folder(tmp_path / place / "room", count) for place, count in (("a", LONG), ("b", 6))]
    return [*rooms, image_bag(tmp_path / "bag", 6), tmp_path / "bad"]


def table(output):
    with (output / "summary.csv").open() as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def writer(folder):
    """Process id of who has a file of that folder open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink().is_relative_to(folder):
                return int(link.parts[2])
        except OSError:
            continue
    return 0


def in_the_middle(folder, do, wait=120):
    """Calls do() once a replay has written three images into the folder."""
    end = time.monotonic() + wait
    while not (folder / "depth" / "000002.png").exists():
        assert time.monotonic() < end, f"nothing comes into {folder}"
        time.sleep(0.01)
    do()


def test_its_ray_is_for_nobody_else(ray):
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    assert os.environ["RAY_AUTH_MODE"] == "token" and ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")


def test_a_killed_worker_an_unreadable_recording_and_a_name_twice(batch, recordings, tmp_path, caplog):
    output = tmp_path / "out"
    killed = []

    def kill():
        killed.append(writer(output / ".a_room.0.unfinished"))
        os.kill(killed[0], signal.SIGKILL)

    killer = Thread(target=in_the_middle, args=(output / ".a_room.0.unfinished", kill))
    killer.start()
    assert batch(*recordings, recordings[1], "--output", output, "--workers", 2) == 1
    killer.join()
    assert killed[0] not in (0, os.getpid())
    assert "a_room: its process ended" in caplog.text and "it is tried again" in caplog.text
    assert sorted(path.name for path in output.iterdir()) == [
        "a_room", "b_room", "bag", "summary.csv", "summary.html"]  # fmt: skip
    for name, recording in zip(("a_room", "b_room", "bag"), recordings[:3], strict=True):
        assert_same(output / name, replayed(recording, tmp_path / "alone" / name))
    rows = table(output)
    assert {name: row["state"] for name, row in rows.items()} == {
        "a_room": "done", "b_room": "done", "bad": "failed", "bag": "done"}  # fmt: skip
    assert "has no image that can be used" in rows["bad"]["said"]
    assert [rows[name]["frames"] for name in ("a_room", "b_room", "bag", "bad")] == [str(LONG), "6", "6", ""]
    page = (output / "summary.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 and "3 of 4" in page and "http" not in page


def started(output, *arguments):
    """The command in a process group of its own, as a terminal starts it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", MARK: str(output)}
    return subprocess.Popen(
        [sys.executable, "-m", "xsvggt_ros.cli", "batch", *map(str, arguments), "--output", str(output), *FLAGS],
        cwd=ROOT,
        env=environment,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def left_of(output):
    """Command lines of the processes that a command has started and not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={output}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes())
        except OSError:
            continue
    return [line for line in found if line]  # of one that only waits to be waited for: none


def test_ctrl_c_ends_all_and_the_same_command_goes_on(batch, tmp_path, capsys):
    output = tmp_path / "out"
    recordings = [write_folder(tmp_path / f"room{i}", count) for i, count in enumerate((3, LONG, 3))]
    before = set(Path("/tmp").glob("xsvggt_ray_*"))
    running = started(output, *recordings, "--workers", 1)
    in_the_middle(output / ".room1.0.unfinished", lambda: os.killpg(running.pid, signal.SIGINT))
    out, err = running.communicate(timeout=120)
    assert running.returncode == 130, err
    assert "1 of 3 recordings done" in out and "interrupted; the same command goes on" in err
    assert "Traceback" not in err and not left_of(output)
    assert set(Path("/tmp").glob("xsvggt_ray_*")) <= before
    assert sorted(path.name for path in output.iterdir()) == ["room0", "summary.csv", "summary.html"]
    assert [row["state"] for row in table(output).values()] == ["done", "not done", "not done"]
    first = {path: path.stat().st_mtime_ns for path in (output / "room0").rglob("*")}

    capsys.readouterr()
    assert batch(*recordings, "--output", output, "--workers", 1) == 0
    assert "3 of 3 recordings done, 1 before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (output / "room0").rglob("*")} == first
    assert_same(output / "room1", replayed(recordings[1], tmp_path / "alone"))
    assert [row["state"] for row in table(output).values()] == ["done"] * 3


@pytest.fixture
def disk(tmp_path):
    """A small one that is real: memory, mounted as a disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=800k", "none", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"may not mount: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_on_a_full_disk_what_is_done_is_whole_and_no_more_is_begun(batch, disk, tmp_path, caplog, capsys):
    recordings = [write_folder(tmp_path / f"room{i}", count) for i, count in enumerate((3, LONG, 3))]
    assert batch(*recordings, "--output", disk, "--workers", 1) == 1
    full = f"the disk of {disk} is full (No space left on device): free space, and start it again"
    assert f"room1: {full}" in caplog.text
    assert "1 of 3 recordings done" in capsys.readouterr().out
    assert sorted(path.name for path in disk.iterdir()) == ["room0", "summary.csv", "summary.html"]
    assert [row["state"] for row in table(disk).values()] == ["done", "failed", "not done"]
    assert_same(disk / "room0", replayed(recordings[0], tmp_path / "alone"))


@pytest.fixture
def done(tmp_path):
    """Folder of outputs, of which that of one recording is there; neither name is UTF-8."""
    recording, output = (Path(os.fsdecode(bytes(tmp_path) + name)) for name in (b"/room\xff", b"/out\xff"))
    recording.mkdir()
    (output / recording.name).mkdir(parents=True)
    Record(str(recording), {}, 2, 0, 1, 1.0, 1000, 1, []).write(output / recording.name)
    return recording, output


class TestWithoutWork:
    """What costs no process."""

    @pytest.fixture(autouse=True)
    def no_ray(self, monkeypatch):
        monkeypatch.setattr(command, "connected", lambda address: pytest.fail("Ray was started"))

    def run(self, *arguments):
        return main(["batch", *map(str, arguments)])

    @pytest.mark.parametrize(
        ("flags", "reason"),
        [
            (["--workers", "0"], "workers must be at least 1, got 0"),
            (["--threads", "0"], "threads must be at least 1, got 0"),
            (["--stride", "0"], "stride must be at least 1, got 0"),
            (["--max-frames", "0"], "max-frames must be at least 1, got 0"),
            (["--reference", "/odom"], "scale.source none does not use a reference topic: leave it out"),
            (["--cache.budget_tokens", "-1"], "cache.budget_tokens must be between 0"),
        ],
    )
    def test_what_holds_for_no_recording_is_refused_at_once(self, tmp_path, capsys, flags, reason):
        (tmp_path / "a").mkdir()
        assert self.run(tmp_path / "a", "--output", tmp_path / "out", *flags) == 2
        assert reason in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_an_input_that_is_not_there(self, tmp_path, capsys):
        assert self.run(tmp_path / "a", "--output", tmp_path / "out") == 2
        assert "does not exist" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_a_name_that_is_no_utf_8_is_shown_escaped(self, done, capsys):
        recording, output = done
        assert self.run(recording, "--output", output) == 0
        assert "out\\udcff/summary.html" in capsys.readouterr().out
        assert list(table(output)) == ["room\\udcff"]
        assert "<b>room\\udcff</b>" in (output / "summary.html").read_text()

    def test_where_there_is_no_room_for_the_summary_what_is_done_is_said(self, done, capsys, caplog):
        recording, output = done
        with limited(0):
            assert self.run(recording, "--output", output) == 1
        assert capsys.readouterr().out.strip() == "1 of 1 recordings done, 1 before"
        assert "summary.csv and summary.html could not be written (File too large)" in caplog.text
        assert [path.name for path in output.iterdir()] == [recording.name]
        assert self.run(recording, "--output", output) == 0 and len(table(output)) == 1

    def test_with_other_threads_the_batch_does_not_go_on(self, tmp_path, capsys):
        (tmp_path / "room").mkdir()
        (tmp_path / "out" / "room").mkdir(parents=True)
        Record(str(tmp_path / "room"), {}, 2, 0, 1, 1.0, 1000, 1, []).write(tmp_path / "out" / "room")
        assert self.run(tmp_path / "room", "--output", tmp_path / "out", "--threads", 2) == 2
        assert "was made with other settings (threads: the default, now 2)" in capsys.readouterr().err

    def test_without_ray_the_extra_is_named(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        assert self.run(tmp_path, "--output", tmp_path / "out") == 2
        assert (
            capsys.readouterr().err.strip()
            == "xsvggt batch: batch needs Ray: pip install '.[batch]' in this package's source"
        )

    def test_a_recording_that_breaks_off_is_told_from_whole_ones(self, done, capsys):
        recording, output = done
        self.run(recording, "--output", output)
        assert "incomplete</" not in (output / "summary.html").read_text()
        (output / "cut").mkdir()
        Record("/cut.mcap", {}, 2, 0, 1, 1.0, 1000, 1, [], "it ends early").write(output / "cut")
        capsys.readouterr()
        assert self.run(recording, "--output", output) == 0
        assert capsys.readouterr().out.startswith("1 of 1 recordings done, 1 before; 1 more in the folder\n")
        assert [row["state"] for row in table(output).values()] == ["incomplete", "done"]
        page = (output / "summary.html").read_text()
        assert '<b>cut</b> <b class="amber">incomplete</b>' in page
        assert '<dt>of them incomplete</dt><dd class="amber">1</dd>' in page and "2 of 2" in page

    def test_a_recording_that_breaks_off_is_warned_of(self, caplog):
        jobs = [Job(name, Path("/", name)) for name in ("cut", "whole")]
        records = [
            Record(str(job.recording), {}, 2, 0, 1, 1.0, 1000, 1, [], "it ends" * (job.name == "cut")) for job in jobs
        ]
        outcome = Outcome(jobs, {})
        command._follow(iter(zip(jobs, records, strict=True)), outcome)
        assert [r.message for r in caplog.records] == ["cut: it ends; what could be read is done"]
        assert outcome.settled == 2 and not outcome.failed

    def test_a_terminal_shows_how_far_all_are(self, monkeypatch):
        jobs = {name: Job(name, Path("/", name)) for name in "abcd"}
        events = [
            ("a", Progress(20, 40), "0.5/4", "20 of 40 frames"),
            ("b", Progress(10, 100), "0.6/4", "30 of 140 frames"),
            ("a", Again("lost"), "0.1/4", "10 of 100 frames"),
            ("c", Progress(5, None), "0.1/4", "15 frames"),
            ("c", Record("/c", {}, 30, 0, 1, 1.0, 1000, 1, []), "1.1/4", "40 of 130 frames"),
            ("d", Failure(Cause.RECORDING, "damaged"), "2.1/4", "40 of 130 frames"),
        ]
        terminal = io.StringIO()
        terminal.isatty = lambda: True
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(command, "tqdm", partial(tqdm, mininterval=0, ncols=100))
        command._follow(((jobs[name], event) for name, event, *_ in events), Outcome([*jobs.values()], {}))
        shown = re.findall(r"(\d\.\d/4) \[[^\]]*, (\d[^,\]]* frames)\]", terminal.getvalue())
        assert list(dict.fromkeys(shown)) == [(n, frames) for *_, n, frames in events]

    def test_a_folder_of_recordings_is_refused_at_once(self, tmp_path, capsys):
        for name in ("a", "b"):
            image_bag(tmp_path / "recs" / name, 1)
        assert self.run(tmp_path / "recs", "--output", tmp_path / "out") == 2
        assert f"recs holds recordings (a, b): give one of them, or {tmp_path}/recs/* to" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
