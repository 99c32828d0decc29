# SPDX-License-Identifier: Apache-2.0
"""Similarities beside matrices [4, 4], which do the same to points."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from xsvggt_ros.geometry import rigid
from xsvggt_ros.similarity import Similarity

few = settings(max_examples=60, deadline=None)
vectors = st.lists(st.floats(-3, 3), min_size=3, max_size=3).map(np.array)
rotations = vectors.map(lambda v: Rotation.from_rotvec(v).as_matrix())
similarities = st.builds(Similarity, st.floats(0.1, 10), rotations, vectors)
poses = st.builds(rigid, rotations, vectors)


def matrix(S: Similarity) -> np.ndarray:
    return rigid(S.scale * S.rotation, S.translation)


@few
@given(similarities)
def test_the_inverse_is_that_of_the_matrix(S):
    np.testing.assert_allclose(matrix(S.inverse()), np.linalg.inv(matrix(S)), rtol=1e-9, atol=1e-9)


@few
@given(similarities, similarities)
def test_one_after_the_other_is_the_product_of_the_matrices(a, b):
    np.testing.assert_allclose(matrix(a @ b), matrix(a) @ matrix(b), rtol=1e-9, atol=1e-9)


@few
@given(similarities, vectors)
def test_a_point_moves_as_by_the_matrix(S, x):
    np.testing.assert_allclose([*S.point(x), 1], matrix(S) @ [*x, 1], rtol=1e-9, atol=1e-9)


@few
@given(similarities, poses, vectors)
def test_what_a_posed_camera_sees_at_another_scale_is_where_the_matrix_has_it(S, T, x):
    """The camera's pose is rigid in the target: what it sees grows with the scale instead."""
    in_target = S.pose(T) @ [*(S.scale * x), 1]
    np.testing.assert_allclose(in_target, matrix(S) @ T @ [*x, 1], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(S.pose(T)[:3, :3] @ S.pose(T)[:3, :3].T, np.eye(3), atol=1e-9)


def test_nothing_said_is_the_identity():
    np.testing.assert_array_equal(matrix(Similarity()), np.eye(4))
