# SPDX-License-Identifier: Apache-2.0
"""Replays of streams of segments: what a place seen again corrects is corrected in files of their own."""

import re

import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from support.frames import read_ply
from support.full_disk import limited
from support.recordings import camera_info, raw_image, write_bag

from xsvggt_ros.cli import main
from xsvggt_ros.geometry import rigid, rotation_matrix
from xsvggt_ros.messages.topics import KEYFRAMES, TOPICS
from xsvggt_ros.rooms import stream

FRAMES = 18
CLOSURE = 12  # the first frame of a segment that began at a keyframe seen before
STRIDE = 4
POINTS = 21 * 28  # of a frame of 84 x 112
SEGMENTS = ["--segment.enabled", "--segment.work", "1", "--segment.overlap", "0.9", "--segment.shared", "1"]
AT_ANY_RATE = ["--loop.likeness", "0.3", "--loop.agreement", "0.1", "--loop.match", "0.2"]  # a place is taken for known
EXACT = ["--device", "cpu", "--dtype", "float32", "--point_stride", str(STRIDE), "--confidence_threshold", "0"]
CORRECTED = ["cloud_corrected.ply", "trajectory_corrected.txt"]


@pytest.fixture(scope="module")
def truths():
    return list(stream(3, FRAMES, 112, 84, "robot", 4.0))


@pytest.fixture(scope="module")
def bag(truths, tmp_path_factory):
    return bag_of(tmp_path_factory.mktemp("recording") / "bag", truths, [truth.stamp_ns for truth in truths])


def bag_of(path, truths, stamps):
    info = ("/camera/camera_info", 0, camera_info(truths[0].intrinsics, (84, 112)))
    images = zip(truths, stamps, strict=True)
    return write_bag(path, [info, *(("/camera/image_raw", i, raw_image(t.rgb, s)) for i, (t, s) in enumerate(images))])


def run(source, output, *flags):
    return main(["replay", str(source), "--output", str(output), *EXACT, *flags])


@pytest.fixture(scope="module")
def output(bag, tmp_path_factory):
    output = tmp_path_factory.mktemp("segments") / "out"
    assert run(bag, output, *SEGMENTS, *AT_ANY_RATE) == 0
    return output


def rows(output, name="trajectory"):
    return np.loadtxt(output / f"{name}.txt", ndmin=2)


def poses(output, name="trajectory"):
    return [rigid(rotation_matrix(row[4:]), row[1:4]) for row in rows(output, name)]


def points(output, name="cloud"):
    """[frames, N, 3]."""
    vertices = read_ply(output / f"{name}.ply")
    return np.stack([vertices[axis] for axis in "xyz"], -1).reshape(-1, POINTS, 3).astype(np.float64)


def read_bag(output):
    """{topic: messages}."""
    found = {}
    with AnyReader([output / "bag"]) as reader:
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(reader.deserialize(data, connection.msgtype))
    return found


def matrix(transform):
    p, q = transform.translation, transform.rotation
    return rigid(rotation_matrix(np.array([q.x, q.y, q.z, q.w])), np.array([p.x, p.y, p.z]))


def off(output, number=""):
    """Distance of each frame's corrected place from the other."""
    ways = (rows(output, f"trajectory{number}{corrected}")[:, 1:4] for corrected in ("", "_corrected"))
    return np.linalg.norm(np.subtract(*ways), axis=1)


