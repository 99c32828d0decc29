# SPDX-License-Identifier: Apache-2.0
"""Errors of depth and of camera poses, as the field reports them. Point clouds: points.py.

An error is undefined, NaN or Undefined, where the truth is such that any prediction would score well, after a fit that
has nothing to hold on to. What a prediction lacks never makes it so: that is a bad number, or ValueError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from xsvggt_ros.geometry import Array, inverse, unproject

OCCLUDED = 0.05  # of the depth: more between a point and what another image shows there, and it is hidden
TRACK_SIDE, TRACK_LIMITS = 256, (1, 2, 4, 8, 16)  # pixels: side of the image that the limits are of
SCALE_ROUNDS = 10  # those of the field's protocol
SCALE_SHIFT_ROUNDS = 50  # within 1e-4 of the least mean residual
LEAST_SCALE = 1e-3
LEAST_DEPTH = 1e-3  # ratios and logarithms need positive depth; resizing and shifting can go below 0
LEAST_RESIDUAL = 1e-8
STILL = 1e-9  # a spread below this share of the coordinates is their rounding
STANDS_STILL = 2e-3  # metres; what motion capture says of a camera on a tripod
FLAT = 0.01  # a spread of depth below this share of it is a depth camera's noise


class Undefined(ValueError):
    """The truth is such that any prediction would score well."""


def mean_of_defined(values: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> list[float]:
    """Means of columns over the rows [N, C] that have them; NaN where none has."""
    rows = np.array(values, dtype=np.float64)
    means = np.ma.average(np.ma.masked_where(np.isnan(rows), rows), axis=0, weights=weights)
    return np.ma.filled(means, np.nan).tolist()


@dataclass(frozen=True)
class DepthErrors:
    """Of one sequence, over its valid pixels."""

    abs_rel: float
    sq_rel: float  # in the depth's unit
    rmse: float  # in the depth's unit
    log_rmse: float
    delta_125: float  # share of pixels whose ratio to the truth, or its inverse, is below 1.25
    pixels: int

    @classmethod
    def mean(cls, errors: Sequence[DepthErrors]) -> DepthErrors:
        """Of a data set: its sequences' errors weighted by their valid pixels, undefined ones left out.

        Raises ValueError for none.
        """
        if not errors:
            raise ValueError("there are no depth errors to average: evaluate at least one sequence")
        pixels = [e.pixels for e in errors]
        means: list[Any] = mean_of_defined([astuple(e)[:-1] for e in errors], pixels)
        return cls(*[*means, sum(pixels)])

    @classmethod
    def undefined(cls, pixels: int) -> DepthErrors:
        """Of that many pixels."""
        return cls(np.nan, np.nan, np.nan, np.nan, np.nan, pixels)


def depth_errors(predicted: NDArray, truth: NDArray) -> DepthErrors:
    """Errors of aligned depth [N] at the valid pixels, where truth [N] is above 0.

    A prediction below LEAST_DEPTH counts as that. Raises ValueError if the shapes differ, N is 0, a prediction is not
    finite or a truth not above 0.
    """
    p, g = _valid_pixels(predicted, truth)
    if g.min() <= 0:
        raise ValueError(f"true depth must be above 0 at valid pixels, the least is {g.min():g}")
    p = np.maximum(p, LEAST_DEPTH)
    return DepthErrors(
        abs_rel=float(np.mean(np.abs(p - g) / g)),
        sq_rel=float(np.mean((p - g) ** 2 / g)),
        rmse=_rms(p - g),
        log_rmse=_rms(np.log(p) - np.log(g)),
        delta_125=float(np.mean(np.maximum(p / g, g / p) < 1.25)),
        pixels=len(g),
    )


def depth_scale(predicted: NDArray, truth: NDArray) -> float:
    """s that brings s * predicted [N] close to truth [N] in the L1 sense, by reweighted least squares.

    A prediction of 0, or of mean 0, has no scale: s is 1.
    """
    p, g = _valid_pixels(predicted, truth)
    if p.mean() == 0:
        return 1.0
    s = g.mean() / p.mean()
    for _ in range(SCALE_ROUNDS):
        weighted = p / (np.abs(s * p - g) + LEAST_RESIDUAL)
        s = max(weighted @ g / (weighted @ p), LEAST_SCALE)
    return float(s)


def depth_scale_shift(predicted: NDArray, truth: NDArray) -> tuple[float, float]:
    """s, t that bring s * predicted [N] + t close to truth [N] in the L1 sense, by reweighted least squares.

    A flat prediction has no scale, nor has one that is near where the truth is far: s is 0 and t the truth's median.
    """
    p, g = _valid_pixels(predicted, truth)
    flat = 0.0, float(np.median(g))
    if p.std() <= STILL * np.abs(p).max():
        return flat
    weights = np.ones_like(p)
    for _ in range(SCALE_SHIFT_ROUNDS):
        p_mean, g_mean = np.average(p, weights=weights), np.average(g, weights=weights)
        weighted = weights * (p - p_mean)
        s = weighted @ (g - g_mean) / (weighted @ (p - p_mean))
        t = g_mean - s * p_mean
        weights = 1 / (np.abs(s * p + t - g) + LEAST_RESIDUAL)
    return (float(s), float(t)) if s > 0 else flat


_SCALE_SHIFT: dict[str, Callable[[NDArray, NDArray], tuple[float, float]]] = {
    "scale": lambda predicted, truth: (depth_scale(predicted, truth), 0.0),
    "scale_shift": depth_scale_shift,
    "none": lambda predicted, truth: (1.0, 0.0),
}
ALIGNMENTS = tuple(_SCALE_SHIFT)
_FITTED = {"scale": 1, "scale_shift": 2, "none": 0}  # numbers


def align_depth(predicted: NDArray, truth: NDArray, alignment: str) -> Array:
    """Predicted depth [N] of a whole sequence's valid pixels in the scale of truth [N], by one of ALIGNMENTS.

    Raises ValueError for another alignment; Undefined if any prediction would fit: to no more pixels than numbers are
    fitted, or with a shift to a flat truth.
    """
    if alignment not in _SCALE_SHIFT:
        raise ValueError(f"alignment must be one of {', '.join(ALIGNMENTS)}, got {alignment!r}")
    p, g = _valid_pixels(predicted, truth)
    if len(g) <= _FITTED[alignment] or (alignment == "scale_shift" and g.std() <= FLAT * g.mean()):
        raise Undefined(f"{len(g)} pixels of a flat truth do not tell predictions apart by {alignment}; align none")
    s, t = _SCALE_SHIFT[alignment](p, g)
    return s * p + t


def scene_scale(depth: NDArray, intrinsics: Array) -> float:
    """Mean distance from the camera to the points of a depth map [h, w], over its finite pixels above 0.

    The bundled model is trained to have 1 here in the first frame. Raises ValueError if no pixel is valid.
    """
    valid = np.isfinite(depth) & (depth > 0)
    if not valid.any():
        raise ValueError("the depth map has no valid pixel: its scene has no scale; start at a frame that has depth")
    points = unproject(np.where(valid, depth, 0), intrinsics)[valid]
    return float(np.linalg.norm(points, axis=-1).mean(dtype=np.float64))


def umeyama(source: Array, target: Array, scale: bool = True) -> tuple[float, Array, Array]:
    """s, R [3, 3], t [3] of least mean |s R source + t - target|^2 over points [N, 3]; without scale, s is 1.

    Umeyama, Least-squares estimation of transformation parameters between two point patterns, PAMI 1991. Source
    points that all coincide have neither scale nor rotation: s is 1, R the identity. If they lie on a line, R is one
    of the best.
    """
    source_mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    if source.std(axis=0).max() <= STILL * np.abs(source).max():
        return 1.0, np.eye(3), target_mean - source_mean
    covariance = (target - target_mean).T @ (source - source_mean) / len(source)  # eq. 38
    U, D, Vt = np.linalg.svd(covariance)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(U) * np.linalg.det(Vt))])  # eq. 39, 43: no reflection
    R = (U * signs) @ Vt
    s = float(D @ signs / source.var(axis=0).sum()) if scale else 1.0  # eq. 42
    return s, R, target_mean - s * R @ source_mean


@dataclass(frozen=True)
class PoseErrors:
    """Of one trajectory, after its Sim(3) alignment; root mean squares.

    Translations are undefined, NaN, where the alignment is: of 2 poses, or a true camera that stands still.
    """

    ate: float  # of the camera centres, in the truth's unit
    rpe_translation: float  # from frame to frame, in the truth's unit
    rpe_rotation: float  # from frame to frame, degrees


def pose_errors(T_world_cam: Array, T_world_cam_true: Array) -> PoseErrors:
    """Absolute and relative errors of camera-to-world poses [N, 4, 4], as `evo_ape -as` and `evo_rpe -as -d 1 -u f`.

    Raises ValueError if the shapes differ, N is below 2 or a pose is not finite.
    """
    _check_trajectories(T_world_cam, T_world_cam_true)
    if not can_align(T_world_cam_true):
        return PoseErrors(np.nan, np.nan, _rms(motion_errors(T_world_cam, T_world_cam_true)[0]))
    centres, centres_true = T_world_cam[:, :3, 3], T_world_cam_true[:, :3, 3]
    s, R, t = umeyama(centres, centres_true)
    moved = T_world_cam.copy()
    moved[:, :3, 3] *= s  # the rest of the alignment leaves motions as they are
    turned, shifted = motion_errors(moved, T_world_cam_true)
    return PoseErrors(
        ate=_rms(np.linalg.norm(s * centres @ R.T + t - centres_true, axis=1)),
        rpe_translation=_rms(shifted),
        rpe_rotation=_rms(turned),
    )


def can_align(T_world_cam_true: Array) -> bool:
    """Whether a Sim(3) alignment to true poses [N, 4, 4] tells predictions apart: of 3, and of a camera that moves."""
    centres = T_world_cam_true[:, :3, 3]
    spread = _rms(np.linalg.norm(centres - centres.mean(axis=0), axis=1))
    return len(centres) >= 3 and spread >= STANDS_STILL


def motion_errors(T_world_cam: Array, T_world_cam_true: Array, scale_true: float = 1.0) -> tuple[Array, Array]:
    """Rotation error, degrees, and distance, model units, of each frame as seen from the one before: [N - 1] both.

    Camera-to-world poses [N, 4, 4]; true translations are divided by scale_true, nothing is fitted. Raises ValueError
    if the shapes differ, N is below 2, a pose is not finite or scale_true not above 0.
    """
    _check_trajectories(T_world_cam, T_world_cam_true, scale_true)
    motions, motions_true = _motions(T_world_cam), _motions(T_world_cam_true)
    motions_true[:, :3, 3] /= scale_true
    error = np.linalg.inv(motions_true) @ motions  # [N - 1, 4, 4]
    return _degrees(error), np.linalg.norm(error[:, :3, 3], axis=1)


def first_frame_errors(T_world_cam: Array, T_world_cam_true: Array, scale_true: float) -> tuple[Array, Array]:
    """Rotation error [N], degrees, and distance of the camera centres [N], model units; nothing is fitted.

    Camera-to-world poses [N, 4, 4], each trajectory seen from its own first camera; scale_true, the `scene_scale` of
    the first true depth, divides the true translations. Raises ValueError if the shapes differ, N is below 2, a pose is
    not finite or scale_true not above 0.
    """
    _check_trajectories(T_world_cam, T_world_cam_true, scale_true)
    T_first_cam = inverse(T_world_cam[0]) @ T_world_cam
    T_first_cam_true = inverse(T_world_cam_true[0]) @ T_world_cam_true
    T_first_cam_true[:, :3, 3] /= scale_true
    distance = np.linalg.norm(T_first_cam[:, :3, 3] - T_first_cam_true[:, :3, 3], axis=1)
    return _degrees(np.linalg.inv(T_first_cam_true) @ T_first_cam), distance


def _valid_pixels(predicted: NDArray, truth: NDArray) -> tuple[Array, Array]:
    p, g = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if p.shape != g.shape or p.ndim != 1 or not p.size:
        raise ValueError(
            f"predicted and true depth must be one number per valid pixel and at least one, got {p.shape} and {g.shape}"
        )
    for name, depth in (("predicted", p), ("true", g)):
        if bad := np.count_nonzero(~np.isfinite(depth)):
            raise ValueError(f"{name} depth must be finite, but {bad} of {len(p)} pixels are not")
    return p, g


def _check_trajectories(poses: Array, poses_true: Array, scale_true: float = 1.0) -> None:
    if poses.shape != poses_true.shape or poses.shape[1:] != (4, 4) or len(poses) < 2:
        raise ValueError(
            f"predicted and true poses must be [N, 4, 4] with N of at least 2, got {poses.shape} and {poses_true.shape}"
        )
    for name, T in (("predicted", poses), ("true", poses_true)):
        if bad := np.flatnonzero(~np.isfinite(T).all(axis=(1, 2))).tolist():
            raise ValueError(f"{name} poses must be finite, but {len(bad)} of {len(T)} are not, the first is {bad[0]}")
    if not 0 < scale_true < np.inf:
        raise ValueError(f"the true scale must be above 0 metres per model unit, got {scale_true}")


def _motions(T_world_cam: Array) -> Array:
    """Poses [N, 4, 4] -> each frame's pose in the camera before it [N - 1, 4, 4]."""
    return np.linalg.inv(T_world_cam[:-1]) @ T_world_cam[1:]


