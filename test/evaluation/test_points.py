# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xsvggt_ros.evaluation import points
from xsvggt_ros.evaluation.metrics import Undefined
from xsvggt_ros.evaluation.points import align_points, estimate_normals, icp, point_errors
from xsvggt_ros.geometry import rigid, rotation_matrix, transform


def plane(half: int = 8, spacing: float = 0.5, z: float = 0.0) -> np.ndarray:
    """A square grid in the plane z, centred on the axis."""
    x, y = np.meshgrid(*[spacing * np.arange(-half, half + 1)] * 2)
    return np.stack([x.ravel(), y.ravel(), np.full(x.size, z)], axis=1)


def room(count: int = 400, seed: int = 0) -> np.ndarray:
    """Points on three sides of a cube of 2 metres."""
    rng = np.random.default_rng(seed)
    cloud = rng.uniform(0, 2, (count, 3))
    cloud[np.arange(count), rng.integers(0, 3, count)] = 0
    return cloud


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-5, 5))
def test_scale_and_shift_along_z_are_undone(seed, factor, shift):
    truth = np.random.default_rng(seed).uniform([-2, -2, 1], [2, 2, 5], (40, 3))
    predicted = truth / factor + [0, 0, shift]
    np.testing.assert_allclose(align_points(predicted, truth), truth, atol=1e-9 * max(1, factor))


def test_alignment_by_hand():
    truth = np.array([[0.0, 0, 1], [4, 0, 5], [0, 3, 9]])  # median z 5; norms then 4, 4, 5
    predicted = np.array([[0.0, 0, 2], [1, 0, 3], [0, 0, 3]])  # median z 3; norms then 1, 1, 0
    np.testing.assert_allclose(align_points(predicted, truth), [[0, 0, 1], [4, 0, 5], [0, 0, 5]])
    with pytest.raises(ValueError, match="at least one"):
        align_points(predicted, truth[:2])


def test_point_errors_by_hand():
    truth = plane()
    predicted = np.concatenate([truth, plane(z=1.0)[:17]])  # one row seen twice, 1 m too far
    errors = point_errors(predicted, truth)
    assert errors.accuracy == pytest.approx(17 / len(predicted))
    assert errors.accuracy_median == 0
    assert errors.completeness == 0
    assert errors.completeness_median == 0


def test_completeness_sees_what_is_missing():
    truth = plane()
    left = truth[truth[:, 0] < 0.1]  # 9 of 17 columns; the others are 0.5, 1, .. 4 m away
    errors = point_errors(left, truth)
    assert errors.accuracy == 0
    assert errors.completeness == pytest.approx(sum(0.5 * k for k in range(1, 9)) / 17)
    assert errors.completeness_median == 0
    assert errors.normal_consistency == pytest.approx(1)


def test_normal_consistency_is_the_cosine_of_the_angle():
    tilted = transform(rigid(rotation_matrix(np.array([np.sin(0.5), 0, 0, np.cos(0.5)])), np.zeros(3)), plane())
    far = np.array([0, 0, 20.0])  # out of the reach of ICP
    errors = point_errors(tilted + far, plane())
    assert errors.normal_consistency == pytest.approx(np.cos(1))
    assert errors.normal_consistency_median == pytest.approx(np.cos(1))


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_point_errors_do_not_depend_on_the_frame(seed):
    rng = np.random.default_rng(seed)
    T = rigid(rotation_matrix(rng.normal(size=4)), rng.normal(size=3))
    truth, predicted = room(seed=0), room(seed=1)
    moved = point_errors(transform(T, predicted), transform(T, truth))
    for name, value in vars(point_errors(predicted, truth)).items():
        assert getattr(moved, name) == pytest.approx(value, abs=1e-4)


def test_swapping_the_clouds_swaps_accuracy_and_completeness():
    far = np.array([0.0, 0, 5])
    one, other = point_errors(room(seed=0), room(seed=1) + far), point_errors(room(seed=1) + far, room(seed=0))
    assert one.accuracy == pytest.approx(other.completeness)
    assert one.accuracy_median == pytest.approx(other.completeness_median)
    assert one.normal_consistency == pytest.approx(other.normal_consistency)


def test_icp_undoes_a_small_motion():
    target = room(count=2000) + np.array([3, 0, 0])  # off the origin: the order of motions counts
    T = rigid(rotation_matrix(np.array([0.004, -0.003, 0.005, 1])), np.array([0.01, -0.02, 0.015]))
    np.testing.assert_allclose(icp(transform(np.linalg.inv(T), target), target), T, atol=1e-9)


def test_icp_leaves_alone_what_is_out_of_its_reach():
    np.testing.assert_array_equal(icp(room(), room() + 10), np.eye(4))


def test_icp_does_not_scale():
    R = icp(1.02 * room(), room())[:3, :3]
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)


def test_normals_of_a_sphere_are_its_radii(monkeypatch):
    directions = np.random.default_rng(0).normal(size=(5000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    normals = estimate_normals(directions)
    assert np.abs(np.sum(normals * directions, axis=1)).min() > 0.97
    monkeypatch.setattr(points, "CHUNK", 1234)  # in pieces, the same
    np.testing.assert_array_equal(estimate_normals(directions), normals)


def test_points_on_a_line_or_in_one_place_have_no_normal():
    line = np.outer(np.arange(40.0), [1, 2, 0])
    for cloud in (line, np.ones((40, 3)), np.zeros((40, 3))):
        np.testing.assert_array_equal(estimate_normals(cloud), np.zeros((40, 3)))


def test_a_prediction_in_one_place_is_all_wrong():
    truth = plane(z=3.0)
    errors = point_errors(align_points(np.ones_like(truth), truth), truth)
    assert errors.completeness > 1 and errors.normal_consistency == 0


def test_true_points_that_any_prediction_fits_are_undefined():
    wrong = room()
    for count, truth in ((400, np.full((400, 3), [0.0, 0, 3])), (2, room(2, seed=1))):
        with pytest.raises(Undefined, match="do not tell predictions apart"):
            align_points(wrong[:count], truth)


def test_points_that_are_no_numbers_are_refused():
    broken = room()
    broken[7, 1] = np.nan
    for clouds in ((broken, room()), (room(), broken)):
        with pytest.raises(ValueError, match="must be finite"):
            align_points(*clouds)


def test_clouds_without_normals_are_refused():
    with pytest.raises(ValueError, match="at least 3 points"):
        point_errors(room(2), room(5))
