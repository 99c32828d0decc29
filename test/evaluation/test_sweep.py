# SPDX-License-Identifier: Apache-2.0
"""A sweep compares like with like, goes on where it was stopped, and its statistics are right."""

import csv
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from xsvggt_ros.cache.budget import global_nbytes
from xsvggt_ros.cache.policies import make_policy
from xsvggt_ros.cli import main
from xsvggt_ros.config import CacheConfig, StreamConfig
from xsvggt_ros.evaluation import sweep as sweeps
from xsvggt_ros.evaluation.plots import draw_accuracy
from xsvggt_ros.evaluation.sweep import (
    FULL,
    PRUNING,
    ROWS,
    Row,
    Score,
    Sweep,
    full_nbytes,
    rows_like,
    run_sweep,
    score_rows,
)
from xsvggt_ros.evaluation.table import Estimate, Table, write_table
from xsvggt_ros.model import load_model
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.stream import GeometryStream, cache_shape

CONFIG = StreamConfig(weights="random", image_width=56, dtype="float32")
SWEEP = Sweep(CONFIG, frames=6)
SHAPE = cache_shape(MODELS["demo"], 42, 56, torch.float32, torch.float32)
SCORE = Score(0.3, 0.6, 0.2, 5.0, 0.1, 1.0, 2**20, 2**21, 25.0)


@pytest.fixture(scope="module")
def model():
    return load_model(CONFIG)


def scores(seed):
    """Different in every row and stream."""
    rng = np.random.default_rng(seed)
    return {row.key: Score(*(np.array(list(vars(SCORE).values())) * rng.uniform(0.9, 1.1, 9))) for row in ROWS}


def test_rows_are_those_that_the_table_promises():
    assert len({row.key for row in ROWS}) == len(ROWS)
    unlimited = CacheConfig(policy="full", key_bits=16, value_bits=16, camera_window=0)
    assert replace(FULL.cache(SHAPE, 0), budget_tokens=0) == unlimited
    keys = {row.key for row in ROWS}
    for policy in PRUNING:
        assert f"{policy}, bytes / 20, 2/1 bits" in keys
    assert {row.cache(SHAPE, 0).camera_window for row in ROWS} == {0}
    random = Row("x", "random", 4).cache(SHAPE, 7)
    assert (random.budget_tokens, random.seed) == (68, 7)


@pytest.mark.parametrize("policy", PRUNING)
@pytest.mark.parametrize("settings", [(), (("per_head", True),), (("quantizer", "channel"),)])
@pytest.mark.parametrize("bits", [(16, 16), (4, 2), (1, 1)])
def test_equal_bytes_are(policy, settings, bits):
    """As many tokens as fit, and no more, but for what a policy needs at least."""
    row = Row("x", policy, fewer=20, bits=bits, settings=settings)
    config = row.cache(SHAPE, 0)
    limit = full_nbytes(SHAPE, 48) / 20
    assert limit == 48 * 17 * SHAPE.layers * (2 * SHAPE.heads * 64 * SHAPE.dtype.itemsize + 8) / 20
    policy = make_policy(config, SHAPE)
    if config.budget_tokens > policy.floor():
        each = [global_nbytes(SHAPE, config, policy, [n] * SHAPE.layers) for n in (config.budget_tokens, 10_000)]
        assert 0.9 * limit < each[0] <= limit < each[1]


def test_rows_can_be_picked():
    picked = rows_like(r"^full, all, \d/1 bits|chunks")
    assert [row.key for row in picked] == [
        "full, all, 16/16 bits",
        "full, all, 2/1 bits",
        "full, all, 1/1 bits",
        "coreset, chunks of 4, bytes / 20, 2/1 bits",
    ]
    for pattern, reason in (("best", "is in no row's name; they are: full, all"), ("(", "no regular expression")):
        with pytest.raises(ValueError, match=reason):
            rows_like(pattern)


def test_a_stream_is_scored_on_its_second_half_against_the_truth(model):
    row = Row("chunks", "xstream", 4, settings=(("chunk", 4),))  # the last of them shorter
    found = score_rows(replace(SWEEP, rows=(FULL, row)), 100, model)
    assert found.keys() == {FULL.key, row.key}
    (sequence,) = sweeps.room_sequences(range(100, 101), 6, *sweeps.IMAGE_SIZE, rate=4.0)
    stream = GeometryStream(replace(CONFIG, cache=FULL.cache(SHAPE, 100)), model)
    frames = [stream.step(truth.image) for truth in sequence.frames]
    truth = sequence.frames[0]
    rows, columns = np.indices(truth.depth.shape)
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(truth.intrinsics).T
    unit = (np.linalg.norm(rays, axis=-1) * truth.depth).mean()
    centres = np.array([(np.linalg.inv(truth.T_world_cam) @ t.T_world_cam)[:3, 3] for t in sequence.frames]) / unit
    distance = [np.linalg.norm(f.T_first_cam[:3, 3] - c) for f, c in zip(frames, centres, strict=True)]
    assert found[FULL.key].ate == pytest.approx(np.sqrt(np.mean(np.square(distance[3:]))), rel=1e-4)
    assert found[FULL.key].cache_bytes == frames[-1].status.cache_bytes > found[FULL.key].global_bytes
    assert found[row.key].global_bytes < found[FULL.key].global_bytes