def _degrees(T: Array) -> Array:
    """Angles of rotation [N] of transforms [N, 4, 4]."""
    return np.rad2deg(Rotation.from_matrix(T[:, :3, :3]).magnitude())


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))


@dataclass(frozen=True)
class TrackErrors:
    """TAP-Vid's measures (arXiv 2211.03726), the first frame left out; not a number where nothing is visible."""

    error: float  # mean distance in pixels of points that are visible
    delta_average: float  # mean share of them within 1, 2, 4, 8 and 16 pixels of an image of 256x256
    occlusion_accuracy: float  # share of points of which it is said rightly whether they are visible


def track_errors(
    pixels: NDArray, visible: NDArray[np.bool_], true_pixels: NDArray, seen: NDArray[np.bool_], size: tuple[int, int]
) -> TrackErrors:
    """Of N points in S frames: pixels [S, N, 2] and whether they are visible [S, N]; size of the image (h, w)."""
    off = (pixels - true_pixels)[1:]
    far = np.linalg.norm(off * [TRACK_SIDE / size[1], TRACK_SIDE / size[0]], axis=-1)[seen[1:]]
    shares = [(far < limit).mean() if far.size else np.nan for limit in TRACK_LIMITS]
    error = np.linalg.norm(off, axis=-1)[seen[1:]].mean() if far.size else np.nan
    return TrackErrors(float(error), float(np.mean(shares)), float((visible == seen)[1:].mean()))
