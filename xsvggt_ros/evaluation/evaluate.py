# SPDX-License-Identifier: Apache-2.0
"""Errors of a stream on a sequence: aligned as the field does, or in the first frame's scale and pose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from xsvggt_ros.evaluation.metrics import (
    STANDS_STILL,
    DepthErrors,
    PoseErrors,
    Undefined,
    align_depth,
    depth_errors,
    first_frame_errors,
    mean_of_defined,
    motion_errors,
    pose_errors,
)
from xsvggt_ros.evaluation.points import PointErrors, align_points, point_errors
from xsvggt_ros.evaluation.trace import Clouds, Trace
from xsvggt_ros.geometry import Array
from xsvggt_ros.memory import MIB

UNALIGNED = "none"  # of metrics.ALIGNMENTS


@dataclass(frozen=True)
class UnalignedPoseErrors:
    """Of one trajectory in the first frame's scale and pose; nothing is fitted. Model units and degrees."""

    rotation: float  # from the first camera, mean
    centre: float  # mean distance of the camera centres, as a share of the true mean distance from the first; or NaN
    ate: float  # root mean square distance of the camera centres
    rpe_translation: float  # from frame to frame, root mean square
    rpe_rotation: float  # from frame to frame, root mean square
    adjacent_rotation: float  # from frame to frame, mean
    adjacent_turn: float  # how far the camera truly turns from frame to frame, mean


@dataclass(frozen=True)
class SequenceErrors:
    """Of one sequence, or the mean of several; None where something needed is not known, NaN where it is undefined."""

    name: str
    depth: DepthErrors | None
    pose: PoseErrors | UnalignedPoseErrors | None
    points: PointErrors | None
    cache_mib: float  # after the last step
    step_ms: float  # median

    def columns(self) -> dict[str, Any]:
        """{name of an error: value, None if it is undefined}."""
        parts = [vars(part) for part in (self.depth, self.pose, self.points) if part is not None]
        errors = {k: None if np.isnan(v) else v for part in parts for k, v in part.items()}
        return errors | dict(cache_mib=self.cache_mib, step_ms=self.step_ms)


def sequence_errors(trace: Trace, clouds: Clouds | None, alignment: str) -> SequenceErrors:
    """All errors of a sequence, by one of metrics.ALIGNMENTS; points only with their clouds."""
    return SequenceErrors(
        name=trace.sequence.name,
        depth=depth_of(trace, alignment),
        pose=unaligned_pose_of(trace) if alignment == UNALIGNED else _aligned_pose_of(trace),
        points=_points_of(clouds) if clouds and sum(map(len, clouds.true)) else None,
        cache_mib=trace.cache_bytes / MIB,
        step_ms=float(np.median(trace.seconds)) * 1000,
    )


def depth_of(trace: Trace, alignment: str, first: int = 0) -> DepthErrors | None:
    """Of the frames from `first` on; unaligned ones are compared in model units."""
    unit = trace.scale_true if alignment == UNALIGNED else 1.0
    if unit is None or not sum(map(len, trace.depth_true[first:])):
        return None
    truth = np.concatenate(trace.depth_true[first:]) / unit
    try:
        predicted = align_depth(np.concatenate(trace.depth[first:]), truth, alignment)
    except Undefined:
        return DepthErrors.undefined(len(truth))
    if trace.sequence.clip_prediction:
        predicted = np.minimum(predicted, trace.sequence.max_depth / unit)
    return depth_errors(predicted, truth)


def unaligned_pose_of(trace: Trace, first: int = 1) -> UnalignedPoseErrors | None:
    """Of the frames from `first` on, seen from the first; and of the motions that lead to them."""
    T, T_true = trace.poses()
    scale = trace.scale_true
    if scale is None or len(T) <= first:
        return None
    still = np.broadcast_to(np.eye(4), T.shape)
    rotation, distance = (error[first:] for error in first_frame_errors(T, T_true, scale))
    travelled = first_frame_errors(still, T_true, scale)[1][first:].mean()
    turned, moved = (error[first - 1 :] for error in motion_errors(T, T_true, scale))
    turn = motion_errors(still, T_true, scale)[0][first - 1 :]
    return UnalignedPoseErrors(
        rotation=float(rotation.mean()),
        centre=float(distance.mean() / travelled) if travelled * scale > STANDS_STILL else np.nan,
        ate=_rms(distance),
        rpe_translation=_rms(moved),
        rpe_rotation=_rms(turned),
        adjacent_rotation=float(turned.mean()),
        adjacent_turn=float(turn.mean()),
    )


def _aligned_pose_of(trace: Trace) -> PoseErrors | None:
    T, T_true = trace.poses()
    return pose_errors(T, T_true) if len(T) > 1 else None


def _points_of(clouds: Clouds) -> PointErrors:
    predicted, true = np.concatenate(clouds.predicted), np.concatenate(clouds.true)
    try:
        return point_errors(align_points(predicted, true), true)
    except Undefined:
        return PointErrors.undefined()


def standing_still(trace: Trace) -> Trace:
    """What saying nothing new scores: every pose is the first one, and depth is one number.

    The number is the mean logarithm of the first true depth: what a model that is trained on the logarithm of depth
    in units of the scene says if it sees nothing. Raises ValueError if the scale of the first frame is not known.
    """
    if trace.scale_true is None:
        raise ValueError(f"{trace.sequence.name}: the first frame has no depth or no intrinsics, so no scale")
    constant = np.exp(np.log(trace.depth_true[0] / trace.scale_true).mean())
    depth = [np.full_like(d, constant) for d in trace.depth]
    still = [np.eye(4)] * len(depth)
    return replace(trace, depth=depth, T_first_cam=still, seconds=[0.0], cache_bytes=0)


def mean_errors(errors: Sequence[SequenceErrors], name: str = "mean") -> SequenceErrors:
    """Of the sequences that have them, defined: depth weighted by valid pixels, all else the plain mean."""
    depth = [e.depth for e in errors if e.depth]
    return SequenceErrors(
        name=name,
        depth=DepthErrors.mean(depth) if depth else None,
        pose=_plain_mean([e.pose for e in errors if e.pose]),
        points=_plain_mean([e.points for e in errors if e.points]),
        cache_mib=float(np.mean([e.cache_mib for e in errors])),
        step_ms=float(np.mean([e.step_ms for e in errors])),
    )


Errors = TypeVar("Errors", PoseErrors, UnalignedPoseErrors, PointErrors, PoseErrors | UnalignedPoseErrors)


def _plain_mean(errors: Sequence[Errors]) -> Errors | None:
    if not errors:
        return None
    return type(errors[0])(*mean_of_defined([astuple(e) for e in errors]))


def _rms(x: Array) -> float:
    return float(np.sqrt(np.mean(x**2)))
