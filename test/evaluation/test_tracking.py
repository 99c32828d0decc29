# SPDX-License-Identifier: Apache-2.0
"""Errors of tracks: on rooms, whose truth is known, and of tracks of which the errors are."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from xsvggt_ros.cli import main
from xsvggt_ros.evaluation.datasets import room_sequences
from xsvggt_ros.evaluation.metrics import track_errors
from xsvggt_ros.evaluation.tracking import _queries, follow_flow, follow_stream, true_tracks
from xsvggt_ros.frame import Tracks
from xsvggt_ros.preprocess import Resize

SURE = np.ones(2, np.float32)
TOLD = (  # ids, pixels, visible, confidence
    (np.zeros(0, int), np.zeros((0, 2), np.float32), np.zeros(0, bool), SURE[:0]),
    (np.array([4, 5]), np.array([[1.5, 1], [3, 2]], np.float32), np.array([False, True]), SURE),
    (np.array([9, 5]), np.array([[7, 5], [4, 2]], np.float32), np.array([True, True]), SURE),
)


@pytest.fixture(scope="module")
def sequence():
    (sequence,) = room_sequences(range(3, 4), 6, 160, 120, "robot", 10.0)
    return sequence


def test_true_tracks_show_the_same_colour(sequence):
    """Which depth and poses do not know of."""
    queries = _queries(sequence.frames[0])
    truth = true_tracks(sequence.frames, queries)
    np.testing.assert_allclose(truth.pixels[0], queries, atol=1e-3)
    assert truth.visible[0].all() and 0.4 < truth.visible[-1].mean() < 1
    differences = []
    for frame, pixels, visible in zip(sequence.frames, truth.pixels, truth.visible, strict=True):
        there = np.rint(pixels[visible]).astype(int)
        here = queries[visible].astype(int)
        colour, first = frame.image[there[:, 1], there[:, 0]], sequence.frames[0].image[here[:, 1], here[:, 0]]
        differences.append(np.abs(colour.astype(int) - first).mean())
    assert np.mean(differences[1:]) < 12


def test_flow_follows_what_moves_little(sequence):
    queries = _queries(sequence.frames[0])
    truth = true_tracks(sequence.frames, queries)
    flow = follow_flow([frame.image for frame in sequence.frames], queries)
    size = sequence.frames[0].image.shape[:2]
    still = track_errors(np.broadcast_to(queries, truth.pixels.shape), truth.visible, *truth, size)
    followed = track_errors(*flow, *truth, size)
    assert followed.error < 0.5 * still.error and followed.delta_average > still.delta_average


def test_points_that_the_stream_gives_up_stay_where_they_were():
    """Of two points the first is given up, and another is followed in its place."""
    size, told = (6, 8), [Tracks(*columns) for columns in TOLD]
    frames = [SimpleNamespace(resize=Resize.of(*size, 8, 2), tracks=tracks) for tracks in told]
    stream = SimpleNamespace(
        reset=lambda: None, step=lambda image: frames.pop(0), track=lambda pixels: np.array([4, 5])
    )
    found = follow_stream(stream, [None] * 3, np.array([[1.0, 1], [2, 2]], np.float32))
    assert found.pixels.tolist() == [[[1, 1], [2, 2]], [[1.5, 1], [3, 2]], [[1.5, 1], [4, 2]]]
    assert found.visible.tolist() == [[True, True], [False, True], [False, True]]


def test_measures_by_hand():
    """Two points in three frames of 128x64: 2 pixels off across, which are 8 of 256; seen in frames 1 and 2, and 1."""
    true = np.zeros((3, 2, 2))
    seen = np.array([[True, True], [True, True], [True, False]])
    off = true.copy()
    off[1:, :, 1] = 2
    off[0] = 100  # the first frame does not count
    said = np.array([[False, False], [True, True], [False, True]])
    errors = track_errors(off, said, true, seen, (64, 128))
    assert errors.error == 2 and errors.occlusion_accuracy == 0.5
    assert errors.delta_average == pytest.approx(1 / 5)  # 8 is not within 8
    nothing = track_errors(off, said, true, np.zeros_like(seen), (64, 128))
    assert np.isnan(nothing.error) and np.isnan(nothing.delta_average)


def test_what_is_needed_is_said(sequence, capsys):
    frame = sequence.frames[0]
    for unknown in (dict(depth=None), dict(T_world_cam=None), dict(intrinsics=None)):
        with pytest.raises(ValueError, match="must be known"):
            true_tracks([replace(frame, **unknown)], _queries(frame))
    with pytest.raises(ValueError, match="of the image's size"):
        true_tracks([replace(frame, depth=frame.depth[::2])], _queries(frame))
    assert main(["eval", "--tracks"]) == 2
    assert "add --track_groups 1" in capsys.readouterr().err
