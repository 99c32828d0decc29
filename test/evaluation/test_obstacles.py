# SPDX-License-Identifier: Apache-2.0
"""How right obstacles are: of a stream that says the truth, of one that does not, and as a command."""

from types import SimpleNamespace

import numpy as np
import pytest
from support.frames import frame as any_frame

from xsvggt_ros.cli import main
from xsvggt_ros.config import ObstacleConfig
from xsvggt_ros.evaluation.datasets import room_sequences
from xsvggt_ros.evaluation.obstacles import ALL, BOTH, COLUMNS, SOURCES, WAYS, Obstacles, base_below, table

RIGHT, COVERED = list(COLUMNS).index("right within 0.1 m"), list(COLUMNS).index("covered within 0.1 m")


@pytest.fixture(scope="module")
def sequence():
    (sequence,) = room_sequences(range(3, 4), 6, 112, 84, "robot", 2.0)
    return sequence


def said(sequence, change):
    """Shares of a stream that says `change` of the true depth, in another unit."""
    obstacles = Obstacles(ObstacleConfig())
    for index, truth in enumerate(sequence.frames):
        depth = change(truth.depth.copy()) / np.float32(2.5)
        sure = np.full_like(depth, 2)
        obstacles.add(any_frame(index, depth=depth, confidence=sure, intrinsics=truth.intrinsics), truth)
    return obstacles.shares()


def test_the_truth_is_right_and_covers_all_whatever_its_unit(sequence):
    shares = said(sequence, lambda depth: depth)
    assert set(shares) == set(WAYS)
    for source in SOURCES:
        assert shares[source, ALL][RIGHT] > 0.999 and shares[source, ALL][COVERED] > 0.98
        assert shares[source, BOTH][RIGHT] > 0.999 and shares[source, BOTH][COVERED] > 0.85


def test_what_is_nearer_than_the_truth_is_wrong_and_covers_little(sequence):
    """The ground is where it was, so that the camera's height says the true scale."""

    def nearer(depth):
        depth[:42] *= 0.75
        return depth

    shares = said(sequence, nearer)["camera_height", ALL]
    assert shares[RIGHT] < 0.7 and shares[COVERED] < 0.7


def test_a_floor_that_is_taken_for_an_obstacle_is_wrong():
    """Though it is near a true surface: the floor."""
    depth = np.full((8, 8), 2.0, np.float32)
    K = np.array([[8.0, 0, 3.5], [0, 8, 3.5], [0, 0, 1]])
    looking_down = np.array([[0, -0.1, 0.9949, 0], [-1, 0, 0, 0], [0, -0.9949, -0.1, 0.5], [0, 0, 0, 1.0]])
    truth = SimpleNamespace(depth=depth, intrinsics=K, T_world_cam=looking_down, stamp_ns=0)
    obstacles = Obstacles(ObstacleConfig())
    obstacles.add(any_frame(0, depth=depth, confidence=depth, intrinsics=K), truth)
    assert all(surface[:, 2].min() >= 0.1 for surface in obstacles._surfaces)


def test_the_base_is_on_the_floor_and_looks_where_the_camera_does(sequence):
    T_world_cam = sequence.frames[0].T_world_cam
    T = base_below(T_world_cam)
    np.testing.assert_allclose(T[:3, :3] @ T[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(T[:3, :3]) == pytest.approx(1)
    assert T[:3, 3].tolist() == [*T_world_cam[:2, 3], 0.0] and T[2, 2] == 1
    assert T[:2, 0] @ T_world_cam[:2, 2] > 0.9


def test_table_by_hand():
    rooms = [{way: np.full(len(COLUMNS), value) for way in WAYS} for value in (0.25, 0.75)]
    for room in rooms:
        room["depth", BOTH] = room["depth", ALL] + 0.125
        room["camera_height", ALL][:] = np.nan
    head, _, *lines = table(rooms).splitlines()
    assert head.count("|") == 3 + len(COLUMNS) and len(lines) == 2 * 5
    assert lines[0].startswith(f"| depth | {BOTH} | 0.625 ± 0.250 |")
    assert lines[8].startswith("| camera_height | all points | - | -")
    assert lines[4].startswith("| depth | what both change | +0.125 ± 0.000 |")


def test_command(capsys):
    assert main(["eval", "--obstacles", "--seeds", "100:102", "--frames", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(": 2 rooms.")
    cells = lines[4].split("|")
    assert cells[1:3] == [" depth ", f" {BOTH} "]
    assert 0.1 < float(cells[3].split("±")[0]) < 1


def test_command_needs_rooms(capsys):
    assert main(["eval", "tum", "/nowhere", "--obstacles"]) == 2
    assert "--obstacles is for rooms" in capsys.readouterr().err
