# SPDX-License-Identifier: Apache-2.0
"""`xsvggt live` without a browser."""

import math
import signal
import time
from threading import Event
from types import SimpleNamespace

import pytest

pytest.importorskip("viser", reason="the extra `live` is not installed")

from support.live_page import LiveProcess, wait_until
from support.recordings import write_folder

from xsvggt_ros.cli import main
from xsvggt_ros.config import NodeConfig
from xsvggt_ros.live import command as module
from xsvggt_ros.live.command import POLL_S, Show
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.topics import IMAGE
from xsvggt_ros.replay.sources import Reading, open_source


def nothing_to_check(config):
    pass


def show(check=nothing_to_check):
    """With no pipeline: for what needs none."""
    return Show(None, NodeConfig(), Event(), check)


def test_max_frames_end_it_and_the_page_stays(tmp_path):
    images = write_folder(tmp_path / "images", 6)
    process = LiveProcess(images, tmp_path / "output.txt", "--rate", "100", "--max-frames", "2", "--record",
                          str(tmp_path / "scene.html"))  # fmt: skip
    wait_until(lambda: "no more images; the page stays" in process.output(), process.output)
    assert process.end() == 0
    assert "__VISER_EMBED_DATA__" in (tmp_path / "scene.html").read_text()
    assert f"scene.html: {(tmp_path / 'scene.html').stat().st_size / 1e6:.1f} MB" in process.output()


def test_what_ctrl_c_ends_has_not_ended_by_itself(tmp_path):
    process = LiveProcess(write_folder(tmp_path / "images", 600), tmp_path / "output.txt", "--rate", "10")
    assert process.end() == 0
    assert "no more images" not in process.output()


@pytest.fixture
def alarm():
    """alarm(seconds, do): does it then, in a signal's handler."""
    before = signal.getsignal(signal.SIGALRM)

    def at(seconds, do):
        signal.signal(signal.SIGALRM, lambda *_: do())
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield at
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_signal_whose_handler_comes_late_is_no_wait_for_ever(alarm):
    """It comes while the page's wishes are waited for, and is done with after that: so it is on busy cores."""
    shown = show()

    def late():
        shown._stop.set()
        alarm(30.0, lambda: pytest.fail("it has been told to stop, and waits"))
        time.sleep(2 * POLL_S)

    alarm(POLL_S / 2, late)
    shown.wait(math.inf)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", "192.0.2.1"], "viewer_host '192.0.2.1' is no address of this machine"),
        (["--record", "IMAGES/there.html"], "cannot record to"),
        (["--record", "IMAGES/no/folder.html"], "cannot record to"),
    ],
)
def test_what_cannot_be_served_is_said_before_the_weights_are_read(tmp_path, capsys, flags, said):
    images = write_folder(tmp_path / "images", 1)
    (images / "there.html").write_text("mine")
    flags = [flag.replace("IMAGES", str(images)) for flag in flags]
    assert main(["live", str(images), "--port", "0", "--weights", "no/such/file.safetensors", *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and "weights" not in error
    assert (images / "there.html").read_text() == "mine"


def test_a_start_that_fails_leaves_no_empty_recording(tmp_path, capsys):
    images, record = write_folder(tmp_path / "images", 1), tmp_path / "scene.html"
    assert main(["live", str(images), "--port", "0", "--weights", "no/such/file", "--record", str(record)]) == 2
    assert "no/such/file" in capsys.readouterr().err
    assert not record.exists()


def test_what_the_stream_could_not_change_to_is_refused_and_not_kept():
    def check(config):
        raise ValueError(f"no memory for {config.cache.budget_frames} frames")

    shown = show(check)
    before = shown.owner().config()
    with pytest.raises(ValueError, match=r"no memory for 64\.0 frames"):
        shown.owner().change({"cache.budget_frames": 64.0})
    assert shown.owner().config() == before


def test_what_is_asked_for_after_the_end_is_refused():
    shown = show()
    shown._pipeline = SimpleNamespace(flush=lambda: ())
    shown.play(iter(()), None, None)
    owner = shown.owner()
    assert owner.recording() == "ended, 0 images"
    before = owner.config()
    for ask in (owner.actions["Reset"], owner.actions["Pause"], lambda: owner.change({"cache.budget_frames": 8.0})):
        with pytest.raises(ValueError, match="the recording has ended"):
            ask()
    assert owner.config() == before and not owner.paused()


def test_of_pause_and_continue_there_is_the_one_that_is_of_use():
    owner = show().owner()
    assert owner.buttons() == ("Reset", "Pause", "Save map") and not owner.paused()
    for _ in range(2):  # of two browsers
        owner.actions["Pause"]()
    assert owner.buttons() == ("Reset", "Continue", "Save map") and owner.paused() == "images wait"
    owner.actions["Continue"]()
    assert owner.buttons() == ("Reset", "Pause", "Save map") and not owner.paused()


def test_settings_of_obstacles_which_it_does_not_make_are_neither_taken_nor_shown(capsys):
    with pytest.raises(SystemExit):
        main(["live", "images", "--obstacles.voxel", "0.1"])
    assert "unrecognized arguments: --obstacles.voxel" in capsys.readouterr().err
    assert not any(setting.name.startswith("obstacles.") for setting in show().owner().settings)


def test_where_the_stream_writes_is_not_for_the_page():
    names = {setting.name for setting in show().owner().settings}
    assert "cache.budget_frames" in names and "viewer_refresh" in names and "loop.folder" not in names


def test_a_gap_of_the_stamps_is_not_waited_for_whole(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.2)
    with open_source(write_folder(tmp_path / "images", 3), Reading(rate=0.01)) as source:
        started = time.monotonic()
        stamps = [stamp_ns(message.header) for topic, message in show()._paced(iter(source)) if topic == IMAGE]
    assert [stamp / 1e9 for stamp in stamps] == [0, 100, 200]
    assert 0.4 <= time.monotonic() - started < 50
    assert caplog.text.count("the next image comes 100 s after the last") == 2
