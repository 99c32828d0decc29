# SPDX-License-Identifier: Apache-2.0
"""The bench reports every stage; how long they take is the machine's business."""

import json
import math

import pytest
import torch

from xsvggt_ros.cli import main
from xsvggt_ros.evaluation import bench
from xsvggt_ros.stream import GeometryStream

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


def test_table_has_a_line_per_stage(capsys):
    assert main(ARGUMENTS) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("cache_bytes", "preprocess", "step", "GEMM float32"):
        assert sum(line.startswith(name) for line in lines) == 1


def test_warm_up_steps_are_not_measured(monkeypatch, capsys):
    steps = []
    step = GeometryStream.step
    monkeypatch.setattr(GeometryStream, "step", lambda *arguments: steps.append(0) or step(*arguments))
    main(ARGUMENTS)
    assert len(steps) == 4


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
    assert bench.gemm_rate(torch.device("cpu"), torch.float32) == 2 * math.prod(bench.GEMM) / seconds
    assert len(products) == repeats


def test_bad_numbers_of_steps_are_refused(capsys):
    assert main(["bench", "--frames", "0"]) == 2
    assert "frames must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--frames", "many"])
