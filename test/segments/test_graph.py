# SPDX-License-Identifier: Apache-2.0
"""Keyframes on a circle, and what was measured between them."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.segments import far_from, some_similarity

from xsvggt_ros.segments.graph import Relations, _Problem, optimise
from xsvggt_ros.similarity import Similarity

COUNT = 8


def circle() -> dict[int, Similarity]:
    """S_map_key, each at another scale."""
    turns = [Rotation.from_rotvec([0, 2 * np.pi * i / COUNT, 0]) for i in range(COUNT)]
    return {i: Similarity(1 + 0.1 * i, turn.as_matrix(), turn.apply([0, 0, 2.0])) for i, turn in enumerate(turns)}


def related(poses: dict[int, Similarity], pairs) -> Relations:
    relations = Relations()
    for a, b in pairs:
        relations.add(a, b, poses[a].inverse() @ poses[b])
    return relations


def ring(poses: dict[int, Similarity]) -> Relations:
    return related(poses, [(i, (i + 1) % COUNT) for i in range(COUNT)])


def nudge(seed: int, size: float) -> Similarity:
    rng = np.random.default_rng(seed)
    turn = Rotation.from_rotvec(size * rng.normal(size=3)).as_matrix()
    return Similarity(float(np.exp(size * rng.normal())), turn, size * rng.normal(size=3))


def perturbed(poses: dict[int, Similarity], fixed: int, size: float = 0.1) -> dict[int, Similarity]:
    return {key: S if key == fixed else S @ nudge(key, size) for key, S in poses.items()}


def settled(poses, relations, fixed):
    """A correction has few rounds, and the next goes on from there."""
    for _ in range(12):
        poses = optimise(poses, relations, fixed)
    return poses


@pytest.mark.parametrize("fixed", [0, 5])
def test_exact_relations_give_exact_poses_back(fixed):
    truth = circle()
    start = perturbed(truth, fixed)
    found = settled(start, ring(truth), fixed)
    assert max(far_from(found[key], truth[key]) for key in truth) < 1e-6
    assert max(far_from(start[key], truth[key]) for key in truth) > 0.1


def test_of_a_small_drift_one_correction_undoes_most():
    truth = circle()
    start = perturbed(truth, 0, 0.01)
    found = optimise(start, ring(truth), 0)
    off = [max(far_from(poses[key], truth[key]) for key in truth) for poses in (start, found)]
    assert off[1] < off[0] / 10


def test_the_fixed_one_and_those_not_related_to_it_stay():
    truth = circle()
    start = perturbed(truth, 0) | {20: some_similarity(1), 21: some_similarity(2)}
    relations = ring(truth)
    relations.add(20, 21, some_similarity(3))
    found = optimise(start, relations, 0)
    assert found[0] is not start[0] and far_from(found[0], start[0]) < 1e-12
    assert found[20] is start[20] and found[21] is start[21]
    assert optimise(start, Relations(), 0) == start


def test_a_wrong_relation_among_right_ones_moves_the_rest_little():
    truth = circle()
    every = [(a, b) for a in truth for b in truth if 0 < b - a <= 3]
    relations = related(truth, every)
    wrong = Similarity(2.0, Rotation.from_rotvec([0, 1.0, 0]).as_matrix(), np.array([3.0, 0, 0]))
    relations.add(1, 6, wrong)
    found = settled(truth, relations, 0)
    assert far_from(truth[1].inverse() @ truth[6], wrong) > 1
    assert max(far_from(found[key], truth[key]) for key in truth) < 0.2  # 1.6 without the robust sum


def test_what_was_measured_more_often_counts_more():
    relations = Relations()
    ahead = np.array([0, 0, 1.0])
    for _ in range(3):
        relations.add(0, 1, Similarity(translation=1.0 * ahead))
    relations.add(1, 2, Similarity(translation=1.0 * ahead))
    relations.add(0, 2, Similarity(translation=2.02 * ahead))
    found = settled({key: Similarity(translation=key * ahead) for key in range(3)}, relations, 0)
    stretched = [found[b].translation[2] - found[a].translation[2] - 1 for a, b in ((0, 1), (1, 2))]
    assert 0 < stretched[0] < stretched[1]


def test_the_jacobian_agrees_with_finite_differences():
    truth = circle()
    keys = sorted(truth)
    problem = _Problem([truth[key] for key in keys], keys, ring(truth))
    zero, step = np.zeros(7 * (COUNT - 1)), 1e-6
    assert np.abs(problem.errors(zero)).max() < 1e-9
    numeric = np.stack([(problem.errors(e) - problem.errors(-e)) / (2 * step) for e in step * np.eye(len(zero))], -1)
    np.testing.assert_allclose(problem.jacobian(zero).toarray(), numeric, atol=1e-5)


def test_a_relation_is_the_mean_of_its_measurements_in_either_order():
    S = [Similarity(np.exp(x), Rotation.from_rotvec([0, x, 0]).as_matrix(), np.array([x, 0, 0])) for x in (0, 0.3, 0.6)]
    relations = Relations()
    for each in S:
        relations.add(2, 5, each)
    assert far_from(relations.measured[2, 5], S[1]) < 1e-12
    turned = Relations()
    turned.add(5, 2, S[1].inverse())
    assert list(turned.measured) == [(2, 5)] and far_from(turned.measured[2, 5], S[1]) < 1e-12
    assert far_from(turned.between(5, 2), S[1].inverse()) < 1e-12


def test_a_keyframe_that_is_forgotten_leaves_its_neighbours_related():
    truth = circle()
    relations = related(truth, [(0, 1), (1, 2), (1, 5), (6, 7)])
    relations.remove(1)
    assert relations.component(0) == {0, 2, 5} and relations.component(6) == {6, 7}
    for a, b in relations.measured:
        assert far_from(relations.measured[a, b], truth[a].inverse() @ truth[b]) < 1e-9
    relations.remove(6)
    assert relations.component(7) == {7}


def test_what_was_measured_stays_when_a_neighbour_is_forgotten():
    truth = circle()
    relations = related(truth, [(0, 1), (1, 2)])
    relations.add(0, 2, some_similarity(4))
    relations.remove(1)
    assert far_from(relations.measured[0, 2], some_similarity(4)) < 1e-12


def test_distances_count_relations():
    relations = related(circle(), [(0, 1), (1, 2), (2, 3), (0, 3), (5, 6)])
    assert relations.distances(0) == {0: 0, 1: 1, 3: 1, 2: 2}
    assert relations.component(5) == {5, 6} and relations.component(7) == {7}
    assert relations.neighbours(2) == {1, 3}
