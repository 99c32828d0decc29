# SPDX-License-Identifier: Apache-2.0
"""The bench reports every stage; how long they take is the machine's business."""

import json

import pytest
import torch

from xsvggt_ros.cli import main
from xsvggt_ros.config import StreamConfig
from xsvggt_ros.evaluation import bench
from xsvggt_ros.model import load_model
from xsvggt_ros.model.compact import COMPACT
from xsvggt_ros.stream import GeometryStream

CONFIG = StreamConfig(dtype="float32", device="cpu")
ARGUMENTS = [
    "bench", "--frames", "3", "--warm-up", "1", "--image_width", "56", "--cache.budget_tokens", "34",
    "--dtype", "float32",
]  # fmt: skip


def test_json_has_every_stage_and_what_the_cache_holds(capsys):
    assert main([*ARGUMENTS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    seconds = found["seconds"]
    assert set(seconds) == {"preprocess", "encoder", "aggregator", "camera", "dense", "step"}
    assert all(0 < timing["minimum"] <= timing["median"] for timing in seconds.values())
    assert seconds["step"]["minimum"] > sum(t["minimum"] for stage, t in seconds.items() if stage != "step")
    assert found["dtype"] == "float32"
    assert found["gemm_flops"] > 0
    assert found["tokens"] == found["budget_tokens"] == 34
    assert found["weight_bits"] == 16
    assert found["step_of_gemm"] == pytest.approx(seconds["step"]["median"] * found["gemm_flops"] / found["flop"])
    linear = sum(tensor.numel() for name, tensor in load_model(CONFIG).state_dict().items() if COMPACT.match(name))
    assert found["flop"] > 2 * 17 * linear  # of 17 tokens a frame, beside which there is attention and the heads
    assert found["launches"] > 500
    assert found["bytes_moved"] > 4 * linear
    assert found["peak_bytes"] > found["cache_bytes"]


def test_table_has_a_line_per_stage(capsys):
    assert main(ARGUMENTS) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("cache_bytes", "peak_bytes", "preprocess", "step", "GEMM float32", "flop", "launches", "bytes_moved"):
        assert sum(line.startswith(name) for line in lines) == 1
    assert "17x192x768" in next(line for line in lines if line.startswith("GEMM"))
    assert not [line for line in lines if "not full" in line]


def test_a_cache_that_is_not_full_is_said_with_the_steps_that_fill_it(capsys):
    main([*ARGUMENTS, "--cache.budget_tokens", "170"])
    assert "the cache is not full yet: steps take longer with --warm-up 10, which fills it" in capsys.readouterr().out


def test_images_that_are_not_taken_in_never_fill_the_cache(capsys):
    main([*ARGUMENTS, "--cache.budget_tokens", "170", "--cache.intake", "moved", "--cache.intake_degrees", "180"])
    said = capsys.readouterr().out
    assert "not full yet: it took in 2 of 4 images; steps take longer with --cache.intake every" in said


def test_warm_up_steps_are_not_measured(monkeypatch, capsys):
    steps = []
    step = GeometryStream.step
    monkeypatch.setattr(GeometryStream, "step", lambda *arguments: steps.append(0) or step(*arguments))
    main(ARGUMENTS)
    assert len(steps) == 4 + 1  # the last is not timed: its operators are counted


@pytest.mark.parametrize(("seconds", "repeats"), [(0.05, 20), (0.4, 3), (3.0, 2), (10.0, 1)])
def test_the_matrix_product_is_repeated_for_a_second_and_three_times_unless_it_takes_long(
    monkeypatch, seconds, repeats
):
    products = []

    class Timer:
        def __init__(self, device):
            pass

        def __call__(self, stage):
            products.append(stage)

        def seconds(self):
            return {"gemm": seconds}

    monkeypatch.setattr(bench, "StageTimer", Timer)
    assert bench.gemm_rate(torch.device("cpu"), torch.float32, (3, 5, 7)) == 2 * 3 * 5 * 7 / seconds
    assert len(products) == repeats


def test_bad_numbers_of_steps_are_refused(capsys):
    assert main(["bench", "--frames", "0"]) == 2
    assert "frames must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--frames", "many"])
