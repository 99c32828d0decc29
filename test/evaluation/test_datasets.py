# SPDX-License-Identifier: Apache-2.0
"""Data sets of every layout, written with known content and read back."""

import struct
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from support.paths import SHARED
from support.recordings import SECOND, encoded, picture

from xsvggt_ros.evaluation.datasets import BONN_SEQUENCES, DATASETS, SINTEL_SEQUENCES, readable, room_sequences
from xsvggt_ros.geometry import inverse, quaternion_xyzw, rigid, rotation_matrix
from xsvggt_ros.rooms import stream, write_folder

STEPS = np.array([[0, 65535], [1000, 2560]], np.uint16)  # of depth images
SAMPLE = SHARED / "data" / "7scenes_sample"


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_image(path: Path, index: int) -> None:
    write(path, encoded(picture(index), path.suffix))


def write_depth(path: Path, index: int = 0) -> None:
    write(path, cv2.imencode(".png", STEPS + np.uint16([[0, 0], [index, 0]]))[1].tobytes())


def pose(index: int) -> np.ndarray:
    """Another camera-to-world for every index, with a rotation that is no one's inverse."""
    return rigid(rotation_matrix(np.array([0.1, 0.2 * index, -0.3, 0.9])), np.array([index, 2.0, -0.5 * index]))


def tum_row(seconds: float, T: np.ndarray) -> str:
    return " ".join(map(repr, [seconds, *T[:3, 3].tolist(), *quaternion_xyzw(T[:3, :3]).tolist()])) + "\n"


def matrix_row(T: np.ndarray) -> str:
    return " ".join(map(repr, T.ravel().tolist())) + "\n"


def matrix_rows(T: np.ndarray) -> str:
    return "".join(map(matrix_row, T))


