# SPDX-License-Identifier: Apache-2.0
"""Text files of data sets, as Windows, spreadsheets and full disks leave them."""

import numpy as np
import pytest

from xsvggt_ros.evaluation.text_files import (
    read_camera,
    read_list,
    read_matrices,
    read_pose,
    read_text,
    read_trajectory,
)
from xsvggt_ros.geometry import quaternion_xyzw, rigid, rotation_matrix

POSES = [rigid(rotation_matrix(np.array([0.1, 0.2 * i, -0.3, 0.9])), np.array([i, 2.0, -0.5])) for i in range(4)]
ROWS = [[0.5 * i, *T[:3, 3], *quaternion_xyzw(T[:3, :3])] for i, T in enumerate(POSES)]
TRAJECTORY = [" ".join(map(repr, map(float, row))) for row in ROWS]
MATRICES = [" ".join(map(repr, row)) for T in POSES for row in T.tolist()]  # four lines each
NAN = np.full((4, 4), np.nan)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.txt"


def check(found, lost=()):
    expected = [NAN if i in lost else T for i, T in enumerate(POSES)]
    np.testing.assert_allclose(np.where(np.isnan(found).any((1, 2), keepdims=True), np.nan, found), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        (lambda text: text, "utf-8"),
        (lambda text: text.replace("\n", "\r\n"), "utf-8-sig"),
        (lambda text: text.replace("\n", "\r\n"), "utf-16"),
        (lambda text: text.replace("\n", "\r"), "utf-8"),
        (lambda text: text.replace(" ", ","), "utf-8"),
        (lambda text: text.replace(" ", ", "), "utf-8"),
        (lambda text: text.replace(" ", "; "), "utf-8"),
        (lambda text: text.replace(" ", "\t").replace("\n", "\t\n"), "utf-8"),
        (lambda text: "\n\n# größe\n% x\n// y\n" + text.replace("\n", "  # ok\n\n") + "\n \n", "latin-1"),
        (lambda text: text.rstrip("\n"), "utf-8"),
    ],
)
def test_ways_to_write_the_same(path, change, encoding, caplog):
    path.write_bytes(change("\n".join(TRAJECTORY) + "\n").encode(encoding))
    seconds, poses = read_trajectory(path)
    np.testing.assert_array_equal(seconds, [0, 0.5, 1, 1.5])
    check(poses)
    path.write_bytes(change("\n".join(MATRICES) + "\n").encode(encoding))
    check(read_matrices(path))
    assert not caplog.messages


@pytest.mark.parametrize(
    "line",
    [
        "1.0 1 2 3 0 0 0 0",
        "1.0 -1.#IND 1.#QNAN -nan(ind) nan NaN inf 1.#INF",
    ],
)
def test_a_line_without_a_pose_keeps_its_time(path, line, caplog):
    path.write_text("\n".join([*TRAJECTORY[:2], line, TRAJECTORY[3]]))
    seconds, poses = read_trajectory(path)
    np.testing.assert_array_equal(seconds, [0, 0.5, 1, 1.5])
    check(poses, lost=[2])
    assert ("1 lines that are a quaternion of length 0 (line 3)" in caplog.text) is line.endswith("0 0 0 0")


@pytest.mark.parametrize("line", ["1", "1.0 1 2 3", "1.0 1 2 3 0 0 0 1 7 7", "1.0 1 2 x 0 0 0 1"])
def test_a_damaged_line_has_neither(path, line, caplog):
    path.write_text("\n".join([*TRAJECTORY[:2], line, TRAJECTORY[3]]))
    seconds, poses = read_trajectory(path)
    np.testing.assert_array_equal(seconds, [0, 0.5, np.nan, 1.5])
    check(poses, lost=[2])
    assert "file.txt: left out, 1 lines that are not 8 numbers (line 3)" in caplog.text


def test_text_between_the_lines_is_skipped_and_counted(path, caplog):
    path.write_text(
        "\n".join(["timestamp tx ty tz qx qy qz qw", *TRAJECTORY[:2], "Segmentation fault", *TRAJECTORY[2:]])
    )
    check(read_trajectory(path)[1])
    assert "2 lines that are not 8 numbers (line 1, 4)" in caplog.text


@pytest.mark.parametrize("read", [read_trajectory, read_matrices, read_camera, read_list])
@pytest.mark.parametrize(
    "content", [b"", b"\n# only a comment\n", b"<html>404</html>", bytes(range(256)), b"1 2\xff\n"]
)
def test_a_file_of_something_else_is_named(path, read, content):
    path.write_bytes(content)
    if read is read_list and b"1 2" in content:
        return
    with pytest.raises(ValueError, match=r"file\.txt must have"):
        read(path)


def test_the_line_that_shows_it_is_quoted(path):
    path.write_text("# x\n\n1 2 3\n4 5 6\n")
    with pytest.raises(ValueError, match=r"must have 4 or 16 values per line, but line 3 is '1 2 3'"):
        read_matrices(path)


