# SPDX-License-Identifier: Apache-2.0
"""A good recording passes every check, and each defect fails its own."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.answers import DROPPED, LONGER, LONGER_LATER, NEARER, make_recording, shortened

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.demo.recording import as_json, check
from xsvggt_ros.geometry import R_WORLD_OPTICAL, inverse
from xsvggt_ros.settings import changed, values


@pytest.fixture(scope="module")
def recording():
    return make_recording()


def with_answer(recording, index, **changes):
    """The recording with one answer changed; those of `status` within its status."""
    status = changes.pop("status", {})
    answers = list(recording.answers)
    answers[index] = replace(answers[index], status=replace(answers[index].status, **status), **changes)
    return with_played(recording, answers=answers)


def with_poses(recording, poses):
    """The recording with other poses in its answers."""
    pairs = zip(recording.answers, poses, strict=True)
    return with_played(recording, answers=[replace(a, T_tf=T, T_odometry=T) for a, T in pairs])


def with_depth(recording, change):
    """The recording with `change` made to the depth of every answer, and to its points."""

    def changed_answer(a):
        factor = change(a.depth) / a.depth
        stride = recording.start.output.point_stride
        return replace(a, depth=a.depth * factor, points=a.points * factor[::stride, ::stride, None])

    return with_played(recording, answers=[changed_answer(a) for a in recording.answers])


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
    "than standing still": lambda r: with_poses(r, [r.answers[0].T_tf] * len(r.answers)),
    "than a constant": lambda r: with_depth(r, np.reciprocal),
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
    unchanged = shortened(recording, slice(recording.change))
    problems = failed(with_played(unchanged, refusal="cache.key_bits must be one of"))
    assert "cache.key_bits must be one of" in problems.values()


def test_a_node_that_says_nothing_fails(recording):
    assert "no image was answered" in failed(with_played(recording, answers=[])).values()


def test_errors_are_those_that_were_made(recording):
    comparison, change = recording.comparison, recording.change
    before, after = slice(change), slice(change, None)
    assert comparison.node.mean(before)["abs_rel"] == pytest.approx(LONGER, rel=1e-4)
    assert comparison.node.mean(after)["abs_rel"] == pytest.approx(LONGER_LATER, rel=1e-4)
    assert comparison.unchanged.mean(after)["abs_rel"] == pytest.approx(LONGER, rel=1e-4)
    assert np.allclose(comparison.node.centre, NEARER * comparison.trivial.centre)
    assert comparison.node.rotation.max() < 1e-3 < comparison.trivial.rotation.max()
    assert comparison.aligned.ate == pytest.approx(0, abs=1e-6)  # all that is wrong with the path is its scale


def test_standing_still_is_wrong_by_the_way_gone(recording):
    first, last = (recording.truth[i].T_room_cam for i in (0, -1))
    T = inverse(first) @ last
    assert recording.comparison.trivial.centre[-1] == pytest.approx(np.linalg.norm(T[:3, 3]))
    degrees = np.rad2deg(np.arccos((np.trace(T[:3, :3]) - 1) / 2))
    assert recording.comparison.trivial.rotation[-1] == pytest.approx(degrees)


def test_poses_start_at_the_first_answered_image_and_are_metric(recording):
    skipped = shortened(recording, slice(1, None))
    poses, (first, last) = skipped.true_poses(), (recording.truth[i].T_room_cam for i in (1, -1))
    assert np.allclose(poses[0, :3, 3], 0)
    assert np.allclose(poses[-1, :3, 3], R_WORLD_OPTICAL @ (inverse(first) @ last)[:3, 3])
    nearer = recording.true_poses()
    nearer[:, :3, 3] *= 1 - NEARER
    assert np.allclose(recording.poses(), nearer)


def test_without_truth_nothing_is_compared(recording):
    blind = replace(recording, truth=[], unchanged=[])
    assert blind.comparison is None
    assert blind.true_poses().shape == (0, 4, 4)
    assert np.allclose(blind.poses(), [a.T_tf for a in recording.answers])  # in the model's unit
    assert len(check(blind)) == len(check(recording)) - 2
    assert as_json(blind, [])["comparison"] is None


def test_random_weights_are_not_held_to_the_truth(recording):
    still = with_poses(recording, [recording.answers[0].T_tf] * len(recording.answers))
    assert failed(still)
    assert not failed(replace(still, start=changed(still.start, {"weights": "random"})))


def test_json_holds_what_was_measured(recording):
    written = json.loads(json.dumps(as_json(recording, check(recording))))
    assert written["sent"] == len(recording.images)
    assert [a["image"] for a in written["answers"]] == [i for i in range(10) if i != DROPPED]
    assert written["answers"][5]["status"]["cache_bytes"] == recording.answers[5].status.cache_bytes
    assert changed(NodeConfig(), written["settings"]) == recording.start
    assert written["settings"] | written["changes"] == values(recording.later)
    assert not any(c["problem"] for c in written["checks"])
    assert written["comparison"]["node"]["mean"] == recording.comparison.node.mean()
    assert len(written["comparison"]["trivial"]["centre"]) == len(recording.answers)