def test_a_replay_of_segments_has_corrected_files_and_one_without_has_none(bag, output, tmp_path, capsys):
    names = ["bag", "cloud.ply", "cloud_corrected.ply", "depth", "trajectory.txt", "trajectory_corrected.txt"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert run(bag, tmp_path / "out", "--max-frames", "2") == 0
    plain = [name for name in names if name not in CORRECTED]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == plain
    assert set(read_bag(tmp_path / "out")) == {topic.replace("~", "/stream") for topic in TOPICS}
    capsys.readouterr()
    assert run(bag, tmp_path / "segments", "--max-frames", "2", *SEGMENTS) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [str(tmp_path / "segments" / name) for name in names]
    assert run(bag, tmp_path / "segments", *SEGMENTS) == 2
    assert "already has " + ", ".join(names) in capsys.readouterr().err


def test_corrected_files_say_that_they_are_in_the_map(output):
    for name, frame in (("", "odom"), ("_corrected", "map")):
        trajectory, cloud = output / f"trajectory{name}.txt", output / f"cloud{name}.ply"
        assert f"in {frame} (x forward, y left, z up)" in trajectory.read_text().splitlines()[0]
        assert f"comment {frame} (x forward".encode() in cloud.read_bytes()[:200]


def test_a_place_seen_again_corrects_what_came_after_it_and_not_what_came_before(output):
    statuses = read_bag(output)["/stream/status"]
    closures = [status.closures for status in statuses]
    assert closures.index(1) == CLOSURE - 1  # its status is that of the frame at which they join
    assert rows(output)[:, 0].tolist() == rows(output, "trajectory_corrected")[:, 0].tolist()
    distances = off(output)
    assert (distances[:4] < 1e-8).all()  # of the first segment, whose keyframe holds the map's axes
    assert (distances[CLOSURE:] > 0.01).all()


def test_the_last_frame_is_where_map_to_odom_had_it(output):
    """Nothing has corrected the map since; odometry itself never jumps."""
    child, corrected = (matrix(t.transform) for t in read_bag(output)["/tf"][-1].transforms)
    np.testing.assert_allclose(poses(output)[-1], child, atol=1e-8)
    np.testing.assert_allclose(poses(output, "trajectory_corrected")[-1], corrected @ child, atol=1e-8)
    steps = np.linalg.norm(np.diff(rows(output)[:, 1:4], axis=0), axis=1)
    assert steps.max() < 0.2


def test_without_closures_little_is_corrected(bag, tmp_path):
    """What odometry left out at joins, since it never steps further than the camera moved."""
    assert run(bag, tmp_path / "out", *SEGMENTS, "--no-loop.enabled") == 0
    last = read_bag(tmp_path / "out")["/stream/status"][-1]
    assert last.segment >= 2 and last.closures == 0
    distances = off(tmp_path / "out")
    assert (distances[:4] < 1e-8).all() and distances.max() < 0.05
    np.testing.assert_allclose(points(tmp_path / "out"), points(tmp_path / "out", "cloud_corrected"), atol=0.2)


def test_the_corrected_cloud_is_the_cloud_carried_by_the_corrected_cameras(output):
    assert points(output).shape == points(output, "cloud_corrected").shape == (FRAMES, POINTS, 3)
    scales = []
    ways = poses(output), points(output), poses(output, "trajectory_corrected"), points(output, "cloud_corrected")
    for T_odom_cam, in_odom, T_map_cam, in_map in zip(*ways, strict=True):
        was = (in_odom - T_odom_cam[:3, 3]) @ T_odom_cam[:3, :3]
        now = (in_map - T_map_cam[:3, 3]) @ T_map_cam[:3, :3]
        scales.append(np.linalg.norm(now) / np.linalg.norm(was))
        np.testing.assert_allclose(now, scales[-1] * was, atol=1e-4)
        assert (now[:, 2] > 0).all()  # ahead of the camera
    np.testing.assert_allclose(scales[:4], 1, atol=1e-5)
    assert min(scales) > 0.5 and max(scales) < 2
    colours = [read_ply(output / f"{name}.ply")[["red", "green", "blue"]] for name in ("cloud", "cloud_corrected")]
    np.testing.assert_array_equal(*colours)


def test_the_bag_has_map_to_odom_and_keyframes(output):
    found = read_bag(output)
    assert set(found) == {topic.replace("~", "/stream") for topic in TOPICS | KEYFRAMES}
    names = {tuple((t.header.frame_id, t.child_frame_id) for t in msg.transforms) for msg in found["/tf"]}
    assert names == {(("odom", "cam_optical"), ("map", "odom"))}
    assert len(found["/stream/keyframes"][0].poses) == 1
    for msg, status in zip(found["/stream/keyframes"], found["/stream/status"], strict=True):
        assert msg.header.frame_id == "map" and abs(len(msg.poses) - status.keyframes) <= 1
    assert len(found["/stream/keyframes"][-1].poses) >= 2


def test_two_runs_give_the_same_bytes(bag, output, tmp_path):
    assert run(bag, tmp_path / "out", *SEGMENTS, *AT_ANY_RATE) == 0
    once, again = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (output, tmp_path / "out")
    )
    assert once.keys() == again.keys() and len(once) == FRAMES + 6
    assert [str(name) for name in once if once[name] != again[name]] == []