def test_matrices_by_line(path, caplog):
    lines = [" ".join(MATRICES[i : i + 4]) for i in range(0, 16, 4)]
    path.write_text("\n".join([*lines[:1], " ".join(["-inf"] * 16), lines[2], lines[3][:-9]]))
    check(read_matrices(path), lost=[1, 3])
    assert "1 lines that are not 16 numbers (line 4)" in caplog.text


def test_a_cut_last_matrix_has_no_pose(path):
    path.write_text("\n".join(MATRICES[:-2]))
    check(read_matrices(path), lost=[3])


def test_a_matrix_that_is_no_rigid_transform_has_no_pose(path, caplog):
    for change in (np.zeros((4, 4)), np.diag([1.0, 1, -1, 1]), 2 * np.eye(4), np.ones((4, 4))):
        caplog.clear()
        wrong = [" ".join(map(repr, row)) for row in change.tolist()]
        path.write_text("\n".join([*MATRICES[:4], *wrong, *MATRICES[8:]]))
        check(read_matrices(path), lost=[1])
        assert "1 lines that are not the start of a rigid transform (line 5)" in caplog.text
    path.write_text("\n".join(wrong))
    with pytest.raises(ValueError, match=r"file.txt has no pose of 16 numbers: from line 1 on"):
        read_matrices(path)


def test_a_pose_of_its_own(path, caplog):
    path.write_text("\n".join(MATRICES[:4]))
    np.testing.assert_allclose(read_pose(path), POSES[0])
    for text in ("", "no pose", "\n".join(MATRICES), "1 2 3 4\n" * 4):
        caplog.clear()
        path.write_text(text)
        np.testing.assert_array_equal(read_pose(path), NAN)
        assert "left without a pose" in caplog.text and "file.txt" in caplog.text


def test_a_camera(path):
    path.write_text("585 0 320\r\n0 585 240\r\n0 0 1\r\n\r\n")
    np.testing.assert_array_equal(read_camera(path), [[585, 0, 320], [0, 585, 240], [0, 0, 1]])
    for text in ("585 0 320\n0 585 240\n", "585 0 320\n0 nan 240\n0 0 1\n", "585 0 320\n0 585\n0 0 1\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"file.txt must have the 3 lines of 3 numbers"):
            read_camera(path)


def test_a_list(path, caplog):
    path.write_text(
        "# x\r\n0.5 rgb/0.png\r\n1.0,rgb\\1.png\r\n\r\n1.5\r\nx rgb/3.png\r\nnan rgb/4.png\r\n2.5 rgb/a b, c.png"
    )
    seconds, files = read_list(path)
    np.testing.assert_array_equal(seconds, [0.5, 1, 2.5])
    assert [file.relative_to(path.parent).as_posix() for file in files] == ["rgb/0.png", "rgb/1.png", "rgb/a b, c.png"]
    assert "3 lines that are no `seconds file` (line 5, 6, 7)" in caplog.text


def test_text_of_any_encoding(path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes("sequence3\r\n".encode(encoding))
        assert read_text(path).split() == ["sequence3"]


@pytest.mark.parametrize("heading", [["4"], ["4 1"], ["2", "4"], ["4", "1 0.5"]])
def test_a_count_above_all_poses_is_none(path, heading, caplog):
    by_line = [" ".join(MATRICES[i : i + 4]) for i in range(0, 16, 4)]
    for read, lines in (
        (lambda p: read_trajectory(p)[1], TRAJECTORY),
        (read_matrices, MATRICES),
        (read_matrices, by_line),
    ):
        caplog.clear()
        path.write_text("\n".join([*heading, *lines]))
        check(read(path))
        assert f"{len(heading)} lines that are not" in caplog.text


@pytest.mark.parametrize("index", ["{}", "{0} {0} 0", "{0} 0.5"])  # the second: a .log file of Redwood's
def test_an_index_above_each_matrix_is_none(path, index, caplog):
    path.write_text("".join(index.format(i) + "\n" + "\n".join(MATRICES[4 * i : 4 * i + 4]) + "\n" for i in range(4)))
    check(read_matrices(path))
    assert "4 lines that are not 4 numbers (line 1, 6, 11, 16)" in caplog.text


def test_an_index_above_each_pose_is_none(path):
    path.write_text("".join(f"{i}\n{line}\n" for i, line in enumerate(TRAJECTORY)))
    check(read_trajectory(path)[1])


@pytest.mark.parametrize("cut", range(4))
def test_a_row_of_a_matrix_that_is_cut_is_no_heading(path, cut):
    lines = [*MATRICES]
    lines[cut] = "0.5"
    path.write_text("\n".join(lines))
    check(read_matrices(path), lost=[0])


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_matrices, "-inf -inf -inf -inf\n" * 8),
        (read_matrices, " ".join(["nan"] * 16) + "\n"),
        (read_matrices, "\n".join(MATRICES[:3])),
        (read_matrices, "7\n".join(line + "\n" for line in MATRICES)),
        (read_trajectory, "1.0 1 2 3 0 0 0 0\n" * 3),
        (read_trajectory, "1.0 nan nan nan nan nan nan nan\n"),
    ],
)
def test_a_file_of_which_all_poses_are_lost(path, read, text):
    path.write_text(text)
    with pytest.raises(ValueError, match=r"file.txt has no pose"):
        read(path)
