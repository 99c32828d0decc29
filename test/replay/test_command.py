# SPDX-License-Identifier: Apache-2.0
import filecmp
import re
import signal

import cv2
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from support.frames import read_ply
from support.paths import SHARED
from support.recordings import SECOND, encoded, image_bag, picture, raw_image, write_bag, write_folder

from xsvggt_ros.cli import main
from xsvggt_ros.config import StreamConfig
from xsvggt_ros.geometry import quaternion_xyzw, ros_pose
from xsvggt_ros.messages.topics import TOPICS
from xsvggt_ros.replay import command as replay
from xsvggt_ros.rooms import stream
from xsvggt_ros.rooms.bag import write_bag as write_room
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.settings import changed
from xsvggt_ros.stream import GeometryStream

FEW_TOKENS = ("--cache.budget_tokens", "500")
REAL_IMAGES = SHARED / "data" / "7scenes_sample"


@pytest.fixture
def images(tmp_path):
    return write_folder(tmp_path / "images", 4)


def run(source, output, *flags):
    return main(["replay", str(source), "--output", str(output), *flags])


def read_trajectory(path):
    return np.loadtxt(path, ndmin=2)


def read_bag(output):
    """{topic: [(time, message)]} with every message decoded."""
    found: dict[str, list] = {}
    with AnyReader([output / "bag"]) as reader:
        for connection, time, data in reader.messages():
            found.setdefault(connection.topic, []).append((time, reader.deserialize(data, connection.msgtype)))
    return found


def read_points(msg):
    """Points [h, w, 3] and colours [h, w, 3] of a PointCloud2."""
    packed = msg.data.view("<f4").reshape(msg.height, msg.width, 4)
    colours = packed.view(np.uint8)[..., 14:11:-1]
    return packed[..., :3], colours


class FailingStream(SegmentedStream):
    """Does at its third step what `failure` says."""

    def take(self, image, intrinsics=None, stamp_ns=None):
        if self.status.frame == 1:
            self.failure()
        return super().take(image, intrinsics, stamp_ns)


@pytest.fixture(scope="module")
def frames():
    stream = GeometryStream(changed(StreamConfig(), {"cache.budget_tokens": 500}))
    return [stream.step(picture(i)) for i in range(6)]


@pytest.fixture(scope="module")
def threshold(frames):
    """A confidence that about half of the pixels have."""
    return float(np.median([frame.confidence for frame in frames]))


@pytest.fixture(scope="module")
def output(tmp_path_factory, threshold):
    folder = tmp_path_factory.mktemp("replay")
    write_folder(folder / "images", 6)
    assert run(folder / "images", folder / "out", *FEW_TOKENS, "--confidence_threshold", repr(threshold)) == 0
    return folder / "out"