def test_metres_are_those_of_the_corrected_files_too(bag, output, tmp_path):
    flags = ["--scale.source", "fixed", "--scale.factor", "2", *SEGMENTS, *AT_ANY_RATE]
    assert run(bag, tmp_path / "out", *flags) == 0
    for name in ("trajectory", "trajectory_corrected"):
        np.testing.assert_allclose(rows(tmp_path / "out", name)[:, 1:4], 2 * rows(output, name)[:, 1:4], atol=1e-7)
        np.testing.assert_allclose(rows(tmp_path / "out", name)[:, 4:], rows(output, name)[:, 4:], atol=1e-7)
    for name in ("cloud", "cloud_corrected"):
        np.testing.assert_allclose(points(tmp_path / "out", name), 2 * points(output, name), atol=1e-4)


def test_a_world_that_starts_anew_has_corrected_files_of_its_own(truths, output, tmp_path):
    count = CLOSURE + 3
    seen, again = truths[:count], truths[:5]
    stamps = [100 * 10**9 + truth.stamp_ns for truth in seen] + [truth.stamp_ns for truth in again]
    assert run(bag_of(tmp_path / "in", [*seen, *again], stamps), tmp_path / "out", *SEGMENTS, *AT_ANY_RATE) == 0
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"trajectory_1.txt", "trajectory_1_corrected.txt", "cloud_1.ply", "cloud_1_corrected.ply"} <= found
    assert len(off(tmp_path / "out")) == count and len(off(tmp_path / "out", "_1")) == 5
    assert (off(tmp_path / "out")[CLOSURE:] > 0.01).all()
    assert (off(tmp_path / "out", "_1")[:4] < 1e-8).all()
    np.testing.assert_allclose(rows(tmp_path / "out", "trajectory_1")[:4, 1:], rows(output)[:4, 1:], atol=1e-9)
    assert points(tmp_path / "out", "cloud_1_corrected").shape == (5, POINTS, 3)


# --- a disk that is full ----------------------------------------------------------------------------


def check_whole(output, name):
    """The file has all the bytes that it says; returns its number of points."""
    data = (output / f"{name}.ply").read_bytes()
    vertices = read_ply(output / f"{name}.ply")
    assert len(data) == data.index(b"end_header\n") + len("end_header\n") + len(vertices) * vertices.itemsize
    return len(vertices)


@pytest.mark.parametrize(
    ("size", "flags", "frames"),
    [
        (200_000, ["--point_stride", "1"], range(1, 3)),  # the cloud cannot grow
        (900_000, ["--confidence_threshold", "1000"], range(3, FRAMES)),  # the bag, and there is no point
    ],
)
def test_what_was_written_before_the_disk_was_full_can_be_read(bag, tmp_path, capsys, size, flags, frames):
    with limited(size):
        assert run(bag, tmp_path / "out", *SEGMENTS, *AT_ANY_RATE, *flags) == 2
    assert f"the disk of {tmp_path / 'out'} is full" in capsys.readouterr().err
    plain, corrected = rows(tmp_path / "out"), rows(tmp_path / "out", "trajectory_corrected")
    assert len(plain) in frames and len(corrected) in (len(plain), len(plain) - 1)
    assert plain[: len(corrected), 0].tolist() == corrected[:, 0].tolist()
    assert check_whole(tmp_path / "out", "cloud") == check_whole(tmp_path / "out", "cloud_corrected")


def test_a_corrected_way_that_cannot_be_written_leaves_the_rest_whole(bag, tmp_path, capsys, monkeypatch):
    """The disk is full when the world has ended."""
    from xsvggt_ros.replay import files

    def full(self, path, *args):
        if "corrected" in path.name:
            raise OSError(28, "No space left on device")
        opened(self, path, *args)

    opened = files.TrajectoryFile.__init__
    monkeypatch.setattr(files.TrajectoryFile, "__init__", full)
    assert run(bag, tmp_path / "out", *SEGMENTS, "--max-frames", "3") == 2
    assert re.search(r"the disk of .*out is full \(No space left on device\)", capsys.readouterr().err)
    assert len(rows(tmp_path / "out")) == 3 and check_whole(tmp_path / "out", "cloud") == 3 * POINTS
    assert {len(messages) for messages in read_bag(tmp_path / "out").values()} == {3}
