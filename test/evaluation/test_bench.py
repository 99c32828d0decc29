# SPDX-License-Identifier: Apache-2.0
"""The bench reports every stage; how long they take is the machine's business."""

import json

import pytest

from xsvggt_ros.cli import main
from xsvggt_ros.stream import GeometryStream

ARGUMENTS = ["bench", "--frames", "3", "--warm-up", "1", "--image_width", "56", "--cache.budget_tokens", "34"]


def test_json_has_every_stage_and_what_the_cache_holds(capsys):
    assert main([*ARGUMENTS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    seconds = found["seconds"]
    assert set(seconds) == {"preprocess", "encoder", "aggregator", "camera", "dense", "step"}
    assert all(0 < timing["minimum"] <= timing["median"] for timing in seconds.values())
    assert seconds["step"]["minimum"] > sum(t["minimum"] for stage, t in seconds.items() if stage != "step")
    assert found["gemm_flops"]["bf16"] > 0
    assert found["gemm_flops"]["fp32"] > 0
    assert found["tokens"] == found["budget_tokens"] == 34


def test_table_has_a_line_per_stage(capsys):
    assert main(ARGUMENTS) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("cache_bytes", "preprocess", "step", "GEMM bf16", "GEMM fp32"):
        assert sum(line.startswith(name) for line in lines) == 1


def test_warm_up_steps_are_not_measured(monkeypatch, capsys):
    steps = []
    step = GeometryStream.step
    monkeypatch.setattr(GeometryStream, "step", lambda *arguments: steps.append(0) or step(*arguments))
    main(ARGUMENTS)
    assert len(steps) == 4


def test_bad_numbers_of_steps_are_refused(capsys):
    assert main(["bench", "--frames", "0"]) == 2
    assert "frames must be at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--frames", "many"])