class TestOutputs:
    def test_trajectory_is_the_streams(self, output, frames):
        rows = read_trajectory(output / "trajectory.txt")
        assert rows.shape == (6, 8)
        for i, frame in enumerate(frames):
            pose = ros_pose(frame.T_first_cam)
            np.testing.assert_allclose(rows[i, 0], i / 30, atol=1e-9)
            np.testing.assert_allclose(rows[i, 1:4], pose[:3, 3], atol=1e-8)
            np.testing.assert_allclose(rows[i, 4:], quaternion_xyzw(pose[:3, :3]), atol=1e-8)

    def test_depth_images_are_the_streams(self, output, frames, threshold):
        for i, frame in enumerate(frames):
            image = cv2.imread(str(output / "depth" / f"{i:06d}.png"), cv2.IMREAD_UNCHANGED)
            valid = frame.confidence >= threshold
            assert 0 < valid.mean() < 1
            np.testing.assert_allclose(image / 1000, np.where(valid, frame.depth, 0), atol=0.00051)

    def test_bag_has_every_topic_for_every_frame(self, output):
        found = read_bag(output)
        assert set(found) == {topic.replace("~", "/stream") for topic in TOPICS}
        for topic, messages in found.items():
            assert [time for time, _ in messages] == [round(i * 1e9 / 30) for i in range(6)], topic
        for time, message in found["/stream/depth/image"]:
            assert message.header.stamp.sec * SECOND + message.header.stamp.nanosec == time

    def test_transform_trajectory_points_and_cloud_agree(self, output):
        found = read_bag(output)
        rows = read_trajectory(output / "trajectory.txt")
        world = []
        for row, (_, tf), (_, cloud) in zip(rows, found["/tf"], found["/stream/points"], strict=True):
            (transform,) = tf.transforms
            assert (transform.header.frame_id, transform.child_frame_id) == ("odom", cloud.header.frame_id)
            p, q = transform.transform.translation, transform.transform.rotation
            np.testing.assert_allclose([p.x, p.y, p.z, q.x, q.y, q.z, q.w], row[1:], atol=1e-8)
            points, colours = read_points(cloud)
            valid = np.isfinite(points).all(axis=-1)
            v, w = np.array([q.x, q.y, q.z]), q.w
            x = points[valid].astype(float)
            moved = x + 2 * np.cross(v, np.cross(v, x) + w * x) + np.array([p.x, p.y, p.z])  # the quaternion, applied
            world.append(np.hstack([moved, colours[valid]]))
        vertices = read_ply(output / "cloud.ply")
        columns = np.stack([vertices[name] for name in vertices.dtype.names], axis=1)
        np.testing.assert_allclose(columns, np.concatenate(world), atol=1e-5)

    def test_status_has_the_settings(self, output, frames):
        for (_, status), frame in zip(read_bag(output)["/stream/status"], frames, strict=True):
            assert (status.frame, status.tokens, status.cache_bytes) == (
                frame.index, frame.status.tokens, frame.status.cache_bytes)  # fmt: skip
            assert (status.policy, status.budget_tokens) == (frame.status.policy, frame.status.budget_tokens)
            assert (status.frames_received, status.frames_rejected, status.resets) == (frame.index + 1, 0, 0)


def test_two_runs_are_the_same(images, tmp_path):
    for name in "ab":
        assert run(images, tmp_path / name, *FEW_TOKENS, "--cache.policy", "random") == 0
    depths = [f"depth/{i:06d}.png" for i in range(4)]
    same, _, _ = filecmp.cmpfiles(
        tmp_path / "a", tmp_path / "b", ["trajectory.txt", "cloud.ply", *depths], shallow=False
    )
    assert len(same) == 6


def test_summary(images, tmp_path, capsys):
    (images / "frame-1.png").write_bytes(b"no image")
    assert run(images, tmp_path / "out") == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0] == "3 frames, 1 images skipped"
    assert "s per frame" in lines[1] and "MiB of cache" in lines[1]
    assert lines[2:] == [str(tmp_path / "out" / name) for name in ("bag", "cloud.ply", "depth", "trajectory.txt")]
    assert "3/4" in captured.err  # the progress bar: images used, images there


def test_skipped_images_are_said_and_counted_in_the_status(images, tmp_path, caplog):
    (images / "frame-1.png").write_bytes(b"no image")
    (images / "frame-2.png").write_bytes(encoded(picture(2, (2, 64)), ".png"))  # not one patch high
    assert run(images, tmp_path / "out") == 0
    assert "2 images skipped (2 rejected), the first: frame-1.png" in caplog.text
    last = read_bag(tmp_path / "out")["/stream/status"][-1][1]
    assert (last.frames_received, last.frames_rejected) == (4, 2)


def test_max_frames_and_stride(tmp_path):
    write_folder(tmp_path / "images", 9)
    assert run(tmp_path / "images", tmp_path / "out", "--stride", "2", "--max-frames", "3", "--rate", "1") == 0
    assert read_trajectory(tmp_path / "out" / "trajectory.txt")[:, 0].tolist() == [0, 2, 4]


