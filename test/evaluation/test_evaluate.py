# SPDX-License-Identifier: Apache-2.0
"""Sequences are scored beside their truth, and what is not known is left out."""

import csv
import json
from dataclasses import replace
from math import inf

import cv2
import numpy as np
import pytest

from xsvggt_ros.cli import main
from xsvggt_ros.evaluation.datasets import EvaluationFrame, EvaluationSequence
from xsvggt_ros.evaluation.evaluate import mean_errors, sequence_errors, standing_still
from xsvggt_ros.evaluation.metrics import scene_scale
from xsvggt_ros.evaluation.trace import Clouds, Gallery, Trace
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import intrinsic_matrix, rigid, rotation_matrix
from xsvggt_ros.rooms import stream as room
from xsvggt_ros.rooms import write_folder
from xsvggt_ros.status import StepStatus

WIDTH, HEIGHT = 64, 48
K = intrinsic_matrix(50, 50, 31.5, 23.5)


def truth(index, depth=True, pose=True):
    """A camera that turns by 2 degrees and moves by 0.1 m a frame, before a bumpy wall."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    angle = np.deg2rad(1 * index)
    T = rigid(rotation_matrix(np.array([0, np.sin(angle), 0, np.cos(angle)])), np.array([0.1 * index, 0, 5]))
    wall = (3 + 0.5 * np.sin(columns / 9 + index) + rows / 100).astype(np.float32)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    return EvaluationFrame(index, image, wall if depth else None, T if pose else None, K)


def said(index, depth, T_first_cam):
    image = np.zeros((*depth.shape, 3), np.uint8)
    status = StepStatus(seconds={"step": 0.02}, cache_bytes=3 * 2**20)
    return Frame(index, T_first_cam, K, depth, np.ones_like(depth), image, status)


def followed(truths, scale=1.0, shift=(0, 0, 0), **about):
    """What a stream says whose depth and poses are true, but for a scale and a constant shift of later cameras."""
    sequence = EvaluationSequence("made up", truths, **about)
    trace, clouds = Trace(sequence), Clouds(sequence)
    first = truth(0).T_world_cam
    for i, seen in enumerate(truths):
        T = np.linalg.inv(first) @ truth(i).T_world_cam
        T[:3, 3] = T[:3, 3] / scale + np.array(shift) * (i > 0)
        frame = said(i, truth(i).depth / np.float32(scale), T)
        trace.add(frame, seen)
        clouds.add(frame, seen)
    return trace, clouds


@pytest.mark.parametrize("alignment", ["scale", "scale_shift", "none"])
def test_the_truth_has_no_errors(alignment):
    scale = scene_scale(truth(0).depth, K)
    errors = sequence_errors(*followed([truth(i) for i in range(5)], scale), alignment).columns()
    for name in ("abs_rel", "rmse", "ate", "rpe_translation", "rpe_rotation", "accuracy", "completeness"):
        assert errors[name] == pytest.approx(0, abs=1e-5)
    assert errors["delta_125"] == 1 and errors["normal_consistency"] == pytest.approx(1, abs=1e-6)
    assert errors["pixels"] == 5 * WIDTH * HEIGHT
    assert errors["cache_mib"] == 3 and errors["step_ms"] == pytest.approx(20)


def test_another_scale_is_only_seen_unaligned():
    truths = [truth(i) for i in range(5)]
    scale = scene_scale(truth(0).depth, K)
    trace, _ = followed(truths, scale / 1.1)
    assert sequence_errors(trace, None, "scale").depth.abs_rel == pytest.approx(0, abs=1e-6)
    unaligned = sequence_errors(trace, None, "none")
    assert unaligned.depth.abs_rel == pytest.approx(0.1, rel=1e-5)
    assert unaligned.pose.centre == pytest.approx(0.1) and unaligned.pose.rotation == pytest.approx(0, abs=1e-5)
    assert unaligned.pose.adjacent_turn == pytest.approx(2)
    assert unaligned.pose.rpe_translation == pytest.approx(0.1 * 0.1 / scale)


def test_standing_still_is_as_far_off_as_the_camera_moved():
    trace, _ = followed([truth(i) for i in range(5)])
    still = sequence_errors(standing_still(trace), None, "none")
    assert still.pose.centre == pytest.approx(1)
    assert still.pose.rotation == pytest.approx(np.mean([2, 4, 6, 8]))
    assert still.pose.adjacent_rotation == still.pose.adjacent_turn == pytest.approx(2)
    logs = np.log(truth(0).depth)
    expected = np.mean([np.abs(np.exp(logs.mean()) - truth(i).depth) / truth(i).depth for i in range(5)])
    assert still.depth.abs_rel == pytest.approx(expected, rel=1e-5)


def test_depth_is_brought_to_the_size_of_the_truth_and_counts_where_it_is_valid():
    true = truth(0).depth
    true[:10] = 0
    true[:, 40:] = 80
    trace = Trace(EvaluationSequence("x", [], max_depth=70))
    small = cv2.resize(truth(0).depth, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    trace.add(said(0, small, np.eye(4)), replace(truth(0), depth=true))
    errors = sequence_errors(trace, None, "scale").depth
    assert errors.pixels == (HEIGHT - 10) * 40 and errors.abs_rel < 0.005
    with pytest.raises(ValueError, match="turn both"):
        trace.add(said(1, small, np.eye(4)), replace(truth(0), depth=true.T))


def test_predictions_are_clipped_after_the_alignment():
    trace = Trace(EvaluationSequence("x", [], max_depth=70, clip_prediction=True))
    true, wild = np.full((10, 20), 10, np.float32), np.full((10, 20), 1, np.float32)
    true[9, 19], wild[9, 19] = 69, 100
    trace.add(said(0, wild, np.eye(4)), replace(truth(0), depth=true))
    assert sequence_errors(trace, None, "scale").depth.abs_rel < 1e-3
    trace.sequence = replace(trace.sequence, max_depth=inf)
    assert sequence_errors(trace, None, "scale").depth.abs_rel == pytest.approx(931 / 69 / 200, rel=1e-2)


def test_what_is_not_known_is_left_out():
    trace, clouds = followed([truth(i, depth=False) for i in range(3)])
    errors = sequence_errors(trace, clouds, "scale")
    assert errors.depth is None and errors.points is None and errors.pose.ate == pytest.approx(0, abs=1e-6)
    assert sequence_errors(trace, clouds, "none").pose is None  # the first frame has no scale
    with pytest.raises(ValueError, match="no scale"):
        standing_still(trace)
    trace, clouds = followed([truth(i, pose=i == 1) for i in range(3)])
    errors = sequence_errors(trace, clouds, "none")
    assert errors.pose is None and errors.points is None and errors.depth is not None


@pytest.mark.parametrize("alignment", ["scale", "scale_shift", "none"])
@pytest.mark.parametrize("unknown", [0, 9])  # no reading, or beyond the largest
def test_depth_without_a_valid_pixel_has_no_point_errors(alignment, unknown):
    empty = np.full((HEIGHT, WIDTH), unknown, np.float32)
    trace, clouds = followed([replace(truth(i), depth=empty) for i in range(3)], max_depth=9)
    errors = sequence_errors(trace, clouds, alignment)
    assert len(clouds.true) == 3 and errors.points is None and errors.depth is None


def test_means_weigh_depth_by_pixels_and_poses_equally():
    truths = [truth(i) for i in range(5)]
    one, two = (sequence_errors(followed(truths[:n], s)[0], None, "none") for n, s in ((5, 4.0), (2, 2.0)))
    mean = mean_errors([one, two, replace(one, depth=None, pose=None)])
    assert mean.depth.abs_rel == pytest.approx((5 * one.depth.abs_rel + 2 * two.depth.abs_rel) / 7)
    assert mean.depth.pixels == 7 * WIDTH * HEIGHT
    assert mean.pose.centre == pytest.approx((one.pose.centre + two.pose.centre) / 2)
    assert mean_errors([replace(one, depth=None, pose=None)]).pose is None


def test_what_stands_still_has_no_error_relative_to_its_way():
    still = [replace(truth(i), T_world_cam=truth(0).T_world_cam) for i in range(4)]
    unaligned = sequence_errors(followed(still, 4.0)[0], None, "none")
    assert np.isnan(unaligned.pose.centre) and unaligned.columns()["centre"] is None
    assert unaligned.pose.ate > 0.01 and unaligned.pose.adjacent_turn == pytest.approx(0, abs=1e-5)
    aligned = sequence_errors(followed(still, 4.0)[0], None, "scale").columns()
    assert aligned["ate"] is None and aligned["rpe_translation"] is None and aligned["rpe_rotation"] > 1


def test_what_any_prediction_fits_is_undefined():
    wall = [replace(truth(i), depth=np.full((HEIGHT, WIDTH), 3, np.float32)) for i in range(3)]
    assert sequence_errors(followed(wall)[0], None, "scale_shift").columns()["abs_rel"] is None
    assert sequence_errors(followed(wall)[0], None, "scale").columns()["abs_rel"] > 0.05
    dot = np.zeros((HEIGHT, WIDTH), np.float32)
    dot[20, 30] = 2
    _, clouds = followed([replace(truth(i), depth=dot if i == 0 else 0 * dot) for i in range(3)])
    assert sequence_errors(followed(wall)[0], clouds, "scale").columns()["accuracy"] is None


def test_what_is_undefined_is_not_in_the_mean():
    moving = sequence_errors(followed([truth(i) for i in range(5)], 4.0)[0], None, "scale")
    still = [replace(truth(i), T_world_cam=truth(0).T_world_cam) for i in range(4)]
    standing = sequence_errors(followed(still, 4.0)[0], None, "scale")
    mean = mean_errors([moving, standing])
    assert mean.pose.ate == moving.pose.ate
    assert mean.pose.rpe_rotation == (moving.pose.rpe_rotation + standing.pose.rpe_rotation) / 2
    assert mean_errors([standing]).columns()["ate"] is None


def test_a_gallery_shows_the_first_and_the_last_frame():
    gallery = Gallery.of(9, 3)
    for i in range(9):
        gallery.add(said(i, truth(i).depth, np.eye(4)), truth(i))
    assert [frame.index for frame, _ in gallery.frames] == [0, 4, 8]


# --- the command ----------------------------------------------------------------------------------

SMALL = ["--weights", "random", "--image_width", "56"]


def test_command_on_rooms_in_a_folder(tmp_path, capsys):
    write_folder(room(3, 6, WIDTH, HEIGHT, rate=4), tmp_path / "in" / "a room")
    arguments = ["eval", "rooms", str(tmp_path / "in"), "--points", "--stride", "2", "--output", str(tmp_path / "out")]
    assert main([*arguments, *SMALL]) == 0
    header, line, mean = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["AbsRel", "SqRel"] and mean.startswith("mean")
    rows = list(csv.DictReader((tmp_path / "out" / "errors.csv").open()))
    assert [row["name"] for row in rows] == ["a room", "mean"]
    assert int(rows[0]["pixels"]) == 3 * WIDTH * HEIGHT and float(rows[0]["accuracy"]) > 0
    assert line.split()[2] == f"{float(rows[0]['abs_rel']):.4f}"
    facts = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert facts["settings"]["image_width"] == 56 and facts["alignment"] == "scale"
    assert facts["errors"][0]["abs_rel"] == float(rows[0]["abs_rel"])
    assert cv2.imread(str(tmp_path / "out" / "a_room.png")).std() > 10


def test_command_on_rendered_rooms_beside_standing_still(capsys):
    assert main(["eval", "--seeds", "3:5", "--frames", "3", "--align", "none", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:8].strip() for line in lines[1:]] == ["room 3", "room 4", "mean", "constant"]
    columns = dict(zip(lines[0].replace("rot deg", "rot").replace("RPE ", "RPE").replace("adj ", "adj").split(),
                       lines[-1][26:].split(), strict=True))  # fmt: skip
    assert columns["centre"] == "1.000" and columns["adjdeg"] == columns["adjtrue"]


def test_command_with_chunks_has_every_frame(tmp_path):
    rows = []
    for chunk in ("1", "2", "3"):
        output = ["--output", str(tmp_path / chunk)]
        assert main(["eval", "--seeds", "3:4", "--frames", "4", "--cache.chunk", chunk, *output, *SMALL]) == 0
        rows.append(next(csv.DictReader((tmp_path / chunk / "errors.csv").open())))
    assert len({row["pixels"] for row in rows}) == 1
    assert len({row["abs_rel"] for row in rows}) == 3


def test_command_with_a_cache_that_the_machine_has_no_memory_for_costs_one_sentence(capsys):
    assert main(["eval", "--seeds", "3:4", "--frames", "3", "--cache.budget_tokens", str(10**12)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("xsvggt eval: a cache of these settings takes ") and "lower cache.budget_tokens" in line


def test_command_says_what_the_truth_lacks(tmp_path, capsys):
    folder = tmp_path / "walk" / "rgb_90"
    folder.mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8))
    (tmp_path / "walk" / "groundtruth_90.txt").write_text("".join(f"{i} {i} 0 0 0 0 0 1\n" for i in range(3)))
    assert main(["eval", "tum", str(tmp_path), "--output", str(tmp_path / "out"), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "no depth errors, as the truth is not known: walk" in printed and "no pose" not in printed
    assert (tmp_path / "out" / "walk.png").exists()


def write_walk(folder, metres):
    """As many frames as there are places, along x."""
    for i in range(len(metres)):
        path = folder / "rgb_90" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((HEIGHT, WIDTH, 3), 40 * i, np.uint8))
    (folder / "groundtruth_90.txt").write_text("".join(f"{i} {x} 0 0 0 0 0 1\n" for i, x in enumerate(metres)))


def test_command_says_what_is_undefined_and_leaves_it_out_of_the_mean(tmp_path, capsys):
    write_walk(tmp_path / "tripod", [1.0] * 4)
    write_walk(tmp_path / "walk", range(4))
    assert main(["eval", "tum", str(tmp_path), "--output", str(tmp_path / "out"), *SMALL]) == 0
    printed = capsys.readouterr().out
    note = (
        "undefined, and not in the mean, ATE and RPE t: the true camera stands still, or there are only 2 poses: tripod"
    )
    assert note in printed.splitlines() and "nan" not in printed
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "out" / "errors.csv").open())}
    assert rows["tripod"]["ate"] == "" and rows["mean"]["ate"] == rows["walk"]["ate"] != ""
    facts = json.loads((tmp_path / "out" / "errors.json").read_text(), parse_constant=pytest.fail)
    assert facts["errors"][0]["ate"] is None and note in facts["notes"]


def write_rooms(folder, *names):
    for seed, name in enumerate(names):
        write_folder(room(seed, 3, WIDTH, HEIGHT, rate=4), folder / name)


def test_command_with_points_on_a_sequence_without_valid_depth(tmp_path, capsys):
    write_rooms(tmp_path, "dark", "light")
    for path in (tmp_path / "dark" / "depth").iterdir():
        cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH), np.uint16))
    assert main(["eval", "rooms", str(tmp_path), "--points", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "no points errors, as the truth is not known: dark" in printed and "\nlight" in printed


def turn(folder):
    for path in folder.iterdir():
        cv2.imwrite(str(path), np.rot90(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


@pytest.mark.parametrize("turned", [("rgb", "depth"), ("rgb",), ("depth",)])
def test_command_leaves_out_a_sequence_of_high_images(tmp_path, capsys, caplog, turned):
    write_rooms(tmp_path, "high", "wide")
    for name in turned:
        turn(tmp_path / "high" / name)
    assert main(["eval", "rooms", str(tmp_path), *SMALL]) == 0
    assert caplog.text.count("high is left out: images of ") == 1 and len(caplog.records) == 1
    printed = capsys.readouterr().out
    assert "\nwide" in printed and "\nhigh" not in printed


def test_command_says_once_that_high_images_are_cut(tmp_path, caplog):
    write_walk(tmp_path / "high", range(4))
    turn(tmp_path / "high" / "rgb_90")
    write_walk(tmp_path / "wide", range(4))
    assert main(["eval", "tum", str(tmp_path), *SMALL]) == 0
    (said,) = caplog.messages
    assert "high: of the rows of its images, which are 48x64, 20% are not seen" in said


def resize_from(folder, first):
    """Images from that one on are of another size."""
    for index in range(first, len(list(folder.iterdir()))):
        path = str(folder / f"{index}.png")
        cv2.imwrite(path, cv2.resize(cv2.imread(path), (WIDTH, HEIGHT // 2)))


def test_command_ends_a_sequence_where_a_new_world_starts(tmp_path, capsys, caplog):
    write_walk(tmp_path / "short", range(3))
    write_walk(tmp_path / "walk", range(7))
    resize_from(tmp_path / "walk" / "rgb_90", 3)
    assert main(["eval", "tum", str(tmp_path), *SMALL]) == 0
    assert caplog.text.count("is left out") == 2
    assert "walk ends before its frame of 5.000 s, a new world: image size changed" in caplog.text
    short, walk = (line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    assert short[1:-1] == walk[1:-1]  # all but the time


def test_command_leaves_out_what_ends_before_there_is_motion(tmp_path, caplog):
    write_walk(tmp_path / "walk", range(7))
    write_walk(tmp_path / "photo", range(7))
    resize_from(tmp_path / "photo" / "rgb_90", 1)
    assert main(["eval", "tum", str(tmp_path), *SMALL]) == 0
    assert "photo is left out: 1 of its frames can be used" in caplog.text


def test_command_names_the_rooms_that_could_not_be_used(monkeypatch, capsys):
    def refuse(self, image):
        raise ValueError("no")

    monkeypatch.setattr("xsvggt_ros.stream.GeometryStream.take", refuse)
    assert main(["eval", "--seeds", "3:5", "--frames", "3", *SMALL]) == 2
    assert "no sequence of the rooms of --seeds 3:5 could be used" in capsys.readouterr().err


@pytest.fixture
def no_model(monkeypatch):
    """What is refused is refused before the model is there."""
    monkeypatch.setattr("xsvggt_ros.evaluation.command.SegmentedStream", lambda config: pytest.fail("a model was made"))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "1"], "--frames 1 leaves no motion between frames to compare; give at least 2"),
        (["--frames", "1", "--sweep", "--output", "x"], "--frames 1 leaves no motion"),
    ],
)
def test_command_refuses_what_cannot_be_compared(arguments, message, capsys):
    assert main(["eval", *arguments, *SMALL]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("no_model")
def test_command_refuses_a_stride_that_leaves_one_frame(tmp_path, capsys):
    write_walk(tmp_path / "walk", range(4))
    assert main(["eval", "tum", str(tmp_path), "--stride", "4", *SMALL]) == 2
    assert "as all have fewer than 2 frames at --stride 4: walk; lower --stride" in capsys.readouterr().err


def test_command_leaves_out_a_sequence_of_one_frame(tmp_path, capsys, caplog):
    write_walk(tmp_path / "walk", range(4))
    write_walk(tmp_path / "photo", range(1))
    assert main(["eval", "tum", str(tmp_path), *SMALL]) == 0
    assert "left out, fewer than 2 frames at --stride 1: photo" in caplog.text
    assert "photo" not in capsys.readouterr().out


@pytest.mark.parametrize("seeds", ["3:3", "5:3", "-1:3", "100", "0:99999999999999999999", "a:b"])
def test_command_refuses_seeds_that_are_no_range(seeds, capsys):
    with pytest.raises(SystemExit):
        main(["eval", f"--seeds={seeds}"])
    assert "is not A:B with A below B, as in 100:148" in capsys.readouterr().err