def indices(sequence) -> list[int]:
    """Which pictures the images are: exactly these, in RGB."""
    found = [int(frame.image[0, 0, 2]) // 10 for frame in sequence.frames]
    for index, frame in zip(found, sequence.frames, strict=True):
        np.testing.assert_array_equal(frame.image, picture(index))
    return found


def check_depth(frame, steps_per_metre: float, index: int = 0) -> None:
    assert frame.depth.dtype == np.float32
    expected = np.array([[0, 0], [(1000 + index) / steps_per_metre, 2560 / steps_per_metre]])
    np.testing.assert_allclose(frame.depth, expected, rtol=1e-6)


def check_pose(frame, T: np.ndarray) -> None:
    np.testing.assert_allclose(frame.T_world_cam, T, atol=1e-12)


def write_seven_scenes(folder: Path, numbers, depth: str = "depth.proj.png") -> None:
    for number in numbers:
        write_image(folder / f"frame-{number:06d}.color.png", number)
        write_depth(folder / f"frame-{number:06d}.{depth}", number)
        write(folder / f"frame-{number:06d}.pose.txt", matrix_rows(pose(number)))


class TestSevenScenes:
    def test_scenes_have_the_test_sequences(self, tmp_path):
        write(tmp_path / "chess" / "TestSplit.txt", "sequence3\r\nsequence12\r\n")
        write(tmp_path / "fire" / "TestSplit.txt", "sequence1\n")
        for name in ("chess/seq-01", "chess/seq-03", "chess/seq-12", "fire/seq-01"):
            write_seven_scenes(tmp_path / name, range(2))
        sequences = DATASETS["7scenes"](tmp_path)
        assert [s.name for s in sequences] == ["chess/seq-03", "chess/seq-12", "fire/seq-01"]
        assert [s.name for s in DATASETS["7scenes"](tmp_path / "fire")] == ["fire/seq-01"]
        np.testing.assert_array_equal(sequences[0].frames[0].intrinsics, [[525, 0, 320], [0, 525, 240], [0, 0, 1]])
        assert sequences[0].max_depth == 10 and not sequences[0].clip_prediction

    def test_a_scene_whose_sequence_is_missing_or_empty(self, tmp_path, caplog):
        write(tmp_path / "chess" / "TestSplit.txt", "sequence3\nsequence5\nsequence12\n")
        (tmp_path / "chess" / "seq-05").mkdir()
        write_seven_scenes(tmp_path / "chess" / "seq-12", range(2))
        assert [s.name for s in DATASETS["7scenes"](tmp_path)] == ["chess/seq-12"]
        assert "chess/seq-03 is left out: " in caplog.text and "chess/seq-05 is left out: " in caplog.text

    def test_a_list_of_sequences_that_is_empty(self, tmp_path):
        write(tmp_path / "chess" / "TestSplit.txt", "\n")
        with pytest.raises(ValueError, match="must have lines like `sequence1`"):
            DATASETS["7scenes"](tmp_path)

    def test_a_name_without_a_number(self, tmp_path):
        write_seven_scenes(tmp_path, range(3))
        for path in list(tmp_path.glob("frame-000002.*")):
            path.rename(tmp_path / path.name.replace("000002", "last"))
        (sequence,) = DATASETS["7scenes"](tmp_path)
        assert indices(sequence) == [0, 1, 2] and len({frame.stamp_ns for frame in sequence.frames}) > 1

    @pytest.mark.parametrize("depth", ["depth.png", "depth.proj.png"])
    def test_single_folder(self, tmp_path, depth):
        write_seven_scenes(tmp_path / "office", (0, 5, 10), depth)
        np.savetxt(tmp_path / "office" / "camera-intrinsics.txt", np.diag([585.0, 586, 1]))
        (sequence,) = DATASETS["7scenes"](tmp_path / "office")
        assert sequence.name == "office" and indices(sequence) == [0, 5, 10]
        assert [frame.stamp_ns for frame in sequence.frames] == [0, round(SECOND / 6), round(SECOND / 3)]
        for number, frame in zip((0, 5, 10), sequence.frames, strict=True):
            check_depth(frame, 1000, number)
            check_pose(frame, pose(number))
            np.testing.assert_array_equal(frame.intrinsics, np.diag([585, 586, 1]))

    def test_projected_depth_is_preferred(self, tmp_path):
        write_seven_scenes(tmp_path, range(2))
        for number in range(2):
            write_depth(tmp_path / f"frame-{number:06d}.depth.png", 500)
        check_depth(DATASETS["7scenes"](tmp_path)[0].frames[1], 1000, 1)

    def test_real_folder(self):
        if not SAMPLE.exists():
            pytest.skip("the 7-Scenes sample is not here")
        (sequence,) = DATASETS["7scenes"](SAMPLE)
        assert len(sequence.frames) == 120
        frame = sequence.frames[1]
        assert frame.image.shape == (480, 640, 3) and frame.stamp_ns == round(SECOND / 6)
        assert frame.depth.max() == np.float32(3.565) and frame.intrinsics[0, 0] == 585
        assert frame.T_world_cam[2, 3] == pytest.approx(0.29850367)


class TestTum:
    def test_prepared(self, tmp_path):
        seconds = [1305031102.175304, 1305031102.2, 1305031103.0]  # no two written with as many decimals
        folder = tmp_path / "freiburg3_walking"
        for index, time in enumerate(seconds):
            write_image(folder / "rgb_90" / f"{time!r}.png", index)
        rows = [tum_row(time, pose(index)) for index, time in enumerate(seconds)]
        write(folder / "groundtruth_90.txt", "# timestamp tx ty tz qx qy qz qw\n" + "".join(rows))
        (sequence,) = DATASETS["tum"](tmp_path)
        assert sequence.name == "freiburg3_walking" and indices(sequence) == [0, 1, 2]
        for index, frame in enumerate(sequence.frames):
            check_pose(frame, pose(index))
            assert frame.depth is None and frame.intrinsics is None
            assert frame.stamp_ns == pytest.approx(seconds[index] * SECOND, abs=1000)

    def test_published_is_associated_then_thinned(self, tmp_path):
        """Image i at i / 10 s; poses of 2 and 3 are 19 and 21 ms away; depth of 5 is missing, of others 15 ms late."""
        images = [f"{i / 10:.6f} rgb/{i}.png\n" for i in range(9)]
        depths = [f"{i / 10 + 0.015:.6f} depth/{i}.png\n" for i in range(9) if i != 5]
        away = {2: -0.019, 3: 0.021}
        poses = [tum_row(i / 10 + away.get(i, 0.001), pose(i)) for i in range(9)]
        for name, lines in (("rgb", images), ("depth", depths), ("groundtruth", poses)):
            write(tmp_path / f"{name}.txt", "# comment\n" + "".join(lines))
        for i in range(9):
            write_image(tmp_path / "rgb" / f"{i}.png", i)
            write_depth(tmp_path / "depth" / f"{i}.png", i)
        (sequence,) = DATASETS["tum"](tmp_path)  # of 0 1 2 4 5 6 7 8
        assert indices(sequence) == [0, 4, 7]
        for i, frame in zip((0, 4, 7), sequence.frames, strict=True):
            check_pose(frame, pose(i))
            check_depth(frame, 5000, i)
            assert frame.stamp_ns == i * SECOND // 10
        write(tmp_path / "groundtruth.txt", "".join(poses[5:]))  # thinned to 5 8
        assert [frame.depth is None for frame in DATASETS["tum"](tmp_path)[0].frames] == [True, False]

    def test_published_ends_after_90(self, tmp_path):
        write_image(tmp_path / "0.png", 0)
        write_depth(tmp_path / "depth.png")
        for name, what in (("rgb", "0.png"), ("depth", "depth.png")):
            write(tmp_path / f"{name}.txt", "".join(f"{i / 10} {what}\n" for i in range(300)))
        write(tmp_path / "groundtruth.txt", "".join(tum_row(i / 10, pose(i % 7)) for i in range(300)))
        frames = DATASETS["tum"](tmp_path)[0].frames
        assert len(frames) == 90 and frames[-1].stamp_ns == 26_700_000_000

    def test_published_of_another_day(self, tmp_path):
        for name in ("rgb", "depth"):
            write(tmp_path / f"{name}.txt", f"1.0 {name}/0.png\n")
        write(tmp_path / "groundtruth.txt", tum_row(2.0, pose(0)))
        with pytest.raises(ValueError, match=r"no image of rgb.txt is within 0.02 s of a pose in groundtruth.txt"):
            DATASETS["tum"](tmp_path)

    def test_prepared_takes_as_many_poses_as_images(self, tmp_path):
        write_image(tmp_path / "rgb_90" / "1.5.png", 0)
        write(tmp_path / "groundtruth_90.txt", tum_row(1.5, pose(0)) + tum_row(2.5, pose(1)))
        with pytest.raises(ValueError, match=r"1 images, 2 stamps, 1 depth images, 2 poses"):
            DATASETS["tum"](tmp_path)


def test_bonn(tmp_path):
    times = ("1548266535.9", "1548266535.95012", "1548266536.0")
    for name in BONN_SEQUENCES:
        folder = tmp_path / "rgbd_bonn_dataset" / f"rgbd_bonn_{name}"
        for index, time in enumerate(times):
            write_image(folder / "rgb_110" / f"{time}.png", index)
            write_depth(folder / "depth_110" / f"{time}1.png", index)
    sequences = DATASETS["bonn"](tmp_path)
    assert [s.name for s in sequences] == [f"rgbd_bonn_{name}" for name in BONN_SEQUENCES]
    assert sequences[0].max_depth == 70 and not sequences[0].clip_prediction
    assert indices(sequences[3]) == [0, 1, 2]
    for index, frame in enumerate(sequences[3].frames):
        check_depth(frame, 5000, index)
        assert frame.T_world_cam is None
        assert frame.stamp_ns == pytest.approx(float(times[index]) * SECOND, abs=1000)


def test_bonn_with_names_without_numbers_and_a_sequence_that_is_missing(tmp_path, caplog):
    folder = tmp_path / "rgbd_bonn_dataset" / "rgbd_bonn_crowd2"
    for index, name in enumerate(("a", "b")):
        write_image(folder / "rgb_110" / f"{name}.png", index)
        write_depth(folder / "depth_110" / f"{name}.png", index)
    (sequence,) = DATASETS["bonn"](tmp_path)
    assert [frame.stamp_ns for frame in sequence.frames] == [0, round(SECOND / 30)]
    assert [record.args[0] for record in caplog.records] == [
        f"rgbd_bonn_{name}" for name in BONN_SEQUENCES if name != "crowd2"
    ]


def test_kitti_has_the_first_110(tmp_path):
    selection = tmp_path / "depth_selection" / "val_selection_cropped"
    drive = "2011_09_26_drive_0002_sync_02"
    for index in range(112):
        write_image(selection / "image_gathered" / drive / f"{index:010d}.png", index % 20)
        write_depth(selection / "groundtruth_depth_gathered" / drive / f"{index:010d}.png", index)
    (sequence,) = DATASETS["kitti"](tmp_path)
    assert sequence.name == drive and sequence.max_depth == np.inf
    assert indices(sequence) == [index % 20 for index in range(110)]
    check_depth(sequence.frames[109], 256, 109)
    assert sequence.frames[15].stamp_ns == SECOND // 2


def sintel_files(folder: Path, name: str, index: int, tag: float = 202021.25) -> None:
    write_image(folder / "final" / name / f"frame_{index:04d}.png", index)
    depth = np.array([[1.5, np.inf, 3.0], [np.nan, 1e10, 7.0]], "<f4")
    write(folder / "depth" / name / f"frame_{index:04d}.dpt", struct.pack("<fii", tag, 3, 2) + depth.tobytes())
    camera = [*np.diag([1120.0, 1120, 1]).ravel(), *inverse(pose(index))[:3].ravel()]
    write(folder / "camdata_left" / name / f"frame_{index:04d}.cam", struct.pack("<f21d", tag, *camera))


class TestSintel:
    @pytest.fixture
    def training(self, tmp_path):
        for name in SINTEL_SEQUENCES:
            for index in (1, 2):
                sintel_files(tmp_path / "training", name, index)
        return tmp_path / "training"

    def test_sequences(self, training):
        write_image(training / "final" / "alley_1" / "frame_0001.png", 0)
        sequences = DATASETS["sintel"](training.parent)
        assert [s.name for s in sequences] == list(SINTEL_SEQUENCES)
        assert {(s.max_depth, s.clip_prediction) for s in sequences} == {(70.0, True)}
        assert indices(sequences[-1]) == [1, 2]
        for index, frame in zip((1, 2), sequences[-1].frames, strict=True):
            np.testing.assert_array_equal(frame.depth, np.float32([[1.5, 0, 3], [0, 1e10, 7]]))
            check_pose(frame, pose(index))
            np.testing.assert_array_equal(frame.intrinsics, np.diag([1120, 1120, 1]))

    def check_left_out(self, training, name):
        left = [sequence.name for sequence in DATASETS["sintel"](training.parent)]
        assert left == [other for other in SINTEL_SEQUENCES if other != name]

    def test_missing_sequence_is_named(self, training, caplog):
        (training / "final" / "cave_2").rename(training / "cave_2")
        self.check_left_out(training, "cave_2")
        assert "cave_2 is left out: " in caplog.text and "training/final/cave_2 does not exist or has no" in caplog.text

    def test_files_without_the_tag(self, training, caplog):
        sintel_files(training, "temple_3", 1, tag=0.0)
        self.check_left_out(training, "temple_3")
        assert "temple_3 is left out: " in caplog.text and "frame_0001.cam does not begin with the tag" in caplog.text

    @pytest.mark.parametrize("length", [0, 3, 4, 100])
    def test_a_cut_camera_file(self, training, length, caplog):
        path = training / "camdata_left" / "market_5" / "frame_0002.cam"
        path.write_bytes(path.read_bytes()[:length])
        self.check_left_out(training, "market_5")
        assert f"market_5 is left out: {path} " in caplog.text

    def test_a_camera_file_that_is_missing(self, training, caplog):
        (training / "camdata_left" / "market_5" / "frame_0002.cam").unlink()
        self.check_left_out(training, "market_5")
        assert "2 images, 2 stamps, 2 depth images, 1 poses" in caplog.text

    @pytest.mark.parametrize("length", [0, 6, 15])
    def test_a_cut_depth_file_costs_its_frame(self, training, length, caplog):
        path = training / "depth" / "market_5" / "frame_0002.dpt"
        path.write_bytes(path.read_bytes()[:length])
        sequence = next(s for s in DATASETS["sintel"](training.parent) if s.name == "market_5")
        assert len(list(readable(sequence))) == 1
        assert f"market_5: frame 1 is left out: {path} " in caplog.text

    def test_none_that_can_be_read(self, training):
        for path in training.glob("camdata_left/*/frame_0001.cam"):
            path.write_bytes(path.read_bytes()[:50])
        with pytest.raises(ValueError, match=r"alley_2/frame_0001.cam is cut off or damaged"):
            DATASETS["sintel"](training.parent)


def test_scannet(tmp_path):
    poses = [pose(0), np.full((4, 4), -np.inf), pose(2)]
    for index in range(3):
        write_image(tmp_path / "scene0707_00" / "color_90" / f"frame_{index:04d}.png", index)
        write_depth(tmp_path / "scene0707_00" / "depth_90" / f"frame_{index:04d}.png", index)
    write(tmp_path / "scene0707_00" / "pose_90.txt", "".join(map(matrix_row, poses)))
    (sequence,) = DATASETS["scannet"](tmp_path)
    assert sequence.name == "scene0707_00" and indices(sequence) == [0, 1, 2]
    assert sequence.frames[1].T_world_cam is None
    check_pose(sequence.frames[2], pose(2))
    check_depth(sequence.frames[2], 1000, 2)


def test_nrgbd_is_in_natural_order_and_optical_axes(tmp_path):
    for index in range(11):
        write_image(tmp_path / "staircase" / "images" / f"img{index}.png", index)
        write_depth(tmp_path / "staircase" / "depth" / f"depth{index}.png", index)
    write(tmp_path / "staircase" / "poses.txt", "".join(matrix_rows(pose(index)) for index in range(11)))
    (sequence,) = DATASETS["nrgbd"](tmp_path)
    assert sequence.name == "staircase" and indices(sequence) == list(range(11))
    frame = sequence.frames[10]
    check_depth(frame, 1000, 10)
    np.testing.assert_allclose(frame.T_world_cam[:, 0], pose(10)[:, 0])
    np.testing.assert_allclose(frame.T_world_cam[:, 1:3], -pose(10)[:, 1:3])
    np.testing.assert_allclose(frame.T_world_cam[:, 3], pose(10)[:, 3])
    np.testing.assert_array_equal(frame.intrinsics, [[554.256, 0, 320], [0, 554.256, 240], [0, 0, 1]])


class TestWorld:
    def test_folders_hold_what_was_rendered(self, tmp_path):
        for seed in (3, 4):
            write_folder(stream(seed, 2, 32, 24), tmp_path / f"room_{seed}")
        sequences = DATASETS["rooms"](tmp_path)
        assert [s.name for s in sequences] == ["room_3", "room_4"]
        assert [s.name for s in DATASETS["rooms"](tmp_path / "room_4")] == ["room_4"]
        for frame, truth in zip(sequences[1].frames, stream(4, 2, 32, 24), strict=True):
            np.testing.assert_array_equal(frame.image, truth.rgb)
            np.testing.assert_allclose(frame.depth, truth.depth, atol=0.00051)
            np.testing.assert_allclose(frame.T_world_cam, truth.T_room_cam, atol=1e-8)
            np.testing.assert_allclose(frame.intrinsics, truth.intrinsics)
            assert frame.stamp_ns == truth.stamp_ns

    def test_seeds_are_rendered_when_their_turn_comes(self):
        endless = room_sequences(range(7, 1 << 60), 2, 32, 24, "handheld", 10.0, 90.0)
        first, second = islice(endless, 2)
        assert (first.name, second.name) == ("room 7", "room 8")
        assert second.frames[0].intrinsics[0, 0] == pytest.approx(16)  # half the width, at 90 degrees
        truth_of_second = stream(8, 2, 32, 24, "handheld", 10.0, field_of_view=90.0)
        for frame, truth in zip(second.frames, truth_of_second, strict=True):
            for name, true in (("depth",) * 2, ("T_world_cam", "T_room_cam"), ("intrinsics",) * 2, ("stamp_ns",) * 2):
                np.testing.assert_array_equal(getattr(frame, name), getattr(truth, true))
            np.testing.assert_array_equal(frame.image, truth.rgb)


class TestFrames:
    @pytest.fixture
    def frames(self, tmp_path):
        write_seven_scenes(tmp_path, range(6))
        (tmp_path / "frame-000004.color.png").write_bytes(b"no image")
        return DATASETS["7scenes"](tmp_path)[0].frames

    def test_files_are_read_with_their_frame(self, frames):
        chosen = frames[::2]
        assert (len(frames), len(chosen), len(chosen[1:])) == (6, 3, 2)
        np.testing.assert_array_equal(chosen[1].image, picture(2))
        with pytest.raises(ValueError, match=r"frame-000004"):
            chosen[2]

    def test_end(self, frames):
        np.testing.assert_array_equal(frames[-1].image, picture(5))
        with pytest.raises(IndexError):
            frames[6]


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("folder", ["", "nowhere"])
def test_a_folder_without_the_data_set_says_what_is_expected(tmp_path, name, folder):
    expected = {
        "7scenes": "TestSplit.txt",
        "tum": "rgb_90 or rgb.txt",
        "bonn": "rgbd_bonn_dataset/rgbd_bonn_balloon2/rgb_110",
        "kitti": "depth_selection/val_selection_cropped/image_gathered",
        "sintel": "camdata_left/alley_2",
        "scannet": "color_90",
        "nrgbd": "poses.txt",
        "rooms": "intrinsics.txt",
    }
    with pytest.raises(FileNotFoundError, match=expected[name]):
        DATASETS[name](tmp_path / folder)


class TestDamagedText:
    """A damaged line costs its frame the pose, and never the run."""

    def poses(self, sequence) -> list[bool]:
        return [frame.T_world_cam is not None for frame in sequence.frames]

    @pytest.mark.parametrize("text", ["-1.#IND\t-1.#IND\t-1.#IND\t-1.#IND\r\n" * 4, "", "1 0 0 0\n0 1 0", "no pose\n"])
    def test_seven_scenes(self, tmp_path, text):
        write_seven_scenes(tmp_path, range(3))
        write(tmp_path / "frame-000001.pose.txt", text)
        assert self.poses(DATASETS["7scenes"](tmp_path)[0]) == [True, False, True]

    def test_a_pose_file_that_is_missing(self, tmp_path, caplog):
        write_seven_scenes(tmp_path, range(3))
        (tmp_path / "frame-000001.pose.txt").unlink()
        assert self.poses(DATASETS["7scenes"](tmp_path)[0]) == [True, False, True]
        assert "frame-000001.pose.txt" in caplog.text

    @pytest.mark.parametrize(
        ("row", "stamp"),
        [
            ("1.0 1 2 3 0 0 0 0\n", 1.0),
            ("1.0 1 2 3 0 0\n", 1.0),
            ("1.0 nan nan nan nan nan nan nan\n", 1.0),
            ("1.\n", 1.0),  # between the other two
        ],
    )
    def test_prepared_tum(self, tmp_path, row, stamp):
        for index in range(3):
            write_image(tmp_path / "rgb_90" / f"{index}.png", index)
        write(tmp_path / "groundtruth_90.txt", tum_row(0.0, pose(0)) + row + tum_row(2.0, pose(2)))
        (sequence,) = DATASETS["tum"](tmp_path)
        assert self.poses(sequence) == [True, False, True]
        assert sequence.frames[1].stamp_ns == stamp * SECOND

    @pytest.mark.parametrize(
        "tail", ["\n", "what is this?\n", "# end\r\n", "9.0 rgb/", "9.0 9", "9.0 9 0 0 0 0", "9", "\0\0\0"]
    )
    def test_published_tum_with_a_tail(self, tmp_path, tail):
        for i in range(9):
            write_image(tmp_path / "rgb" / f"{i}.png", i)
            write_depth(tmp_path / "depth" / f"{i}.png", i)
        for name in ("rgb", "depth"):
            write(tmp_path / f"{name}.txt", "".join(f"{i}.0 {name}/{i}.png\n" for i in range(9)) + tail)
        rows = [tum_row(i, pose(i)) for i in range(9)]
        rows[3] = "3.0 1 2 3 0 0 0 0\n"
        write(tmp_path / "groundtruth.txt", "".join(rows) + tail)
        (sequence,) = DATASETS["tum"](tmp_path)
        assert indices(sequence) == [0, 3, 6] and self.poses(sequence) == [True, False, True]

    def test_scannet_whose_last_line_is_cut(self, tmp_path):
        for index in range(3):
            write_image(tmp_path / "color_90" / f"{index}.png", index)
            write_depth(tmp_path / "depth_90" / f"{index}.png", index)
        write(tmp_path / "pose_90.txt", "".join(matrix_row(pose(i)) for i in range(3))[:-40])
        assert self.poses(DATASETS["scannet"](tmp_path)[0]) == [True, True, False]


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def heic(path: Path) -> None:
    path.with_suffix(".HEIC").write_bytes(b"no image")
    path.unlink()


class TestFilesThatCannotBeRead:
    """They cost their own frame, and no other frame gets its depth or pose."""

    @pytest.fixture
    def scannet(self, tmp_path):
        for index in range(6):
            write_image(tmp_path / "color_90" / f"{index}.png", index)
            write_depth(tmp_path / "depth_90" / f"{index}.png", index)
        write(tmp_path / "pose_90.txt", "".join(matrix_row(pose(index)) for index in range(6)))
        return tmp_path

    def check(self, folder, left):
        (sequence,) = DATASETS["scannet"](folder)
        frames = list(readable(sequence))
        assert [int(frame.image[0, 0, 2]) // 10 for frame in frames] == left
        for index, frame in zip(left, frames, strict=True):
            check_depth(frame, 1000, index)
            check_pose(frame, pose(index))

    @pytest.mark.parametrize("spoil", [dangling, folder_instead, heic])
    @pytest.mark.parametrize("name", ["color_90/2.png", "depth_90/2.png"])
    def test_one(self, scannet, spoil, name, caplog):
        spoil(scannet / name)
        self.check(scannet, [0, 1, 3, 4, 5])
        assert str((scannet / name).with_suffix("")) in caplog.text

    def test_an_image_and_the_depth_of_another(self, scannet):
        dangling(scannet / "color_90" / "1.png")
        dangling(scannet / "depth_90" / "4.png")
        self.check(scannet, [0, 2, 3, 5])

    def test_and_a_pose_that_is_missing(self, scannet, caplog):
        dangling(scannet / "color_90" / "1.png")
        dangling(scannet / "depth_90" / "4.png")
        write(scannet / "pose_90.txt", "".join(matrix_row(pose(index)) for index in range(5)))
        with pytest.raises(ValueError, match="6 images, 6 stamps, 6 depth images, 5 poses"):
            DATASETS["scannet"](scannet)

    def test_hidden_files_are_none(self, scannet):
        for name in ("color_90/._2.png", "depth_90/._3.png", "color_90/.0.jpg"):
            write(scannet / name, b"Mac OS X")
        self.check(scannet, list(range(6)))

    def test_depth_with_more_pixels_than_pillow_takes(self, scannet, monkeypatch, caplog):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
        cv2.imwrite(str(scannet / "depth_90" / "2.png"), np.ones((50, 100), np.uint16))
        self.check(scannet, [0, 1, 3, 4, 5])
        assert "depth_90/2.png cannot be read: Image size (5000 pixels)" in caplog.text

    def test_depth_that_is_a_coloured_picture_of_it(self, scannet, caplog):
        write_image(scannet / "depth_90" / "2.png", 2)
        self.check(scannet, [0, 1, 3, 4, 5])
        assert "depth_90/2.png is no depth image" in caplog.text