def test_chunks_are_written_whole_and_what_is_left_at_the_end_too(tmp_path, capsys, caplog):
    write_folder(tmp_path / "images", 8)
    (tmp_path / "images" / "frame-4.png").write_bytes(b"no image")
    for name, most, taken in (("all", [], [0, 1, 2, 3, 5, 6, 7]), ("some", ["--max-frames", "4"], [0, 1, 2, 3])):
        output = tmp_path / name
        assert run(tmp_path / "images", output, "--rate", "1", "--cache.chunk", "3", *most) == 0
        assert read_trajectory(output / "trajectory.txt")[:, 0].tolist() == taken
        statuses = [status for _, status in read_bag(output)["/stream/status"]]
        assert [status.frame for status in statuses] == list(range(len(taken)))
        assert statuses[-1].frames_waiting == 0
    assert statuses[2].frames_received == 3
    assert "frame-4.png" in caplog.text


def test_a_cache_that_the_machine_has_no_memory_for_costs_one_sentence(images, tmp_path, capsys):
    assert run(images, tmp_path / "out", "--cache.budget_tokens", str(10**12)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xsvggt replay: a cache of these settings takes ")
    assert line.endswith("MiB; lower cache.budget_tokens")


def test_settings_reach_the_stream(images, tmp_path):
    flags = ["--cache.key_bits", "2", "--cache.value_bits", "8", "--cache.policy", "sliding_window"]
    assert run(images, tmp_path / "out", *flags, "--point_stride", "7", "--world_frame", "map") == 0
    found = read_bag(tmp_path / "out")
    status = found["/stream/status"][-1][1]
    assert (status.key_bits, status.value_bits, status.policy) == (2, 8, "sliding_window")
    depth, cloud = found["/stream/depth/image"][0][1], found["/stream/points"][0][1]
    assert (cloud.height, cloud.width) == (-(-depth.height // 7), -(-depth.width // 7))
    assert found["/tf"][0][1].transforms[0].header.frame_id == "map"


def test_flags_are_all_settings_but_those_of_a_live_node():
    names = {setting.name for setting in replay.SETTINGS}
    assert names >= {"weights", "image_width", "cache.budget_tokens", "point_stride", "world_frame"}
    assert not names & set(replay.LIVE_ONLY)


class TestWorlds:
    def test_another_image_size_starts_a_new_world(self, images, tmp_path, caplog):
        for i in range(2, 6):
            (images / f"frame-{i}.png").write_bytes(encoded(picture(i, (64, 48)), ".png"))
        assert run(images, tmp_path / "out") == 0
        assert "image size changed" in caplog.text
        for name in ("trajectory.txt", "trajectory_1.txt"):
            rows = read_trajectory(tmp_path / "out" / name)
            assert rows.shape == (2, 8)
            np.testing.assert_allclose(rows[0, 1:4], 0, atol=1e-9)
        found = read_bag(tmp_path / "out")
        assert [status.resets for _, status in found["/stream/status"]] == [0, 0, 1, 1]
        assert [len(path.poses) for _, path in found["/stream/path"]] == [1, 2, 1, 2]

    def test_stamps_that_go_back_start_one_and_repeated_ones_are_skipped(self, tmp_path, caplog):
        stamps = [10, 11, 11, 5, 6]
        messages = [("/image", i * SECOND, raw_image(picture(i), s * SECOND)) for i, s in enumerate(stamps)]
        assert run(write_bag(tmp_path / "in", messages), tmp_path / "out") == 0
        assert "the stamp went back by 6.000 s" in caplog.text
        assert "1 images skipped (1 late), the first: image of 11000000000 ns" in caplog.text
        assert read_trajectory(tmp_path / "out" / "trajectory.txt")[:, 0].tolist() == [10, 11]
        assert read_trajectory(tmp_path / "out" / "trajectory_1.txt")[:, 0].tolist() == [5, 6]

    def test_late_images_are_skipped(self, tmp_path, caplog):
        stamps = [1000, 1066, 1033, 1100, 1098, 1133]
        messages = [("/image", i * SECOND, raw_image(picture(i), s * 10**6)) for i, s in enumerate(stamps)]
        assert run(write_bag(tmp_path / "in", messages), tmp_path / "out") == 0
        assert "2 images skipped" in caplog.text and "0.033 s older than the image before it" in caplog.text
        assert read_trajectory(tmp_path / "out" / "trajectory.txt")[:, 0].tolist() == [1.0, 1.066, 1.1, 1.133]
        assert not (tmp_path / "out" / "trajectory_1.txt").exists()
        statuses = [status for _, status in read_bag(tmp_path / "out")["/stream/status"]]
        assert [status.frames_late for status in statuses] == [0, 0, 1, 2]

    def test_of_two_cameras_on_one_topic_one_is_followed(self, tmp_path, caplog):
        cameras = ["left", "right", "left", "right"]
        messages = [("/image", i, raw_image(picture(i), i * SECOND, frame_id=c)) for i, c in enumerate(cameras)]
        bag = write_bag(tmp_path / "in", messages)
        assert run(bag, tmp_path / "first") == 0
        assert read_trajectory(tmp_path / "first" / "trajectory.txt")[:, 0].tolist() == [0, 2]
        assert "it is of camera right, and left is followed" in caplog.text
        assert run(bag, tmp_path / "right", "--camera_frame", "/right") == 0
        assert read_trajectory(tmp_path / "right" / "trajectory.txt")[:, 0].tolist() == [1, 3]


def test_no_frame_is_named_with_a_slash_in_the_outputs(tmp_path):
    messages = [("/image", i, raw_image(picture(i), i * SECOND, frame_id="/left/lens")) for i in range(2)]
    assert run(write_bag(tmp_path / "in", messages), tmp_path / "out", "--world_frame", "/map") == 0
    for topic, received in read_bag(tmp_path / "out").items():
        headers = [msg.transforms[0].header if topic == "/tf" else msg.header for _, msg in received]
        assert {header.frame_id for header in headers} <= {"map", "left/lens"}, topic
    (transform,) = read_bag(tmp_path / "out")["/tf"][0][1].transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ("map", "left/lens")


@pytest.mark.parametrize(
    ("frame_id", "world_frame"), [("/odom", "odom"), ("map", "//map"), ("", "camera"), (" ", "camera")]
)
def test_a_camera_that_is_the_world_is_refused(tmp_path, capsys, frame_id, world_frame):
    messages = [("/image", i, raw_image(picture(i), i * SECOND, frame_id=frame_id)) for i in range(2)]
    assert run(write_bag(tmp_path / "in", messages), tmp_path / "out", "--world_frame", world_frame) == 2
    assert f"frame_id is world_frame, {world_frame.strip('/')}; give world_frame another" in capsys.readouterr().err


class TestEarlyEnd:
    def check_two_frames(self, output):
        assert read_trajectory(output / "trajectory.txt").shape == (2, 8)
        assert len(read_ply(output / "cloud.ply")) > 0
        assert {len(messages) for messages in read_bag(output).values()} == {2}

    def test_failure_leaves_readable_files(self, images, tmp_path, monkeypatch):
        def failure(self):
            raise RuntimeError("out of memory")

        monkeypatch.setattr(FailingStream, "failure", failure, raising=False)
        monkeypatch.setattr(replay, "SegmentedStream", FailingStream)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(images, tmp_path / "out")
        self.check_two_frames(tmp_path / "out")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signal_ends_after_the_frame(self, images, tmp_path, monkeypatch, number):
        before = signal.getsignal(number)
        failure = staticmethod(lambda: signal.raise_signal(number))
        monkeypatch.setattr(FailingStream, "failure", failure, raising=False)
        monkeypatch.setattr(replay, "SegmentedStream", FailingStream)
        assert run(images, tmp_path / "out") == 130
        assert read_trajectory(tmp_path / "out" / "trajectory.txt").shape == (3, 8)
        assert {len(messages) for messages in read_bag(tmp_path / "out").values()} == {3}
        assert signal.getsignal(number) is before

    def test_cut_off_bag(self, tmp_path, caplog):
        count = 150
        file = image_bag(tmp_path / "in", count) / "in.mcap"
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.9)])
        assert run(tmp_path / "in", tmp_path / "out", "--stride", "10") == 0
        assert "what could be read is written" in caplog.text
        assert 10 <= len(read_trajectory(tmp_path / "out" / "trajectory.txt")) < 15


