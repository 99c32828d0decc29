# SPDX-License-Identifier: Apache-2.0
"""A good recording passes every check, and each defect fails its own."""

import json
from dataclasses import replace

import numpy as np
import pytest
from answers import DROPPED, make_recording

from xsvggt_ros.config import NodeConfig, changed, values
from xsvggt_ros.geometry import R_WORLD_OPTICAL, inverse
from xsvggt_ros.recording import as_json, check


@pytest.fixture(scope="module")
def recording():
    return make_recording()


def with_answer(recording, index, **changes):
    """The recording with one answer changed; those of `status` within its status."""
    status = changes.pop("status", {})
    answers = list(recording.answers)
    answers[index] = replace(answers[index], status=replace(answers[index].status, **status), **changes)
    return with_played(recording, answers=answers)


def with_played(recording, **changes):
    return replace(recording, played=replace(recording.played, **changes))


def failed(recording):
    return {c.claim: c.problem for c in check(recording) if c.problem}


def test_a_good_recording_passes(recording):
    assert failed(recording) == {}


def test_the_change_is_found(recording):
    assert recording.answers[recording.change].image == recording.played.change_after
    assert recording.answers[recording.change - 1].status.key_bits == 16


DEFECTS = {
    "rejects no image": lambda r: with_played(r, counts=replace(r.played.counts, frames_rejected=2)),
    "Every output comes": lambda r: with_played(r, incomplete=["image 4: no /tf"]),
    "that image's stamp": lambda r: with_played(r, strays=["stamp 5 on ~/points"]),
    "One stream": lambda r: with_answer(r, 3, status={"frame": 0}),
    "give the published points": lambda r: with_answer(r, 2, points=r.answers[2].points * 1.01),
    "same pose": lambda r: with_answer(r, 2, T_tf=np.eye(4)),
    "stay changed": lambda r: with_answer(r, 8, status={"key_bits": 16}),
    "change together": lambda r: with_answer(r, 3, status={"key_bits": 4}),
    "exceed the budget": lambda r: with_answer(r, 8, status={"tokens": 35}),
    "less memory": lambda r: with_answer(r, r.change, status={"cache_bytes": r.answers[0].status.cache_bytes}),
    "exit code 0": lambda r: replace(r, exit_code=-6),
}


@pytest.mark.parametrize("claim", DEFECTS)
def test_each_defect_fails_the_check_that_is_about_it(recording, claim):
    problems = failed(DEFECTS[claim](recording))
    assert len(problems) == 1
    assert claim in next(iter(problems))


def test_points_that_are_missing_or_too_many_fail(recording):
    for value in (np.nan, 1.0):
        points = recording.answers[0].points.copy()
        points[np.isfinite(points) if np.isnan(value) else np.isnan(points)] = value
        assert len(failed(with_answer(recording, 0, points=points))) == 1


def test_a_refused_change_is_reported_with_its_reason(recording):
    answers = recording.answers[: recording.change]
    problems = failed(with_played(recording, answers=answers, refusal="cache.key_bits must be one of"))
    assert "cache.key_bits must be one of" in problems.values()


def test_a_node_that_says_nothing_fails(recording):
    assert "no image was answered" in failed(with_played(recording, answers=[])).values()


def test_true_path_starts_at_the_first_answered_image_and_is_metric(recording):
    skipped = with_played(recording, answers=recording.answers[1:])
    path = skipped.true_path()
    first, last = (recording.truth[i].T_world_cam for i in (1, -1))
    assert np.allclose(path[1], 0)
    assert np.allclose(path[-1], R_WORLD_OPTICAL @ (inverse(first) @ last)[:3, 3])
    assert replace(recording, truth=[]).true_path().shape == (0, 3)


def test_json_holds_what_was_measured(recording):
    written = json.loads(json.dumps(as_json(recording, check(recording))))
    assert written["sent"] == len(recording.images)
    assert [a["image"] for a in written["answers"]] == [i for i in range(10) if i != DROPPED]
    assert written["answers"][5]["status"]["cache_bytes"] == recording.answers[5].status.cache_bytes
    assert changed(NodeConfig(), written["settings"]) == recording.start
    assert written["settings"] | written["changes"] == values(recording.later)
    assert not any(c["problem"] for c in written["checks"])
