# SPDX-License-Identifier: Apache-2.0
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from xsvggt_ros.evaluation import metrics
from xsvggt_ros.evaluation.metrics import (
    ALIGNMENTS,
    DepthErrors,
    Undefined,
    align_depth,
    depth_errors,
    depth_scale,
    depth_scale_shift,
    first_frame_errors,
    motion_errors,
    pose_errors,
    scene_scale,
    umeyama,
)
from xsvggt_ros.geometry import intrinsic_matrix, inverse, quaternion_xyzw, rigid, rotation_matrix

seeds = st.integers(0, 2**32 - 1)
factors = st.floats(0.01, 100)


def yaw(degrees: float) -> np.ndarray:
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])


def some_transform(rng: np.random.Generator) -> np.ndarray:
    return rigid(rotation_matrix(rng.normal(size=4)), rng.normal(size=3))


def some_trajectory(rng: np.random.Generator, frames: int = 12) -> np.ndarray:
    """A walk with turns of some 10 degrees, [frames, 4, 4]."""
    T = [some_transform(rng)]
    for _ in range(frames - 1):
        T.append(T[-1] @ rigid(rotation_matrix(np.append(rng.normal(0, 0.1, 3), 1)), rng.normal(0, 0.3, 3)))
    return np.array(T)


def disturbed(rng: np.random.Generator, T_world_cam: np.ndarray) -> np.ndarray:
    errors = [rigid(rotation_matrix(np.append(rng.normal(0, 0.02, 3), 1)), rng.normal(0, 0.05, 3)) for _ in T_world_cam]
    return T_world_cam @ np.array(errors)


