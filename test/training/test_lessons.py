# SPDX-License-Identifier: Apache-2.0
"""Learning from recordings and from a teacher."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xsvggt_ros.cli import main
from xsvggt_ros.geometry import decode_pose
from xsvggt_ros.training import lessons, recordings
from xsvggt_ros.training import trainer as trainer_module
from xsvggt_ros.training.recordings import Recording, Recordings, read_recordings
from xsvggt_ros.training.rendering import Request, draw, shoot
from xsvggt_ros.training.run import Run
from xsvggt_ros.training.teacher import Teacher
from xsvggt_ros.training.trainer import Trainer, export

CPU = torch.device("cpu")


def recording(count: int, step: float = 0.1) -> Recording:
    """Images that say which they are."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 28, 28, 3))
    return Recording(images, step * np.arange(count))


def write_images(folder, count: int):
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (64, 48), (i, 2 * i, 50)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(("count", "step", "frames"), [(200, 0.1, 12), (200, 0.001, 12), (12, 0.1, 12), (5, 10.0, 12)])
def test_a_cut_has_other_images_in_order(count, step, frames):
    for seed in range(20):
        cut = recording(count, step).cut(np.random.default_rng(seed), frames)[:, 0, 0, 0].astype(int)
        assert len(cut) == min(frames, count)
        assert (np.diff(cut) > 0).all() and cut[0] >= 0 and cut[-1] < count


def test_cuts_are_of_different_speeds_and_places():
    cuts = [recording(250, 0.1).cut(np.random.default_rng(seed), 6)[:, 0, 0, 0].astype(int) for seed in range(50)]
    lengths, starts = [cut[-1] - cut[0] for cut in cuts], [cut[0] for cut in cuts]
    assert max(lengths) > 3 * min(lengths) and max(starts) > 150 > 50 > min(starts)


def test_the_end_of_a_recording_is_held_out():
    data = Recordings([recording(200), recording(50)], CPU)
    seen = torch.cat([data.training(n, 2, 8, False).flatten() for n in range(40)]) * 255
    held_out = [images.flatten() * 255 for images in data.held_out(8)]
    assert seen.max().round() < 180 <= held_out[0].min().round()
    assert held_out[1].min().round() >= 45 and data.held_out(8)[1].shape == (1, 5, 3, 28, 28)


def test_batches_of_recordings_come_again_and_mirrored():
    data = Recordings([recording(200)], CPU)
    images = data.training(3, 2, 4, False)
    assert images.shape == (2, 4, 3, 28, 28) and torch.equal(images, data.training(3, 2, 4, False))
    assert torch.equal(images.flip(1, -1), data.training(3, 2, 4, True))
    assert not torch.equal(images, data.training(4, 2, 4, False))


