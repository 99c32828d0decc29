# SPDX-License-Identifier: Apache-2.0
"""A worker in this process, without Ray."""

import errno
import os
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from support.batches import SMALL, assert_same, files, replayed
from support.full_disk import limited
from support.recordings import encoded, image_bag, picture, write_folder

from xsvggt_ros.batch import worker as module
from xsvggt_ros.batch.recordings import Job, read_record
from xsvggt_ros.batch.worker import KEPT, Cause, Failure, Preview, Progress, Warnings, Worker
from xsvggt_ros.config import NodeConfig
from xsvggt_ros.replay.sources import Reading
from xsvggt_ros.settings import changed


@pytest.fixture
def images(tmp_path):
    return write_folder(tmp_path / "images", 6)


@pytest.fixture
def output(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def worker(output):
    return Worker(changed(NodeConfig(), SMALL), Reading(max_frames=5), output)


def last(worker, job, attempt=0):
    return list(worker.replay(job, attempt))[-1]


def test_recordings_are_replayed_as_by_replay_with_one_model(worker, images, output, tmp_path, monkeypatch):
    loaded = []
    load = module.load_model
    monkeypatch.setattr(module, "load_model", lambda config: loaded.append(config) or load(config))
    (images / "frame-1.png").write_bytes(b"no image")
    expected = replayed(images, tmp_path / "alone", "--max-frames=5")
    for name in "ab":  # the second with a model that has been at work
        record = last(worker, Job(name, images))
        assert_same(output / name, expected)
        assert (record.frames, record.skipped, record.worlds) == (5, 1, 1)
        assert record.settings == SMALL | {"max_frames": 5}
        assert record.cache_bytes > 0 and record.seconds > 0
        (warning,) = record.warnings
        assert "1 images skipped" in warning and "frame-1.png" in warning
        assert read_record(output / name) == record
    assert len(loaded) == 1
    assert sorted(path.name for path in output.iterdir()) == ["a", "b"]


def test_it_says_now_and_then_how_far_it_is(worker, images, monkeypatch):
    monkeypatch.setattr(module, "TELL_S", 0)
    *said, _ = worker.replay(Job("a", images), 0)
    assert said == [Progress(frames, 5) for frames in (1, 2, 3, 4, 5)]
    assert [progress.share for progress in said] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_an_unreadable_recording_is_to_blame_itself(worker, tmp_path, output):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no image")
    failure = last(worker, Job("bad", tmp_path / "bad"))
    assert failure.cause is Cause.RECORDING and "has no image that can be used: a.jpg" in failure.reason
    assert not list(output.iterdir())


def test_settings_that_make_no_stream_are_to_blame(images, output, tmp_path):
    config = changed(NodeConfig(), SMALL | {"weights": str(tmp_path / "none.pt")})
    failure = last(Worker(config, Reading(), output), Job("a", images))
    assert failure.cause is Cause.SETTINGS and "none.pt" in failure.reason
    assert not list(output.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.EIO, os.strerror(errno.EIO)), MemoryError("no memory")])
def test_a_machine_that_fails_is_to_blame(worker, images, output, monkeypatch, error):
    def fail(self, frame):
        raise error

    monkeypatch.setattr(Preview, "add", fail)
    assert last(worker, Job("a", images)) == Failure(Cause.PLACE, str(error))
    assert not list(output.iterdir())


def test_a_file_that_cannot_grow_leaves_nothing(worker, images, output):
    with limited(20_000):
        failure = last(worker, Job("a", images))
    assert failure.cause is Cause.DISK
    assert failure.reason == f"the disk of {output} is full (File too large): free space, and start it again"
    assert not list(output.iterdir())
    assert last(worker, Job("a", images), 1).frames == 5


@pytest.mark.parametrize(
    ("code", "cause"), [(errno.ENOSPC, Cause.DISK), (errno.EROFS, Cause.PLACE), (errno.EACCES, Cause.PLACE)]
)
def test_a_disk_that_takes_nothing_is_not_blamed_on_the_recording(worker, images, output, monkeypatch, code, cause):
    def fail(**_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("xsvggt_ros.replay.files.TemporaryFile", fail)
    failure = last(worker, Job("a", images))
    assert failure.cause is cause and os.strerror(code) in failure.reason and "choose another" in failure.reason


def test_threads_are_noted_where_they_are_not_the_default(images, output):
    worker = Worker(changed(NodeConfig(), SMALL), Reading(max_frames=1), output, threads=2)
    assert last(worker, Job("a", images)).settings == SMALL | {"max_frames": 1, "threads": 2}


def test_a_folder_that_is_there_is_not_replaced(worker, images, output):
    (output / "a").mkdir()
    (output / "a" / "mine.txt").write_text("mine")
    assert last(worker, Job("a", images)).cause is Cause.PLACE
    assert files(output) == {"a/mine.txt"}


@pytest.mark.parametrize("count", [1, 2, KEPT, KEPT + 1, 10 * KEPT, 1000])
def test_preview_is_of_the_middle(count):
    preview = Preview()
    for i in range(count):
        image = np.full((8, 12, 3), i * 255 // count, np.uint8)
        preview.add(SimpleNamespace(image=image, depth=np.linspace(1, 5, 96, dtype=np.float32).reshape(8, 12)))
    shown = cv2.imdecode(np.frombuffer(preview.jpeg(), np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (160, 480, 3)
    assert abs(float(shown[:, :200].mean()) / 255 - 0.5) <= 0.5 / min(count, KEPT // 2) + 0.02
    near, far = shown[10, 260], shown[-10, -20]  # BGR
    assert near[0] > near[2] and far[2] > far[0]


def test_each_warning_is_kept_once_and_only_while_asked_for(caplog):
    log = module.logging.getLogger("xsvggt_ros.replay.command")
    log.warning("before")
    with Warnings() as warnings:
        for _ in range(3):
            log.warning("%d skipped", 2)
        log.info("all is well")
        for i in range(100):
            log.error("error %d", i)
    log.warning("after")
    assert warnings.texts[:2] == ["2 skipped", "error 0"] and len(warnings.texts) == module.MOST_WARNINGS


def test_images_of_another_size_start_a_world(worker, images, output):
    for i in (3, 4, 5):
        (images / f"frame-{i}.png").write_bytes(encoded(picture(i, (64, 48)), ".png"))
    assert last(worker, Job("a", images)).worlds == 2


def test_a_recording_that_breaks_off_is_noted_as_such(worker, images, output, tmp_path):
    file = image_bag(tmp_path / "bag", 150) / "bag.mcap"
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 9 // 10])
    cut = Worker(changed(NodeConfig(), SMALL), Reading(stride=50), output)
    record = last(cut, Job("cut", tmp_path / "bag"))
    assert record.frames == 3 and record.damage and f"{record.damage}; what could be read is written" in record.warnings
    assert not last(worker, Job("whole", images)).damage
