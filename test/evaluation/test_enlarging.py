# SPDX-License-Identifier: Apache-2.0
"""Depth that is enlarged, beside its truth."""

import numpy as np
import pytest

from xsvggt_ros.cli import main
from xsvggt_ros.evaluation.enlarging import WAYS, loss, losses, room_frames

TRUTH = np.full((40, 60), 2.0, np.float32)
TRUTH[:, 30:] = 4.0


def test_what_is_between_two_surfaces_is_in_the_air_and_what_is_of_either_is_not():
    between, moved = TRUTH.copy(), TRUTH.copy()
    between[:, 30] = 3.0
    moved[:, 30] = 2.0
    assert loss(TRUTH, TRUTH, 1.5) == (0, 0, 0, 1.5)
    near = 8  # columns
    assert loss(between, TRUTH, 0) == pytest.approx((0.25 / 60, 0.25 / near, 1 / near, 0))
    assert loss(moved, TRUTH, 0) == pytest.approx((0.5 / 60, 0.5 / near, 0, 0))


def test_without_edges_only_the_whole_is_known():
    found = loss(TRUTH[:, :20] * np.float32(1.1), TRUTH[:, :20], 0)
    assert found.abs_rel == pytest.approx(0.1) and np.isnan([found.near_edges, found.in_the_air]).all()


def test_depth_is_exact_at_the_pixels_of_the_network():
    """A plane in both: the inverse is linear, so what lies between four of the image's pixels is their mean."""
    frame, image, truth = next(iter(room_frames(100, 1, 1.0, "robot", 112)))
    assert image.shape == (480, 640, 3) and frame.depth.shape == (84, 112) == frame.image.shape[:2]
    there = frame.resize.to_image(np.stack(np.meshgrid(np.arange(112), np.arange(84)), -1).astype(np.float32))
    column, row = np.moveaxis(np.floor(there).astype(int), -1, 0)
    corners = np.stack([truth[row + i, column + j] for i in (0, 1) for j in (0, 1)])
    flat = corners.max(0) < 1.01 * corners.min(0)
    assert flat.mean() > 0.8
    assert ((frame.depth >= corners.min(0) - 1e-5) & (frame.depth <= corners.max(0) + 1e-5))[flat].mean() > 0.995


def test_ours_is_nearer_to_the_truth_than_the_others():
    found = losses(range(103, 105), 1, 1.0, "robot", 112)
    assert found.keys() == {(kind, way) for kind in ("exact", "softened") for way in WAYS}
    ours = "output.resolution input"
    for kind in ("exact", "softened"):
        for other in WAYS.keys() - {ours}:
            assert found[kind, ours].near_edges < found[kind, other].near_edges
            assert found[kind, ours].abs_rel < found[kind, other].abs_rel
        assert found[kind, ours].in_the_air < found[kind, "bilinear"].in_the_air


def test_the_command_prints_a_table(capsys):
    assert main(["eval", "--enlarge", "--seeds", "100:101", "--frames", "2", "--rate", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n| exact |") == printed.count("\n| softened |") == len(WAYS)
    assert main(["eval", "tum", "somewhere", "--enlarge"]) == 2
    assert "leave DATASET, ROOT" in capsys.readouterr().err
