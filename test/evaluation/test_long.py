# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from xsvggt_ros import cli
from xsvggt_ros.config import StreamConfig
from xsvggt_ros.evaluation.long import COLUMNS, NOTED, Long, false_closures, run_long, table, ways
from xsvggt_ros.evaluation.plots import draw_long
from xsvggt_ros.memory import MIB
from xsvggt_ros.model import load_model
from xsvggt_ros.settings import changed

FRAMES = 20


def series(error: float, keys=(), frames: int = FRAMES):
    """Of errors that grow evenly to `error` degrees and units, 1 unit away and 2 MiB held all the time."""
    noted = dict.fromkeys(NOTED, np.zeros(frames)) | {"bytes": np.full(frames, 2.0 * MIB), "ms": np.full(frames, 5.0)}
    grown = np.linspace(0, error, frames)
    keys = np.array(keys or [0] * frames, float)
    more = {"rotation": grown, "distance": grown, "travelled": np.arange(frames) * 0.1, "away": np.ones(frames)}
    return noted | more | {"key": keys}


def long(kind="drift", frames=FRAMES):
    return Long(StreamConfig(dtype="float32", image_width=56), kind, frames, 4.0, "robot")


@pytest.fixture(scope="module")
def model():
    return load_model(long().config)


@pytest.fixture(scope="module")
def drift(tmp_path_factory):
    """A folder with the streams of 24 frames of one room, and these."""
    folder = tmp_path_factory.mktemp("drift")
    made = run_long(long(frames=24), range(3, 4), folder, 1)
    assert [path.name for path in folder.glob("*.npz")] == ["3.npz"]
    return folder, made


def test_the_table_has_means_errors_and_shares_of_the_same_streams():
    found = {seed: {"segments": series(error), "one cache": series(4 * error)} for seed, error in ((1, 2.0), (2, 6.0))}
    lines = table(found).splitlines()
    assert lines[0].split(" | ")[1:] == [*[*COLUMNS][:-1], f"{[*COLUMNS][-1]} |"]
    rotation = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1] for line in lines[2:]}
    assert rotation == {"segments": "2.0 ± 1.0", "one cache": "8.0 ± 4.0", "segments / one cache": "0.25 ± 0.00"}
    assert " 2.00 ± 0.00 | 5 ± 0 | 1.00 ± 0.00 |" in lines[2]


def test_a_cache_that_keeps_everything_is_followed_by_itself(model):
    full = replace(long(), config=changed(long().config, {"cache.policy": "full"}))
    assert list(ways(full, model)) == ["full cache"]
    assert list(ways(long(), model)) == ["segments", "one cache of their bytes", "one cache"]


def test_a_single_stream_has_no_standard_errors():
    assert "±" not in table({1: {"segments": series(2.0), "one cache": series(4.0)}})


@pytest.mark.parametrize(
    "second, false",
    [
        ([0] * 10 + [5] * 10, 0),  # the first room's last segment, then a new one
        ([0] * 10 + [5] * 5 + [0] * 5, 1),  # and then back at a keyframe of the first room
        ([0] * 20, 0),  # none begins there
        ([1] * 3 + [0] * 7 + [5] * 10, 0),  # one joined there that began in the first room
    ],
)
def test_a_room_taken_for_another_is_one_whose_segments_begin_at_the_others_keyframes(second, false):
    found = {1: {"segments": series(1.0, keys=[0] * 10 + [1] * 10 + second, frames=40)}}
    assert false_closures(found, 40) == false


def test_the_ways_that_are_compared_hold_the_same_bytes(model):
    streams = ways(long(), model)
    frame = np.random.default_rng(0).integers(0, 256, (84, 112, 3), dtype=np.uint8)
    for stream in streams.values():
        for _ in range(3):
            stream.step(frame)
    most = streams["segments"].most_nbytes()
    assert 0.9 * most < streams["one cache of their bytes"].most_nbytes() <= most
    assert streams["one cache"].most_nbytes() < most
    assert list(ways(long("lap"), model)) == ["segments", "segments, no loops"]
    assert list(ways(long("endless"), model)) == list(ways(long("alike"), model)) == ["segments"]


def test_streams_that_are_there_are_not_made_again_and_may_be_cut(drift, tmp_path, monkeypatch):
    folder, made = drift
    monkeypatch.setattr(
        "xsvggt_ros.evaluation.long.in_processes", lambda work, seeds, *_: iter([]) if not seeds else 1 / 0
    )
    again = run_long(long(frames=FRAMES), range(3, 4), folder, 1)
    assert list(again[3]) == ["segments", "one cache of their bytes", "one cache"]
    for way, columns in again[3].items():
        for name, x in columns.items():
            np.testing.assert_array_equal(x, made[3][way][name][:FRAMES])
    assert np.isfinite([*again[3]["segments"].values()]).all()
    draw_long(tmp_path / "errors.png", again)
    assert (tmp_path / "errors.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="other settings"):
        run_long(Long(StreamConfig(image_width=56), "drift", FRAMES, 8.0, "robot"), range(3, 4), folder, 1)


def test_the_command_writes_a_table_of_rooms_that_look_alike(tmp_path, capsys):
    flags = ["--frames", "20", "--seeds", "3:4", "--workers", "1", "--image_width", "56", "--dtype", "float32"]
    assert cli.main(["eval", "--long", "alike", *flags, "--output", str(tmp_path)]) == 0
    assert "of them took the second room for the first" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "settings.json").read_text())["kind"] == "alike"
    assert "1 streams of 20 frames" in capsys.readouterr().out


def test_the_tables_of_two_lengths_stand_beside_each_other(drift, tmp_path):
    shutil.copytree(drift[0], tmp_path, dirs_exist_ok=True)
    settings = ["--seeds", "3:4", "--workers", "1", "--image_width", "56", "--dtype", "float32"]
    for frames in ("24", "20", "24"):
        flags = ["--frames", frames, *settings, "--output", str(tmp_path)]
        assert cli.main(["eval", "--long", "drift", *flags]) == 0
    for name, frames in (("table.md", 24), ("table_20.md", 20)):
        assert f"1 streams of {frames} frames" in (tmp_path / name).read_text()
    assert {path.name for path in tmp_path.glob("*.png")} == {"errors.png", "errors_20.png"}


@pytest.mark.parametrize(
    "flags, why",
    [
        ([], "add --output"),
        *((["--frames", frames], "at least 20 frames, an even number") for frames in ("-1", "0", "1", "19", "21")),
    ],
)
def test_what_cannot_be_compared_is_refused(flags, why, capsys):
    assert cli.main(["eval", "--long", "lap", *flags]) == 2
    assert why in capsys.readouterr().err


def test_a_run_that_was_refused_leaves_nothing_that_refuses_the_next(tmp_path):
    small = changed(long().config, {"cache.budget_mib": 0.5})
    with pytest.raises(ValueError, match="keyframes take"):
        run_long(Long(small, "endless", FRAMES, 4.0, "robot"), range(3, 4), tmp_path, 1)
    assert list(run_long(Long(long().config, "endless", FRAMES, 4.0, "robot"), range(3, 4), tmp_path, 1)) == [3]
