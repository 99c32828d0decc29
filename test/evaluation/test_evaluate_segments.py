# SPDX-License-Identifier: Apache-2.0
"""Streams of segments are scored where the map has their frames."""

import csv
import json

import numpy as np
import pytest
from support.frames import frame

from xsvggt_ros.cli import main
from xsvggt_ros.evaluation import trace as tracing
from xsvggt_ros.evaluation.datasets import EvaluationFrame, EvaluationSequence
from xsvggt_ros.evaluation.evaluate import sequence_errors
from xsvggt_ros.evaluation.trace import Trace
from xsvggt_ros.frame import InSegment
from xsvggt_ros.geometry import rigid

FRAMES = 12
SOON = {"segment.work": "1", "segment.overlap": "0.9", "segment.shared": "1"}  # joins
AT_ANY_RATE = {"loop.likeness": "0", "loop.agreement": "0", "loop.match": "0", "loop.max_turn": "180"}  # closures


def straight(i):
    return rigid(np.eye(3), np.array([0.1 * i, 0.0, 0.0]))


def traced(T_first_cam, T_map_cam):
    """Of a camera that goes straight ahead; a stream says so or not, and its map if it has one."""
    trace = Trace(EvaluationSequence("straight", []))
    for i in range(5):
        segment = T_map_cam and InSegment(T_map_cam(i), 0, np.eye(4), {}, (0.0, 0.0), 1.0)
        truth = EvaluationFrame(i, np.zeros((6, 8, 3), np.uint8), None, straight(i), None)
        trace.add(frame(i, T_first_cam=T_first_cam(i), segment=segment), truth)
    return trace


def curve(i):
    return rigid(np.eye(3), np.array([0.1 * i, 0.02 * i**2, 0.0]))


def test_the_maps_poses_count_and_the_streams_where_there_is_no_map():
    np.testing.assert_array_equal(traced(curve, straight).poses()[0], [straight(i) for i in range(5)])
    np.testing.assert_array_equal(traced(straight, None).poses()[0], [straight(i) for i in range(5)])
    errors = [
        sequence_errors(traced(*said), None, "scale").columns()["ate"] for said in ((curve, straight), (curve, None))
    ]
    assert errors[0] == pytest.approx(0, abs=1e-9) and errors[1] > 0.01


def flags(settings):
    return [item for name, value in settings.items() for item in (f"--{name}", value)]


@pytest.fixture
def seen(monkeypatch):
    """All frames that are scored."""
    frames, add = [], Trace.add
    monkeypatch.setattr(tracing.Trace, "add", lambda self, *args: frames.append(args[0]) or add(self, *args))
    return frames


def test_command_with_segments_scores_every_frame_of_a_room(tmp_path, seen):
    room = ["eval", "--seeds", "3:4", "--frames", str(FRAMES), "--image_width", "56"]
    for name, more in (("with", ["--segment.enabled", *flags(SOON | AT_ANY_RATE)]), ("without", [])):
        assert main([*room, *more, "--output", str(tmp_path / name)]) == 0
    joined, alone = seen[:FRAMES], seen[FRAMES:]
    assert [each.index for each in joined] == [each.index for each in alone] == list(range(FRAMES))
    assert joined[-1].status.segments.segment >= 1 and all(each.segment is None for each in alone)
    rows = [next(csv.DictReader((tmp_path / name / "errors.csv").open())) for name in ("with", "without")]
    assert rows[0]["pixels"] == rows[1]["pixels"] and rows[0]["ate"] != rows[1]["ate"]
    assert all(np.isfinite(float(rows[0][column])) for column in ("abs_rel", "ate", "rpe_rotation"))
    assert json.loads((tmp_path / "with" / "errors.json").read_text())["settings"]["segment.enabled"] is True
