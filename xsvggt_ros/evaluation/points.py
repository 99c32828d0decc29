# SPDX-License-Identifier: Apache-2.0
"""Errors of point clouds, as the field reports them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from xsvggt_ros.evaluation.metrics import STANDS_STILL, STILL, Undefined, umeyama
from xsvggt_ros.geometry import Array, rigid, transform

ICP_THRESHOLD = 0.1  # metres
ICP_ROUNDS = 30
ICP_TOLERANCE = 1e-6  # on the share of inliers and on their root mean square distance
NEIGHBOURS = 30  # of a point, itself included, that its normal is estimated from
CHUNK = 100_000  # points whose neighbours are in memory at once


@dataclass(frozen=True)
class PointErrors:
    """Of one scene: distances to the nearest point, in the truth's unit, and agreement of the normals there."""

    accuracy: float  # prediction to truth
    accuracy_median: float
    completeness: float  # truth to prediction
    completeness_median: float
    normal_consistency: float  # |cos| of the angle between normals; mean of both ways
    normal_consistency_median: float  # mean of both ways' medians

    @classmethod
    def undefined(cls) -> PointErrors:
        return cls(*[np.nan] * 6)


def align_points(predicted: Array, truth: Array) -> Array:
    """Predicted points [N, 3] in the scale and at the depth of their true ones [N, 3], in the first camera's frame.

    Joint over all frames: each side's median z is its shift, the ratio of the median norms that remain the scale.
    Predicted points that coincide have no scale, and keep theirs. Raises ValueError if the shapes differ, N is 0 or a
    point is not finite; Undefined below 3 points, or if the true ones coincide: any prediction would be brought there.
    """
    if predicted.shape != truth.shape or not len(truth):
        raise ValueError(
            f"predicted and true points must be [N, 3] and at least one, got {predicted.shape} and {truth.shape}"
        )
    if not (np.isfinite(predicted).all() and np.isfinite(truth).all()):
        raise ValueError("predicted and true points must be finite; leave out pixels without depth")
    shift_true = _median_z(truth)
    size_true = _median_norm(truth - shift_true)
    if len(truth) < 3 or size_true < STANDS_STILL:
        raise Undefined(f"{len(truth)} true points within {size_true:.2g} m do not tell predictions apart")
    centred = predicted - _median_z(predicted)
    size = _median_norm(centred)
    return centred * (size_true / size if size > STILL * np.abs(predicted).max() else 1.0) + shift_true


def point_errors(predicted: Array, truth: Array) -> PointErrors:
    """Errors of aligned points [N, 3] against true ones [M, 3], metres, after `icp`.

    Raises ValueError below 3 points a side, which have no normals.
    """
    if min(len(predicted), len(truth)) < 3:
        raise ValueError(f"clouds need at least 3 points for normals, got {len(predicted)} and {len(truth)}")
    predicted = transform(icp(predicted, truth), predicted)
    normals, normals_true = estimate_normals(predicted), estimate_normals(truth)
    accuracy, nearest_true = cKDTree(truth).query(predicted, workers=-1)
    completeness, nearest = cKDTree(predicted).query(truth, workers=-1)
    agreement = (_cosines(normals, normals_true[nearest_true]), _cosines(normals_true, normals[nearest]))
    return PointErrors(
        accuracy=float(accuracy.mean()),
        accuracy_median=float(np.median(accuracy)),
        completeness=float(completeness.mean()),
        completeness_median=float(np.median(completeness)),
        normal_consistency=float(np.mean([cosines.mean() for cosines in agreement])),
        normal_consistency_median=float(np.mean([np.median(cosines) for cosines in agreement])),
    )


def icp(source: Array, target: Array) -> Array:
    """T_target_source [4, 4], rigid, of points [N, 3] and [M, 3] by point-to-point ICP from the identity.

    Pairs farther apart than ICP_THRESHOLD do not count. Besl and McKay, PAMI 1992.
    """
    tree = cKDTree(target)
    T_target_source = np.eye(4)
    fit = np.full(2, np.inf)
    for _ in range(ICP_ROUNDS):
        moved = transform(T_target_source, source)
        distance, nearest = tree.query(moved, distance_upper_bound=ICP_THRESHOLD, workers=-1)
        paired = np.isfinite(distance)
        if not paired.any():
            break
        last, fit = fit, np.array([paired.mean(), np.sqrt(np.mean(distance[paired] ** 2))])
        if np.all(np.abs(fit - last) < ICP_TOLERANCE):
            break
        _, R, t = umeyama(moved[paired], target[nearest[paired]], scale=False)
        T_target_source = rigid(R, t) @ T_target_source
    return T_target_source


def estimate_normals(points: Array) -> Array:
    """Unit normals [N, 3] of points [N, 3], of either sign: the direction in which the nearest points vary least.

    Nearest points on a line, or all in one place, have none: there it is 0.
    """
    tree = cKDTree(points)
    chunks = np.array_split(points, -(-len(points) // CHUNK))
    return np.concatenate([_normals(chunk, tree) for chunk in chunks])


def _normals(chunk: Array, tree: cKDTree) -> Array:
    _, nearest = tree.query(chunk, k=min(NEIGHBOURS, tree.n), workers=-1)  # [C, k]
    offsets = tree.data[nearest]
    offsets -= offsets.mean(axis=1, keepdims=True)  # [C, k, 3]
    values, vectors = np.linalg.eigh(offsets.swapaxes(1, 2) @ offsets)  # ascending
    surface = values[:, 1] > STILL * values[:, 2]
    return np.where(surface[:, None], vectors[:, :, 0], 0)


def _cosines(normals: Array, others: Array) -> Array:
    return np.abs(np.sum(normals * others, axis=1))


def _median_z(points: Array) -> Array:
    return np.array([0.0, 0.0, np.median(points[:, 2])])


def _median_norm(points: Array) -> float:
    return float(np.median(np.linalg.norm(points, axis=1)))