def skewed_depth(seed: int = 0, pixels: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Predicted depth, and a truth about 2 * predicted + 0.5 with a fifth of far outliers, [pixels] each."""
    rng = np.random.default_rng(seed)
    predicted = rng.uniform(0.5, 5, pixels)
    outliers = (rng.random(pixels) < 0.2) * rng.uniform(0, 10, pixels)
    return predicted, 2 * predicted + 0.5 + rng.uniform(-0.1, 0.1, pixels) + outliers


def test_depth_errors_by_hand():
    errors = depth_errors(np.array([1.0, 3.0, 4.0, 10.0]), np.array([1.0, 2.0, 4.0, 8.0]))
    assert errors.abs_rel == pytest.approx((0 + 1 / 2 + 0 + 2 / 8) / 4)
    assert errors.sq_rel == pytest.approx((0 + 1 / 2 + 0 + 4 / 8) / 4)
    assert errors.rmse == pytest.approx(np.sqrt((1 + 4) / 4))
    assert errors.log_rmse == pytest.approx(np.sqrt((np.log(1.5) ** 2 + np.log(1.25) ** 2) / 4))
    assert errors.delta_125 == 0.5  # 10 / 8 is exactly 1.25, which is not below it
    assert errors.pixels == 4


def test_depth_below_zero_counts_as_the_least_depth_and_not_as_an_inlier():
    errors = depth_errors(np.array([-2.0, 1.0]), np.array([2.0, 1.0]))
    assert errors.delta_125 == 0.5
    assert errors.log_rmse == pytest.approx(np.log(2000) / np.sqrt(2))


def test_depth_errors_average_by_pixels():
    mean = DepthErrors.mean([DepthErrors(0.1, 1, 2, 3, 1.0, pixels=300), DepthErrors(0.5, 5, 6, 7, 0.0, pixels=100)])
    np.testing.assert_allclose(astuple(mean), [0.2, 2, 3, 4, 0.75, 400])


def test_depth_that_cannot_be_compared_is_refused():
    for predicted, truth in [((3,), (1,)), ((0,), (0,)), ((2, 2), (2, 2))]:
        with pytest.raises(ValueError, match="per valid pixel"):
            depth_errors(np.ones(predicted), np.ones(truth))
    with pytest.raises(ValueError, match="at least one sequence"):
        DepthErrors.mean([])


@given(seeds, factors)
def test_any_scale_is_found(seed, factor):
    depth = np.random.default_rng(seed).uniform(0.5, 10, 50)
    assert depth_scale(depth, factor * depth) == pytest.approx(factor, rel=1e-9)


def test_scale_moves_from_the_means_to_the_majority(monkeypatch):
    predicted, truth = np.ones(4), np.array([2.0, 2, 2, 10])
    assert depth_scale(predicted, truth) == pytest.approx(2, abs=1e-3)
    monkeypatch.setattr(metrics, "SCALE_ROUNDS", 1)  # from 4, with weights 1/2, 1/2, 1/2, 1/6
    assert depth_scale(predicted, truth) == pytest.approx((3 + 10 / 6) / (3 / 2 + 1 / 6))


def test_scale_ignores_a_fifth_of_outliers():
    predicted, truth = skewed_depth()
    assert depth_scale(predicted, truth - 0.5) == pytest.approx(2, abs=0.1)
    assert np.mean(truth - 0.5) / np.mean(predicted) > 2.2  # what the means alone say


def test_scale_has_a_least_value():
    assert depth_scale(np.array([1e6, 2e6]), np.array([1.0, 2.0])) == 1e-3


def test_a_prediction_of_nothing_is_all_wrong():
    errors = depth_errors(align_depth(np.zeros(9), np.arange(1.0, 10), "scale"), np.arange(1.0, 10))
    assert errors.abs_rel == pytest.approx(1, abs=1e-2) and errors.delta_125 == 0


@pytest.mark.parametrize("seed", range(5))
def test_scale_and_shift_have_the_least_absolute_residual(seed):
    predicted, truth = skewed_depth(seed)
    n = len(truth)  # minimise sum(u + v) with s p + t + u - v = g and u, v >= 0
    program = linprog(
        np.r_[0, 0, np.ones(2 * n)],
        A_eq=np.c_[predicted, np.ones(n), np.eye(n), -np.eye(n)],
        b_eq=truth,
        bounds=[(None, None)] * 2 + [(0, None)] * (2 * n),
    )
    s, t = depth_scale_shift(predicted, truth)
    assert np.abs(s * predicted + t - truth).sum() == pytest.approx(program.fun, rel=1e-4)
    np.testing.assert_allclose([s, t], program.x[:2], atol=0.01)


@given(seeds, factors, st.floats(-10, 10))
def test_any_scale_and_shift_are_found(seed, factor, shift):
    depth = np.random.default_rng(seed).uniform(0.5, 10, 50)
    np.testing.assert_allclose(depth_scale_shift(depth, factor * depth + shift), [factor, shift], rtol=1e-6, atol=1e-6)


def test_a_flat_prediction_is_shifted_to_the_median():
    assert depth_scale_shift(np.full(5, 0.1), np.array([1.0, 2, 3, 4, 50])) == (0.0, 3.0)


def test_an_inverted_prediction_is_no_better_than_a_flat_one():
    truth = np.linspace(1, 9, 50)
    assert depth_scale_shift(10 - truth, truth) == (0.0, 5.0)
    aligned = align_depth(1 / truth, truth, "scale_shift")
    assert depth_errors(aligned, truth).abs_rel == pytest.approx(np.mean(np.abs(5 - truth) / truth))


def test_alignments_that_any_prediction_fits_are_undefined():
    wrong = np.random.default_rng(0).uniform(1, 9, 50)
    for predicted, truth, alignment in [
        (wrong[:1], np.array([3.0]), "scale"),
        (wrong[:2], np.array([3.0, 5.0]), "scale_shift"),
        (wrong, np.full(50, 3.0), "scale_shift"),
        (wrong, 3 + 0.003 * np.sin(np.arange(50)), "scale_shift"),
    ]:
        with pytest.raises(Undefined, match="do not tell predictions apart"):
            align_depth(predicted, truth, alignment)
    flat = np.full(50, 3.0)  # to which only a flat prediction can be scaled
    assert depth_errors(align_depth(wrong, flat, "scale"), flat).abs_rel > 0.1
    assert depth_errors(align_depth(wrong[:1], flat[:1], "none"), flat[:1]).abs_rel > 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_depth_that_is_no_number_is_refused_and_not_left_out(bad, alignment):
    predicted, truth = skewed_depth()
    for of_truth in (False, True):
        depths = [predicted.copy(), truth.copy()]
        depths[of_truth][3] = bad
        with pytest.raises(ValueError, match="depth must be finite, but 1 of 200"):
            depth_errors(align_depth(*depths, alignment), depths[1])


def test_true_depth_of_nothing_is_refused():
    with pytest.raises(ValueError, match="true depth must be above 0"):
        depth_errors(np.ones(2), np.array([1.0, 0.0]))


def test_undefined_depth_is_not_in_the_mean():
    defined = DepthErrors(0.1, 1, 2, 3, 1.0, pixels=300)
    mean = DepthErrors.mean([defined, DepthErrors.undefined(100)])
    np.testing.assert_allclose(astuple(mean), [*astuple(defined)[:-1], 400])
    assert np.isnan(DepthErrors.mean([DepthErrors.undefined(100)]).abs_rel)


@given(seeds, factors)
def test_aligned_errors_do_not_depend_on_the_prediction_s_scale(seed, factor):
    predicted, truth = skewed_depth(seed)
    for alignment in ("scale", "scale_shift"):
        errors = [depth_errors(align_depth(p, truth, alignment), truth) for p in (predicted, factor * predicted)]
        assert errors[1].abs_rel == pytest.approx(errors[0].abs_rel, rel=1e-2)  # ten rounds do not converge


def test_alignments_by_name():
    predicted, truth = np.array([1.0, 2, 3, 4]), np.array([3.0, 5, 7, 9])
    assert ALIGNMENTS == ("scale", "scale_shift", "none")
    np.testing.assert_array_equal(align_depth(predicted, truth, "none"), predicted)
    np.testing.assert_allclose(align_depth(predicted, truth, "scale_shift"), truth, atol=1e-6)
    np.testing.assert_allclose(align_depth(predicted, truth, "scale"), depth_scale(predicted, truth) * predicted)
    with pytest.raises(ValueError, match="scale, scale_shift, none, got 'median'"):
        align_depth(predicted, truth, "median")


def test_scene_scale_is_the_mean_distance_and_not_the_mean_depth():
    K = intrinsic_matrix(1.0, 1.0, 0.0, 0.0)  # rays (0, 0, 1) and (1, 0, 1) in the first row
    depth = np.array([[3.0, 2.0], [0.0, np.nan], [np.inf, -1.0]], dtype=np.float32)
    assert scene_scale(depth, K) == pytest.approx((3 + 2 * np.sqrt(2)) / 2)
    with pytest.raises(ValueError, match="no valid pixel"):
        scene_scale(np.zeros((4, 4)), K)


def test_umeyama_by_hand():
    source = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]])
    target = 3 * np.array([[0.0, 0, -1], [0, 0, 1], [1, 0, 0], [-1, 0, 0]]) + [5.0, 6, 7]  # a quarter turn about y
    s, R, t = umeyama(source, target)
    assert s == pytest.approx(3)
    np.testing.assert_allclose(R, yaw(90), atol=1e-12)
    np.testing.assert_allclose(t, [5, 6, 7], atol=1e-12)


@given(seeds, factors)
def test_umeyama_finds_any_similarity(seed, factor):
    rng = np.random.default_rng(seed)
    source, T = rng.normal(size=(8, 3)), some_transform(rng)
    s, R, t = umeyama(source, factor * source @ T[:3, :3].T + T[:3, 3])
    assert s == pytest.approx(factor)
    np.testing.assert_allclose(R, T[:3, :3], atol=1e-9)
    np.testing.assert_allclose(t, T[:3, 3], atol=1e-9 * factor + 1e-9)


def test_umeyama_never_reflects():
    source = np.concatenate([np.diag([3.0, 2, 1]), -np.diag([3.0, 2, 1])])
    s, R, _ = umeyama(source, source * [1, 1, -1])
    np.testing.assert_allclose(R, np.eye(3), atol=1e-12)
    assert s == pytest.approx((9 + 4 - 1) / (9 + 4 + 1))


def test_umeyama_without_scale_keeps_lengths():
    source = np.random.default_rng(0).normal(size=(20, 3))
    s, R, t = umeyama(source, 2 * source + 1, scale=False)
    assert s == 1
    np.testing.assert_allclose(R, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(t, source.mean(axis=0) + 1)


@pytest.mark.parametrize("place", [0.0, 0.1, 1e6])
def test_points_that_coincide_are_only_moved(place):
    target = np.random.default_rng(0).normal(size=(7, 3))
    s, R, t = umeyama(np.full((7, 3), place), target)
    assert s == 1
    np.testing.assert_array_equal(R, np.eye(3))
    np.testing.assert_allclose(place + t, target.mean(axis=0), atol=1e-9)


def test_points_on_a_line_are_still_brought_together():
    source = np.outer(np.arange(5.0), [1, 0, 0])
    target = np.outer(2 * np.arange(5.0), [0, 0.6, 0.8])
    s, R, t = umeyama(source, target)
    np.testing.assert_allclose(s * source @ R.T + t, target, atol=1e-12)
    assert np.linalg.det(R) == pytest.approx(1)


def test_pose_errors_by_hand():
    centres = np.array([[1.0, 0, 0], [0, 0, 1], [-1, 0, 0], [0, 0, -1]])
    true = np.array([rigid(np.eye(3), centre) for centre in centres])
    up_and_down = 0.3 * np.array([[0, 1, 0], [0, -1, 0]])
    moved = centres + np.tile(up_and_down, (2, 1))  # no rotation or shift makes up for it
    predicted = np.array([rigid(yaw(3 * i), centre) for i, centre in enumerate(moved)])
    errors = pose_errors(predicted, true)
    s = 4 / (4 + 4 * 0.3**2)  # of the least squares: the covariance's trace over the source's variance
    assert errors.ate == pytest.approx(np.sqrt((s - 1) ** 2 + (s * 0.3) ** 2))
    assert errors.rpe_rotation == pytest.approx(3)
    misses = [s * (moved[i + 1] - moved[i]) @ yaw(3 * i) - (centres[i + 1] - centres[i]) for i in range(3)]
    assert errors.rpe_translation == pytest.approx(np.sqrt(np.square(misses).sum(axis=1).mean()))


@given(seeds, factors)
def test_pose_errors_ignore_a_similarity_of_the_prediction(seed, factor):
    rng = np.random.default_rng(seed)
    true = some_trajectory(rng)
    predicted = disturbed(rng, true)
    moved = predicted.copy()
    moved[:, :3, 3] *= factor
    moved = some_transform(rng) @ moved
    for name, value in vars(pose_errors(predicted, true)).items():
        assert getattr(pose_errors(moved, true), name) == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_a_forgotten_inversion_shows():
    true = some_trajectory(np.random.default_rng(0))
    assert pose_errors(true, true).ate < 1e-12
    assert pose_errors(np.linalg.inv(true), true).ate > 0.1


def test_standing_still_has_the_spread_of_the_truth_as_its_error():
    true = some_trajectory(np.random.default_rng(0))
    still = np.tile(np.eye(4), (len(true), 1, 1))
    errors = pose_errors(still, true)
    centres = true[:, :3, 3]
    assert errors.ate == pytest.approx(np.sqrt(centres.var(axis=0).sum()))
    assert errors.rpe_translation == pytest.approx(np.sqrt(np.mean(np.sum(np.diff(centres, axis=0) ** 2, axis=1))))


def shaking(rng: np.random.Generator, metres: float, frames: int = 50) -> np.ndarray:
    """A camera that turns on a tripod, [frames, 4, 4]."""
    return np.array([rigid(yaw(3 * i), np.array([1.0, 2, 3]) + metres * rng.normal(size=3)) for i in range(frames)])


@pytest.mark.parametrize("metres", [0, 1e-9, 1e-4, 1e-3])
@pytest.mark.parametrize("wrong", ["drifts", "shakes", "stands", "is right"])
def test_the_error_of_places_is_undefined_where_the_true_camera_stands_still(metres, wrong):
    """Scaled to nothing, anything is as good as right; but how it turns is known."""
    rng = np.random.default_rng(0)
    true = shaking(rng, metres)
    predicted = true.copy()
    predicted[:, :3, 3] = {
        "drifts": np.linspace(0, 5, 50)[:, None] * [1, 1, 1],
        "shakes": rng.normal(size=(50, 3)),
        "stands": np.zeros((50, 3)),
        "is right": true[:, :3, 3],
    }[wrong]
    errors = pose_errors(predicted, true)
    assert np.isnan(errors.ate) and np.isnan(errors.rpe_translation)
    assert errors.rpe_rotation == pytest.approx(0, abs=1e-5)
    assert pose_errors(np.tile(np.eye(4), (50, 1, 1)), true).rpe_rotation == pytest.approx(3)


def test_the_error_of_places_is_undefined_of_two_poses():
    """Which Sim(3) always brings together."""
    true = some_trajectory(np.random.default_rng(0), 3)
    assert np.isnan(pose_errors(some_trajectory(np.random.default_rng(1), 2), true[:2]).ate)
    assert pose_errors(some_trajectory(np.random.default_rng(1), 3), true).ate > 0.01


def test_a_small_motion_is_one():
    true = some_trajectory(np.random.default_rng(0))
    true[:, :3, 3] *= 0.02
    assert pose_errors(shaking(np.random.default_rng(1), 1.0, len(true)), true).ate > 2e-3
    assert pose_errors(true, true).ate == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("errors", [pose_errors, motion_errors, lambda *T: first_frame_errors(*T, 1.0)])
def test_poses_that_are_no_numbers_are_refused_and_not_left_out(bad, errors):
    true = some_trajectory(np.random.default_rng(0))
    for name in ("predicted", "true"):
        broken = true.copy()
        broken[[3, 5], 0, 3] = bad
        with pytest.raises(ValueError, match=rf"{name} poses must be finite, but 2 of 12 are not, the first is 3"):
            errors(*((broken, true) if name == "predicted" else (true, broken)))


@pytest.mark.parametrize("scale", [0, -1, np.nan, np.inf])
def test_a_scale_that_is_none_is_refused(scale):
    true = some_trajectory(np.random.default_rng(0))
    for errors in (first_frame_errors, motion_errors):
        with pytest.raises(ValueError, match="true scale must be above 0"):
            errors(true, true, scale)


def test_trajectories_that_cannot_be_compared_are_refused():
    for shapes in [((3, 4, 4), (2, 4, 4)), ((1, 4, 4), (1, 4, 4)), ((3, 3, 4), (3, 3, 4))]:
        with pytest.raises(ValueError, match="N of at least 2"):
            pose_errors(*(np.broadcast_to(np.eye(*shape[1:]), shape) for shape in shapes))


def test_first_frame_errors_by_hand():
    T_room_first = some_transform(np.random.default_rng(0))
    motion = rigid(yaw(20), np.array([0.0, 0, 4.0]))
    true = np.array([T_room_first, T_room_first @ motion])
    predicted = np.array([np.eye(4), rigid(yaw(25), np.array([0.3, 0, 1.6]))])
    rotation, distance = first_frame_errors(predicted, true, scale_true=2.0)
    np.testing.assert_allclose(rotation, [0, 5], atol=1e-9)
    np.testing.assert_allclose(distance, [0, 0.5], atol=1e-12)  # (0.3, 0, 1.6) against (0, 0, 2)


@given(seeds, factors)
def test_first_frame_errors_ignore_the_worlds_but_not_the_scale(seed, factor):
    rng = np.random.default_rng(seed)
    true = some_trajectory(rng)
    predicted = inverse(true[0]) @ true
    predicted[:, :3, 3] /= factor
    rotation, distance = first_frame_errors(some_transform(rng) @ predicted, true, factor)
    np.testing.assert_allclose(rotation, 0, atol=1e-5)
    np.testing.assert_allclose(distance, 0, atol=1e-9 * max(1, 1 / factor))
    _, distance = first_frame_errors(predicted, true, 2 * factor)
    np.testing.assert_allclose(distance, np.linalg.norm(predicted[:, :3, 3], axis=1) / 2, atol=1e-9)


PROGRAMS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def evo(program: str, folder: Path, *arguments: str) -> float:
    """The root mean square that an evo program finds between truth.txt and predicted.txt."""
    result = folder / f"{program}{len(list(folder.iterdir()))}.zip"
    aligned = ("tum", "truth.txt", "predicted.txt", "--align", "--correct_scale")
    subprocess.run(
        [shutil.which(program, path=PROGRAMS) or program, *aligned, *arguments, "--save_results", result.name],
        cwd=folder,
        env=os.environ | {"HOME": str(folder)},  # it keeps settings there
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(result) as archive:
        return json.loads(archive.read("stats.json"))["rmse"]


def write_tum(path: Path, T_world_cam: np.ndarray) -> None:
    poses = [[i / 30, *T[:3, 3], *quaternion_xyzw(T[:3, :3])] for i, T in enumerate(T_world_cam)]
    np.savetxt(path, poses, fmt="%.17g")


@pytest.mark.skipif(not shutil.which("evo_ape", path=PROGRAMS), reason="evo is not installed: pip install evo")
def test_pose_errors_are_those_of_evo(tmp_path):
    rng = np.random.default_rng(3)
    true = some_trajectory(rng, 40)
    predicted = some_transform(rng) @ disturbed(rng, true)
    predicted[:, :3, 3] *= 0.4
    write_tum(tmp_path / "truth.txt", true)
    write_tum(tmp_path / "predicted.txt", predicted)
    errors = pose_errors(predicted, true)
    step = ("--delta", "1", "--delta_unit", "f", "--all_pairs", "--pose_relation")
    assert errors.ate == pytest.approx(evo("evo_ape", tmp_path), rel=1e-6)
    assert errors.rpe_translation == pytest.approx(evo("evo_rpe", tmp_path, *step, "trans_part"), rel=1e-6)
    assert errors.rpe_rotation == pytest.approx(evo("evo_rpe", tmp_path, *step, "angle_deg"), rel=1e-6)
