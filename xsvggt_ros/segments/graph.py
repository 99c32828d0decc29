# SPDX-License-Identifier: Apache-2.0
"""Pose-graph optimisation over Sim(3): keyframes and what was measured between them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

from xsvggt_ros.geometry import Array, cross_matrices, interpolate, rigid
from xsvggt_ros.similarity import Similarity

# Standard deviations of a measured relation; what counts is their proportion.
ROTATION = 0.03  # radians
SCALE = 0.05  # of the logarithm
SHIFT = 0.05  # in the unit of the first of the two keyframes, about the mean distance of what it sees
ROUNDS = 4  # at most; the next correction goes on from there
MOST = 4  # measurements of one relation that count apart: their errors are alike

Pair = tuple[int, int]


class Relations:
    """{(a, b), a < b: S_a_b} between keyframes, each the mean of what was measured."""

    def __init__(self) -> None:
        self.measured: dict[Pair, Similarity] = {}
        self.counts: dict[Pair, int] = {}  # how often each was

    def add(self, a: int, b: int, S_a_b: Similarity, times: int = 1) -> None:
        """Takes a measurement in, or the mean of some."""
        if a > b:
            a, b, S_a_b = b, a, S_a_b.inverse()
        count = self.counts.get((a, b), 0) + times
        before = self.measured.get((a, b), S_a_b)
        self.measured[a, b], self.counts[a, b] = _between(before, S_a_b, times / count), count

    def replace(self, a: int, b: int, S_a_b: Similarity) -> None:
        """What was measured once, by something better."""
        del self.counts[min(a, b), max(a, b)], self.measured[min(a, b), max(a, b)]
        self.add(a, b, S_a_b)

    def remove(self, key: int) -> None:
        """Forgets a keyframe; those that were related to it are so to each other from now on."""
        others = sorted(self.neighbours(key))
        to_key = {other: self.between(other, key) for other in others}
        for pair in [pair for pair in self.measured if key in pair]:
            del self.measured[pair], self.counts[pair]
        for a, b in pairwise(others):
            if (a, b) not in self.measured:
                self.add(a, b, to_key[a] @ to_key[b].inverse())

    def between(self, a: int, b: int) -> Similarity:
        """S_a_b of two that are related."""
        return self.measured[a, b] if a < b else self.measured[b, a].inverse()

    def neighbours(self, key: int) -> set[int]:
        """Those related to a keyframe."""
        return {a + b - key for a, b in self.measured if key in (a, b)}

    def distances(self, key: int) -> dict[int, int]:
        """{key of each keyframe that it is related to, directly or not: by how many relations}, itself included."""
        found, new, far = {key: 0}, {key}, 0
        while new:
            far += 1
            new = set().union(*map(self.neighbours, new)) - found.keys()
            found |= dict.fromkeys(new, far)
        return found

    def component(self, key: int) -> set[int]:
        """All that a keyframe is related to, directly or not, and itself."""
        return set(self.distances(key))

    def weights(self, pairs: list[Pair]) -> Array:
        """How much the errors of each pair count."""
        return np.sqrt([min(self.counts[pair], MOST) for pair in pairs])


def _between(a: Similarity, b: Similarity, share: float) -> Similarity:
    T = interpolate(rigid(a.rotation, a.translation), rigid(b.rotation, b.translation), share)
    return Similarity(float(np.exp((1 - share) * np.log(a.scale) + share * np.log(b.scale))), T[:3, :3], T[:3, 3])


def optimise(poses: Mapping[int, Similarity], relations: Relations, fixed: int) -> dict[int, Similarity]:
    """S_map_keyframe of all that hang together with the fixed one, by least squares of what was measured.

    Minimises the robust (soft L1) sum over pairs of |log(S_a_b^-1 S_a^-1 S_b)|^2, part by part and weighted, as
    VGGT-Long (arXiv 2507.16443), section 3.3. Others stay as they are.
    """
    keys = [fixed, *sorted(relations.component(fixed) - {fixed})]
    if len(keys) == 1:
        return dict(poses)
    problem = _Problem([poses[key] for key in keys], keys, relations)
    found = least_squares(
        problem.errors,
        np.zeros(7 * (len(keys) - 1)),
        problem.jacobian,
        loss="soft_l1",
        tr_solver="lsmr",
        max_nfev=ROUNDS,
    )
    return {**poses, **dict(zip(keys, problem.similarities(found.x), strict=True))}


class _Problem:
    """Unknowns of each keyframe but the first, [K, 7]: log of the scale, rotation vector, translation, all changes."""

    def __init__(self, start: list[Similarity], keys: list[int], relations: Relations) -> None:
        place = {key: i for i, key in enumerate(keys)}
        pairs = [pair for pair in relations.measured if pair[0] in place]
        measured = [relations.measured[pair] for pair in pairs]
        self._a, self._b = np.array([[place[a], place[b]] for a, b in pairs]).T
        self._weights = relations.weights(pairs)[:, None] / np.array([ROTATION] * 3 + [SCALE] + [SHIFT] * 3)
        self._logs, self._R, self._t = _arrays(start)
        self._measured = _arrays(measured)

    def _moved(self, change: Array) -> tuple[Array, Array, Array]:
        x = np.vstack([np.zeros(7), change.reshape(-1, 7)])
        return self._logs + x[:, 0], self._R @ Rotation.from_rotvec(x[:, 1:4]).as_matrix(), self._t + x[:, 4:]

    def similarities(self, change: Array) -> list[Similarity]:
        return [Similarity(float(np.exp(log)), R, t) for log, R, t in zip(*self._moved(change), strict=True)]

    def errors(self, change: Array) -> Array:
        """[7 * pairs]."""
        logs, R, t = self._moved(change)
        (m_logs, m_R, m_t), a, b = self._measured, self._a, self._b
        turn = Rotation.from_matrix(_transposed(m_R) @ _transposed(R[a]) @ R[b]).as_rotvec()
        stretch = (logs[b] - logs[a] - m_logs)[:, None]
        return (np.hstack([turn, stretch, self._shift(logs, R, t) - m_t]) * self._weights).ravel()

    def _shift(self, logs: Array, R: Array, t: Array) -> Array:
        """Where b is in a, in a's unit."""
        a, b = self._a, self._b
        return np.einsum("nij,nj->ni", _transposed(R[a]), t[b] - t[a]) / np.exp(logs[a])[:, None]

    def jacobian(self, change: Array) -> Any:
        """Of the errors; that of rotations to first order in the error and the change, which is enough to descend."""
        logs, R, t = self._moved(change)
        a, b, shift = self._a, self._b, self._shift(logs, R, t)
        of_a, of_b = np.zeros((2, len(a), 7, 7))
        of_a[:, :3, 1:4], of_b[:, :3, 1:4] = -_transposed(R[b]) @ R[a], np.eye(3)
        of_a[:, 3, 0], of_b[:, 3, 0] = -1, 1
        of_b[:, 4:, 4:] = _transposed(R[a]) / np.exp(logs[a])[:, None, None]
        of_a[:, 4:, 4:], of_a[:, 4:, 0], of_a[:, 4:, 1:4] = -of_b[:, 4:, 4:], -shift, cross_matrices(shift)
        rows = np.arange(7 * len(a)).reshape(-1, 7, 1) + np.zeros((1, 1, 7), int)
        columns = [7 * place[:, None, None] + np.zeros((1, 7, 1), int) + np.arange(7) for place in (a, b)]
        values = [block * self._weights[..., None] for block in (of_a, of_b)]
        at = np.ravel([rows, rows]), np.ravel(columns)
        return csr_matrix((np.ravel(values), at), shape=(7 * len(a), 7 * len(self._logs)))[:, 7:]


def _arrays(of: list[Similarity]) -> tuple[Array, Array, Array]:
    """Logarithms of the scales [N], rotations [N, 3, 3] and translations [N, 3]."""
    return np.log([s.scale for s in of]), np.array([s.rotation for s in of]), np.array([s.translation for s in of])


def _transposed(R: Array) -> Array:
    return np.swapaxes(R, -1, -2)