def test_recordings_are_read_once_and_resized(tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images", 25)
    (one,) = read_recordings([folder], tmp_path, 28)
    assert one.images.shape == (25, 28, 28, 3)
    np.testing.assert_allclose(one.images[:, 5, 5, 0], np.arange(25), atol=1)
    np.testing.assert_allclose(np.diff(one.seconds), 1 / 30, rtol=1e-4)
    monkeypatch.setattr(recordings, "open_source", None)
    (again,) = read_recordings([folder], tmp_path, 28)
    assert np.array_equal(one.images, again.images) and np.array_equal(one.seconds, again.seconds)


def test_a_recording_that_grew_is_read_again_and_what_does_not_fit_is_counted(tmp_path, caplog):
    folder = write_images(tmp_path / "images", 25)
    read_recordings([folder], tmp_path, 28)
    Image.new("RGB", (64, 20)).save(folder / "25.png")
    Image.new("RGB", (64, 48)).save(folder / "26.png")
    (grown,) = read_recordings([folder], tmp_path, 28)
    assert len(grown.images) == 26
    assert "1 images left out, of another size than the first or not later than the last" in caplog.text


def test_a_recording_of_few_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 usable images; a recording to learn from needs at least 20"):
        read_recordings([write_images(tmp_path / "images", 3)], tmp_path, 28)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Trained for a moment to see whole sequences."""
    folder = tmp_path_factory.mktemp("teacher")
    trainer = Trainer(Run(folder, "demo", 1, 56, 42, CPU, bidirectional=True))
    export(trainer.averaged, folder / "teacher.safetensors")
    return folder / "teacher.safetensors"


def test_a_lesson_is_what_the_teacher_sees_in_the_whole_sequence(teacher):
    images = shoot(draw(Request(0, 2, 3, 56, 42)), CPU).images
    lesson = Teacher(teacher, "demo", CPU).lesson(images)
    assert torch.equal(lesson.images, images) and lesson.confidence.min() >= 1
    assert torch.allclose(lesson.T_first_cam[:, 0], torch.eye(4), atol=1e-6)
    assert torch.allclose(lesson.point_maps()[:, 0].norm(dim=-1).mean((1, 2)), torch.ones(2), atol=1e-3)
    for pose, K in zip(lesson.pose[:, 1].numpy(), lesson.intrinsics.numpy(), strict=True):
        np.testing.assert_allclose(decode_pose(pose, *images.shape[-2:])[1], K, rtol=1e-4)
    other = Teacher(teacher, "demo", CPU).lesson(torch.cat([images[:, :2], images[:, :1]], 1))
    assert not torch.equal(other.depth[:, :2], lesson.depth[:, :2])  # it saw the last frame


@pytest.mark.parametrize("data", [False, True], ids=["rooms", "recordings"])
def test_a_student_comes_closer_to_its_teacher(teacher, tmp_path, monkeypatch, data):
    monkeypatch.setattr(trainer_module, "CURRICULUM", ((0.0, ((2, 3),)),))
    monkeypatch.setattr(lessons, "HELD_OUT_FRAMES", 2)
    folders = (write_images(tmp_path / "images", 40),) if data else ()
    settings = dict(data=folders, teacher=teacher, teacher_model="demo", truth=False)
    trainer = Trainer(Run(tmp_path, "demo", 8, 56, 42, CPU, **settings))
    fixed = trainer.lessons.training(Request(1000, 2, 3, 56, 42), False)
    assert len(fixed) == 1 and fixed[0].confidence is not None
    with torch.no_grad():
        before = trainer.losses(fixed)
    list(trainer.train())
    with torch.no_grad():
        after = trainer.losses(fixed)
    assert sum(after.values()) < 0.9 * sum(before.values())
    assert trainer.validate()["abs_rel"] >= 0


def test_beside_the_truth_a_teacher_is_one_of_two(teacher, tmp_path):
    both = Trainer(Run(tmp_path, "demo", 1, 56, 42, CPU, teacher=teacher, teacher_model="demo"))
    truth, taught = both.lessons.training(Request(0, 1, 2, 56, 42), False)
    assert truth.confidence is None and taught.confidence is not None and torch.equal(truth.images, taught.images)
    with torch.no_grad():
        one, other, mean = (both.losses(said) for said in ([truth], [taught], [truth, taught]))
    for name, loss in mean.items():
        assert loss.item() == pytest.approx((one[name] + other[name]).item() / 2, rel=1e-3, abs=1e-5), name


def test_from_the_command_line(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "CURRICULUM", ((0.0, ((1, 2),)),))
    command = ["train", "--output", str(tmp_path / "out"), "--steps", "1", "--workers", "1", "--width", "56"]
    command += ["--height", "42", "--teacher", str(teacher), "--teacher-model", "demo", "--data"]
    assert main([*command, str(write_images(tmp_path / "images", 30))]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_processes_that_torchrun_starts_share_the_work(teacher, tmp_path):
    images = write_images(tmp_path / "images", 30)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    command = [*launch, sys.executable, "-m", "xsvggt_ros.cli", "train", "--output", tmp_path / "out", "--steps", "2"]
    command += ["--width", "28", "--height", "28", "--teacher", teacher, "--teacher-model", "demo", "--data", images]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2 of 2") == 1  # the first of them keeps the books
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_rooms_drawn_in_advance_are_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(lessons, "DRAWERS", {"cpu": 1})
    run = Run(tmp_path, "demo", 6, 28, 28, CPU)
    requests = [Request(n, 1, 2, 28, 28) for n in range(3)]
    ahead = lessons.Lessons(run)
    monkeypatch.setattr(lessons, "DRAWERS", {})
    alone = lessons.Lessons(run)
    for i, request in enumerate(requests):
        for mirrored in (False, True):
            one, other = ahead.training(request, mirrored, requests[i + 1 :]), alone.training(request, mirrored)
            assert torch.equal(one[0].images, other[0].images)
            assert torch.equal(one[0].pose, other[0].pose)


RUN_WITH_A_DRAWER = """
import sys
from xsvggt_ros.cli import main
from xsvggt_ros.training import lessons, trainer

lessons.DRAWERS = {"cpu": 1}
trainer.CURRICULUM, trainer.LOG_EVERY, trainer.VALIDATE_EVERY = ((0.0, ((1, 2),)),), 1, 10**6
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_drawers_end_with_the_run(tmp_path, number):
    """Also where the whole group is told to end, as by timeout(1), and where nobody can tell them any more."""
    sizes = ["--steps", "100000", "--workers", "1", "--width", "28", "--height", "28"]
    command = [sys.executable, "-c", RUN_WITH_A_DRAWER, "train", "--output", str(tmp_path), *sizes]
    run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until((tmp_path / "losses.csv").exists, 120)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.killpg(run.pid, number)
    said, _ = run.communicate(timeout=60)
    assert children
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 20)
    if number == signal.SIGTERM:
        assert run.returncode == 0, said
        assert (tmp_path / "checkpoint.pt").exists() and (tmp_path / "model.safetensors").exists()


def wait_until(holds, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
