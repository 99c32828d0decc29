# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.frames import frame, place, read_ply

from xsvggt_ros.config import NodeConfig, OutputConfig
from xsvggt_ros.geometry import R_WORLD_OPTICAL, rigid
from xsvggt_ros.replay.files import CloudFile, ReplayFiles, TrajectoryFile, check_folder, write_depth
from xsvggt_ros.status import Status


def test_trajectory_is_tum_with_every_nanosecond(tmp_path):
    file = TrajectoryFile(tmp_path / "t.txt", NodeConfig(), "odom")
    file.write(place(frame(0), 1_700_000_000_123_456_789))
    moved = frame(0, T_first_cam=rigid(np.eye(3), np.array([1.0, 2.0, 3.0])))
    file.write(place(moved, 1_700_000_001_000_000_001))
    file.close()
    comment, first, second = (tmp_path / "t.txt").read_text().splitlines()
    assert comment.startswith("# ") and "odom" in comment
    assert first.split()[0] == "1700000000.123456789" and second.split()[0] == "1700000001.000000001"
    # Optical right, down, forward (1, 2, 3) is forward 3, left -1, up -2; an optical frame that looks
    # along x is turned by (-0.5, 0.5, -0.5, 0.5), as REP 103 has it.
    np.testing.assert_allclose(np.array(second.split()[1:], float), [3, -1, -2, -0.5, 0.5, -0.5, 0.5])


def test_cloud_is_the_points_of_all_frames_in_the_world(tmp_path):
    config = OutputConfig(confidence_threshold=2.0, point_stride=2)
    frames = [frame(i) for i in range(3)]
    file = CloudFile(tmp_path / "c.ply", NodeConfig(output=config), "odom")
    for each in frames:
        file.write(place(each))
    file.close()
    vertices = read_ply(tmp_path / "c.ply")
    kept = [each.confidence[::2, ::2] >= 2.0 for each in frames]
    points = np.concatenate([e.points_world()[::2, ::2][k] for e, k in zip(frames, kept, strict=True)])
    colours = np.concatenate([e.image[::2, ::2][k] for e, k in zip(frames, kept, strict=True)])
    assert 0 < len(vertices) < 3 * 12
    found = np.stack([vertices[axis] for axis in "xyz"], axis=1)
    np.testing.assert_allclose(found @ R_WORLD_OPTICAL, points, atol=1e-6)
    np.testing.assert_array_equal(np.stack([vertices[c] for c in ("red", "green", "blue")], axis=1), colours)


def test_cloud_without_points_can_be_read(tmp_path):
    CloudFile(tmp_path / "c.ply", NodeConfig(), "odom").close()
    assert len(read_ply(tmp_path / "c.ply")) == 0


def test_depth_image(tmp_path):
    depth = np.array([[1.0, 0.0126, 65.535, 65.6, 2.0]], np.float32)
    confidence = np.array([[1.5, 1.5, 1.5, 1.5, 1.4]], np.float32)
    write_depth(tmp_path / "d.png", frame(depth=depth, confidence=confidence), 1.5)
    image = cv2.imread(str(tmp_path / "d.png"), cv2.IMREAD_UNCHANGED)
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, [[1000, 13, 65535, 0, 0]])


def test_a_new_world_begins_new_files(tmp_path):
    files = ReplayFiles(tmp_path, NodeConfig())
    for stamp, index in enumerate([0, 1, 2, 0, 1]):
        placed = place(frame(index), stamp)
        files.write(placed, Status(placed.frame.status))
    files.close()
    assert len((tmp_path / "trajectory.txt").read_text().splitlines()) == 1 + 3
    assert len((tmp_path / "trajectory_1.txt").read_text().splitlines()) == 1 + 2
    assert len(read_ply(tmp_path / "cloud.ply")) == 3 * 12 and len(read_ply(tmp_path / "cloud_1.ply")) == 2 * 12
    assert sorted(p.name for p in (tmp_path / "depth").iterdir()) == [f"{i:06d}.png" for i in range(5)]


class TestCheckFolder:
    def test_makes_it_and_leaves_nothing(self, tmp_path):
        check_folder(tmp_path / "a" / "b")
        assert not list((tmp_path / "a" / "b").iterdir())

    def test_other_files_do_not_matter(self, tmp_path):
        (tmp_path / "notes.txt").write_text("")
        check_folder(tmp_path)

    @pytest.mark.parametrize("below", ["", "below"])
    def test_a_file_is_no_folder(self, tmp_path, below):
        (tmp_path / "file").write_text("")
        with pytest.raises(ValueError, match=r"cannot write into .*; choose another output folder"):
            check_folder(tmp_path / "file" / below)

    def test_a_folder_that_cannot_be_written(self):
        if not Path("/proc/self").exists():
            pytest.skip("needs a folder that even root cannot write")
        with pytest.raises(ValueError, match="cannot write into /proc/self"):
            check_folder(Path("/proc/self"))

    @pytest.mark.parametrize("name", ["trajectory.txt", "cloud_1.ply", "depth", "bag"])
    def test_an_earlier_replay_is_not_overwritten(self, tmp_path, name):
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=f"already has {name}"):
            check_folder(tmp_path)