class TestRefused:
    """Bad input costs one sentence and exit code 2, and no model is loaded for it."""

    @pytest.fixture(autouse=True)
    def no_model(self, monkeypatch):
        monkeypatch.setattr(replay, "SegmentedStream", lambda config: pytest.fail("the model was loaded"))

    @pytest.mark.parametrize(
        ("flags", "reason"),
        [
            (["--max-frames", "0"], "max-frames must be at least 1"),
            (["--cache.budget_tokens", "-1"], "cache.budget_tokens must be between 0"),
            (["--image_width", "100"], "image_width must be a multiple of 14"),
            (["--stride", "0"], "stride must be at least 1"),
            (["--topic", "/image"], "leave the topic out"),
            (["--base_frame", "base_link"], "is not a bag, which alone has /tf, /tf_static: leave out the settings"),
            (["--scale.source", "depth"], "scale.source depth: name the topic of the bag with --reference"),
            (["--reference", "/odom"], "scale.source none does not use a reference topic: leave it out"),
        ],
    )
    def test_settings(self, images, tmp_path, capsys, flags, reason):
        assert run(images, tmp_path / "out" / "in", *flags) == 2
        assert reason in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_input_that_is_not_there(self, tmp_path, capsys):
        (tmp_path / "out").mkdir()
        assert run(tmp_path / "nowhere", tmp_path / "out" / "in") == 2
        assert "does not exist" in capsys.readouterr().err
        assert not list((tmp_path / "out").iterdir())  # which was there before

    def test_output(self, images, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert run(images, tmp_path / "file" / "out") == 2
        assert "choose another output folder" in capsys.readouterr().err

    def test_input_without_usable_images(self, tmp_path, capsys):
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.jpg").write_bytes(b"no image")
        assert run(tmp_path / "images", tmp_path / "out") == 2
        assert "has no image that can be used: a.jpg" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_missing_topic(self, tmp_path, capsys):
        assert run(image_bag(tmp_path / "in", 1), tmp_path / "out", "--topic", "/nope") == 2
        assert "image topics in it: /cam/image_raw" in capsys.readouterr().err


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    """A bag of a synthetic room, with true depth and TF, and its frames."""
    frames = list(stream(3, 24, 160, 120, rate=8.0))
    write_room(frames, tmp_path_factory.mktemp("room") / "bag")
    return tmp_path_factory.getbasetemp() / "room0" / "bag", frames


@pytest.mark.parametrize(
    "flags",
    [
        ("--scale.source", "depth", "--reference", "/camera/depth/image"),
        ("--scale.source", "tf", "--scale.parent_frame", "room", "--scale.child_frame", "camera"),
    ],
    ids=lambda flags: flags[1],
)
def test_metres_from_the_bag(room, tmp_path, flags):
    """The stream's own depth, scaled as the truth says, and nothing before the scale is known."""
    bag, frames = room
    assert run(bag, tmp_path / "out", *flags) == 0
    rows = read_trajectory(tmp_path / "out" / "trajectory.txt")
    assert 5 < len(rows) < 24
    assert "unit: metre" in (tmp_path / "out" / "trajectory.txt").read_text()
    statuses = [message for _, message in read_bag(tmp_path / "out")["/stream/status"]]
    scale = statuses[-1].scale
    assert statuses[-1].scale_source == flags[1] and statuses[-1].scale_measurements >= 3
    last = cv2.imread(str(sorted((tmp_path / "out" / "depth").iterdir())[-1]), cv2.IMREAD_UNCHANGED) / 1000
    truth = cv2.resize(frames[-1].depth, last.shape[::-1])
    assert 0.5 < np.median(last[last > 0]) / np.median(truth) < 2  # it is the demo model's depth
    unscaled = SegmentedStream(StreamConfig())
    depth = [unscaled.step(frame.rgb, frame.intrinsics).depth for frame in frames][-1]
    np.testing.assert_allclose(last, np.rint(depth * scale * 1000) / 1000, atol=0.002)


def test_reference_topic_that_is_not_there(room, tmp_path, capsys):
    flags = ("--scale.source", "odometry", "--reference", "/odom")
    assert run(room[0], tmp_path / "out", *flags) == 2
    assert "has no topic /odom; topics in it: /camera/image_raw (sensor_msgs/msg/Image)" in capsys.readouterr().err


def test_mounting_that_is_not_in_the_bag(room, tmp_path, capsys):
    """Never an identity."""
    assert run(room[0], tmp_path / "out", "--base_frame", "base_link", "--max-frames", "3") == 2
    assert "no image of" in capsys.readouterr().err


def test_images_that_cannot_be_placed_are_said_at_the_first_and_leave_nothing(room, tmp_path, caplog, monkeypatch):
    at_work = []
    answers = replay.Replay.answers

    def noted(itself, stop):
        for answer in answers(itself, stop):
            at_work.append(caplog.text)
            yield answer

    monkeypatch.setattr(replay.Replay, "answers", noted)
    flags = ("--base_frame", "nowhere", "--max-frames", "3")
    assert run(room[0], tmp_path / "new", *flags) == 2
    assert not (tmp_path / "new").exists()
    assert [text.count("cannot be placed") for text in at_work] == [1, 1, 1] and "no frame 'nowhere'" in at_work[0]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("")
    assert run(room[0], tmp_path / "out", *flags) == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes"]
    assert run(room[0], tmp_path / "out", "--max-frames", "3") == 0


def test_images_that_the_stream_refuses_are_no_success(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(encoded(picture(0, (2, 64)), ".png"))
    assert run(tmp_path / "images", tmp_path / "out") == 2
    assert "could be used" in capsys.readouterr().err


def test_missing_weights(images, tmp_path, capsys):
    assert run(images, tmp_path / "out", "--weights", str(tmp_path / "none.pt")) == 2
    assert "none.pt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not REAL_IMAGES.exists(), reason="the 7-Scenes sample is not here")
def test_real_images(tmp_path):
    assert run(REAL_IMAGES, tmp_path / "out") == 0
    rows = read_trajectory(tmp_path / "out" / "trajectory.txt")
    assert rows.shape == (120, 8) and np.isfinite(rows).all()
    np.testing.assert_allclose(np.linalg.norm(rows[:, 4:], axis=1), 1, atol=1e-8)
    found = read_bag(tmp_path / "out")
    assert {topic: len(messages) for topic, messages in found.items()} == dict.fromkeys(found, 120)
    assert len(found) == len(TOPICS)
    assert len(list((tmp_path / "out" / "depth").iterdir())) == 120
    assert len(read_ply(tmp_path / "out" / "cloud.ply")) > 0


def test_a_budget_in_mib_that_is_raised_is_said_in_mib(images, tmp_path, caplog, capsys):
    assert run(images, tmp_path / "out", "--cache.budget_mib", "0.001") == 0
    said = [record.message for record in caplog.records if "below what the policy works with" in record.message]
    raised = re.fullmatch(r".*: raised to 106 tokens per layer, ([\d.]+) MiB", *said)
    assert f"{float(raised[1]):.1f} MiB of cache" in capsys.readouterr().out


def test_a_budget_that_is_raised_is_said_once(images, tmp_path, caplog):
    assert run(images, tmp_path / "out", "--cache.budget_tokens", "5") == 0
    said = "the budget is below what the policy works with: raised to 106 tokens"
    assert [record.message for record in caplog.records].count(said) == 1