def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch):
    asked = []

    def in_processes(work, seeds, config, workers):
        for seed in seeds:
            asked.append(seed)
            if len(asked) == 3:
                raise KeyboardInterrupt
            yield seed, scores(seed)

    monkeypatch.setattr(sweeps, "in_processes", in_processes)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(SWEEP, range(4), tmp_path, 1)
    found = run_sweep(SWEEP, range(4), tmp_path, 1)
    assert asked == [0, 1, 2, 2, 3]
    assert found == {seed: scores(seed) for seed in range(4)}
    run_sweep(SWEEP, range(1, 3), tmp_path, 1)
    assert len(asked) == 5
    with pytest.raises(ValueError, match=r"made with other settings \(rate\): choose another --output"):
        run_sweep(replace(SWEEP, rate=5.0), range(4), tmp_path, 1)


def test_differences_are_paired(tmp_path):
    assert Estimate.of(np.array([1.0, 2.0, 6.0])) == Estimate(3.0, pytest.approx(np.sqrt(7 / 3)))
    assert Estimate.of(np.array([1.0])).text(".1f") == "1.0"
    found = {seed: {row.key: replace(SCORE, abs_rel=0.1 * seed) for row in ROWS} for seed in (1, 2, 3)}
    worse = ROWS[2]
    for seed in found:
        found[seed][worse.key] = replace(SCORE, abs_rel=0.1 * seed + 0.02, step_ms=50.0)
    line = Table(found).lines[2]
    assert line.mean["abs_rel"] == Estimate(pytest.approx(0.22), pytest.approx(0.1 / np.sqrt(3)))
    assert line.difference["abs_rel"] == Estimate(pytest.approx(0.02), pytest.approx(0, abs=1e-12))
    assert line.mean["step_ratio"].mean == 2.0


def test_tables_and_picture(tmp_path):
    table = Table({seed: scores(seed) for seed in range(5)})
    write_table(table, tmp_path, "xsvggt eval --sweep", SWEEP.facts("0"))
    draw_accuracy(tmp_path / "accuracy.png", table)
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert len(lines) == len(ROWS) + 1 and len({line.count(",") for line in lines}) <= 2  # a name may have a comma
    rows = {(r["cache"], r["budget"], r["key_bits"], r["value_bits"]): r for r in csv.DictReader(lines)}
    ate = {name: float(rows[name, "bytes / 20", "2", "1"]["ate"]) for name in ("xstream", "random")}
    compared = next(d for row, d in table.minus_control() if (row.name, row.fewer) == ("xstream", 20))
    assert compared["ate"].mean == pytest.approx(ate["xstream"] - ate["random"])
    text = (tmp_path / "table.md").read_text()
    assert (
        text.count("\n| ") == len(ROWS) + len([*table.minus_control()]) + 2
        and "Streams of 6 frames at 4 Hz, 5 in all, of rooms 0 to 4" in text
    )
    assert text.startswith("`xsvggt eval --sweep`\n")
    assert f"\n| xstream | bytes / 20 | 2/1 | {compared['abs_rel'].text('+.4f')} | " in text
    best = table.frontier("ate")
    bytes_of, error = ([line.mean[name].mean for line in best] for name in ("global_bytes", "ate"))
    assert bytes_of == sorted(bytes_of) and error == sorted(error, reverse=True) and len(best) > 1
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000


KINDS = ("--tracks", "--obstacles", "--enlarge", "--sweep", "--long lap")


@pytest.mark.parametrize("flags", [*combinations(KINDS, 2)])
def test_one_kind_of_evaluation_is_made_at_a_time(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["eval", *" ".join(flags).split()])
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.slow
def test_command_with_processes(tmp_path, capsys):
    arguments = ["eval", "--sweep", "--seeds", "0:2", "--frames", "4", "--workers", "2", "--output", str(tmp_path)]
    arguments += ["--weights", "random", "--image_width", "56", "--rows", "full, all"]
    assert main(arguments) == 0
    assert "| full | all | 16/16 |" in capsys.readouterr().out
    assert len((tmp_path / "streams.csv").read_text().splitlines()) == 2 * len(rows_like("full, all")) + 1
    assert (tmp_path / "accuracy_vs_bytes.png").exists() and (tmp_path / "table.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--sweep", "add --output DIR"),
        ("tum --sweep --output o", "leave DATASET, ROOT"),
        ("--sweep --output o --cache.policy full", "leave cache.policy out"),
        ("--sweep --output o --frames 3 --weights random", "frames must be at least 4"),
        ("--sweep --output o --workers 0", "workers must be at least 1"),
        ("--frames 0", "frames, stride and workers must be at least 1"),
        ("tum", "give its folder as ROOT"),
        ("--obstacles --points", "--obstacles does not go by all that is given: leave --points, --output, --align out"),
        ("--tracks --track_groups 1 --output o", "--tracks does not go by all that is given: leave --points, --output"),
        ("--enlarge --fov 90", "leave DATASET, ROOT, --stride, --points, --fov, --align, --output out"),
        ("--long lap --output o --align none", "--long does not go by all that is given"),
    ],
)
def test_what_cannot_be_evaluated_is_said(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *arguments.split()]) == 2
    assert message in capsys.readouterr().err
