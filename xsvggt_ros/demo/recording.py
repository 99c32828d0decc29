# SPDX-License-Identifier: Apache-2.0
"""What went to the node and what came back, and whether that is as it should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.demo.errors import Errors, errors, trivial_errors, unit
from xsvggt_ros.evaluation.metrics import PoseErrors, pose_errors
from xsvggt_ros.frame import Frame, InputImage
from xsvggt_ros.geometry import Array, inverse, ros_pose, unproject
from xsvggt_ros.model.loading import RANDOM
from xsvggt_ros.rooms import RoomFrame
from xsvggt_ros.settings import values
from xsvggt_ros.status import ImageCounts, StepStatus

TOLERANCE = 1e-4  # relative; poses and points go through float32


@dataclass(frozen=True)
class Answer:
    """The node's outputs for one image; poses are those of the optical camera in the REP 103 world."""

    image: int  # which of the images that were sent, from 0
    latency: float  # seconds from sending the image to the arrival of the last output
    T_tf: NDArray[np.float64]  # [4, 4]
    T_odometry: NDArray[np.float64]  # [4, 4]
    intrinsics: NDArray[np.float64]  # [3, 3], of the depth image
    depth: NDArray[np.float32]  # [h, w], NaN where the confidence is too low
    confidence: NDArray[np.float32]  # [h, w]
    points: NDArray[np.float32]  # [h / stride, w / stride, 3], optical camera frame
    status: StepStatus
    tracks: NDArray[np.void]  # [N] of messages.encode.TRACK: where the points are that the node follows


@dataclass(frozen=True)
class Played:
    """What came of sending images to the node."""

    sent_rate: float  # images per second, as achieved
    answers: list[Answer]  # in the order of the images
    incomplete: list[str]  # images whose outputs did not all come, and what is missing
    strays: list[str]  # outputs whose stamp is no image's
    counts: ImageCounts  # what the node says of the images
    change_after: int  # images sent when the change was asked for
    refusal: str  # why the node refused it; empty: it did not


@dataclass(frozen=True)
class Comparison:
    """The answers against the truth, and two others against it: what the numbers are to be read beside."""

    node: Errors
    unchanged: Errors  # of the same stream on the same images without the change
    trivial: Errors  # of standing still and of constant depth
    aligned: PoseErrors  # of the node's poses after Sim(3) alignment, metres


@dataclass(frozen=True)
class Recording:
    """One run of the demo."""

    source: str  # the images, in words
    images: list[InputImage]
    truth: list[RoomFrame]  # one per image, or none
    start: NodeConfig  # settings before the change
    later: NodeConfig  # and after it
    played: Played
    unchanged: list[Frame]  # what the stream says of the answered images without the change; none without truth
    exit_code: int  # of the node, after SIGINT

    @property
    def answers(self) -> list[Answer]:
        return self.played.answers

    @property
    def change(self) -> int | None:
        """Index of the first answer that shows the changed settings; None if there is none."""
        return next((i for i, answer in enumerate(self.answers) if _runs(answer.status, self.later)), None)

    @property
    def true_answers(self) -> list[RoomFrame]:
        """The truth about each answered image; none if it is not known."""
        return [self.truth[answer.image] for answer in self.answers] if self.truth else []

    @cached_property
    def unit(self) -> float:
        """Metres in a unit of the model, where the truth tells; else 1."""
        return unit(self.true_answers) if self.true_answers else 1.0

    @cached_property
    def comparison(self) -> Comparison | None:
        """None without truth, or below two answers."""
        truth = self.true_answers
        if len(truth) < 2:
            return None
        T_odom_cam = np.array([a.T_tf for a in self.answers])
        unchanged = np.array([frame.T_first_cam for frame in self.unchanged])
        return Comparison(
            node=errors(T_odom_cam, [a.depth for a in self.answers], truth),
            unchanged=errors(unchanged, [frame.depth for frame in self.unchanged], truth),
            trivial=trivial_errors(truth),
            aligned=pose_errors(T_odom_cam, np.array([t.T_room_cam for t in truth])),
        )

    def poses(self) -> Array:
        """Of the camera [N, 4, 4] at each answer, metres where the truth tells them, in the node's world."""
        poses = np.array([answer.T_tf for answer in self.answers])
        poses[:, :3, 3] *= self.unit
        return poses

    def true_poses(self) -> Array:
        """True poses [N, 4, 4] of the camera at each answer, metres, in the node's world; N = 0: unknown."""
        truth = self.true_answers
        poses = [ros_pose(inverse(truth[0].T_room_cam) @ t.T_room_cam) for t in truth]
        return np.array(poses).reshape(-1, 4, 4)


@dataclass(frozen=True)
class Check:
    """Something that must hold of a recording."""

    claim: str
    problem: str  # empty: it holds


def check(recording: Recording) -> list[Check]:
    """Whether the node did what it promises: a check per claim, each with the first problem found."""
    checks = [Check(claim, problem(recording)) for claim, problem in _CLAIMS.items()]
    if recording.comparison and recording.start.stream.weights != RANDOM:
        checks += [Check(claim, problem(recording.comparison)) for claim, problem in _CLAIMS_OF_TRUTH.items()]
    return checks


def as_json(recording: Recording, checks: list[Check]) -> dict[str, Any]:
    """The recording in plain values, without the pictures."""
    r = recording
    before, after = values(r.start), values(r.later)
    return {
        "source": r.source,
        "sent": len(r.images),
        "sent_rate": r.played.sent_rate,
        "counts": asdict(r.played.counts),
        "settings": before,
        "changes": {name: value for name, value in after.items() if value != before[name]},
        "change_after": r.played.change_after,
        "change": r.change,
        "checks": [asdict(c) for c in checks],
        "answers": [
            {"image": a.image, "latency": a.latency, "T_odom_cam": a.T_tf.tolist(), "status": asdict(a.status)}
            for a in r.answers
        ],
        "comparison": _comparison_as_json(r.comparison) if r.comparison else None,
    }


def _comparison_as_json(comparison: Comparison) -> dict[str, Any]:
    """Errors by frame: metres, degrees."""
    frames = {name: getattr(comparison, name) for name in ("node", "unchanged", "trivial")}
    aligned = {name: None if np.isnan(error) else error for name, error in asdict(comparison.aligned).items()}
    return {"aligned": aligned} | {
        name: {
            "depth": [asdict(d) for d in e.depth],
            "rotation": e.rotation.tolist(),
            "centre": e.centre.tolist(),
            "mean": e.mean(),
        }
        for name, e in frames.items()
    }


def _runs(status: StepStatus, config: NodeConfig) -> bool:
    return _cache_settings(status) == _cache_settings(config.stream.cache)


def _cache_settings(source: Any) -> tuple[int, int, int]:
    return source.budget_tokens, source.key_bits, source.value_bits


def _first(recording: Recording, problem: Callable[[Answer], str]) -> str:
    """The first problem that an answer has."""
    found = ((a.status.frame, problem(a)) for a in recording.answers)
    return next((f"frame {frame}: {text}" for frame, text in found if text), "")


def _answered(r: Recording) -> str:
    if not r.answers:
        return "no image was answered"
    return f"{r.played.counts.frames_rejected} images were rejected" if r.played.counts.frames_rejected else ""


def _complete(r: Recording) -> str:
    return "; ".join((r.played.incomplete + r.played.strays)[:3])


def _one_world(r: Recording) -> str:
    frames = [a.status.frame for a in r.answers]
    expected = list(range(len(frames)))
    broken = next((i for i, (frame, count) in enumerate(zip(frames, expected, strict=True)) if frame != count), None)
    return "" if broken is None else f"answer {broken} says frame {frames[broken]}"


def _points_agree(r: Recording) -> str:
    def problem(a: Answer) -> str:
        stride = r.start.output.point_stride
        expected = unproject(a.depth, a.intrinsics, stride)
        if a.points.shape != expected.shape or (np.isnan(a.points) != np.isnan(expected)).any():
            return "they are not of the same pixels"
        agree = np.allclose(a.points, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        return "" if agree else f"off by up to {np.nanmax(np.abs(a.points - expected)):.3g}"

    return _first(r, problem)


def _poses_agree(r: Recording) -> str:
    return _first(r, lambda a: "" if np.allclose(a.T_tf, a.T_odometry, atol=TOLERANCE) else "they differ")


def _change_shows(r: Recording) -> str:
    if r.change is None:
        return r.played.refusal or "status never shows them"

    def problem(a: Answer) -> str:
        expected = r.start if a.status.frame < r.answers[r.change or 0].status.frame else r.later
        return "" if _runs(a.status, expected) else f"budget and bits are {_cache_settings(a.status)}"

    return _first(r, problem)


def _within_budget(r: Recording) -> str:
    def problem(a: Answer) -> str:
        s = a.status
        return "" if s.tokens <= s.budget_tokens else f"{s.tokens} tokens, the budget is {s.budget_tokens}"

    return _first(r, problem)


def _memory_falls(r: Recording) -> str:
    if r.change in (None, 0):
        return "there is no frame before and after the change"
    before, after = (r.answers[i].status.cache_bytes for i in (r.change - 1, r.change))
    return "" if after < before else f"{before} bytes before, {after} after"


def _stops(r: Recording) -> str:
    return f"exit code {r.exit_code}" if r.exit_code else ""


def _better_than_still(c: Comparison) -> str:
    node, still = c.node.mean(), c.trivial.mean()
    worse = [name for name in ("centre", "rotation") if not node[name] < still[name]]
    return "; ".join(f"{name} is {node[name]:.3g} off, without moving {still[name]:.3g}" for name in worse)


def _better_than_constant(c: Comparison) -> str:
    node, constant = c.node.mean()["abs_rel"], c.trivial.mean()["abs_rel"]
    return "" if node < constant else f"AbsRel is {node:.3f}, of a constant {constant:.3f}"


_CLAIMS: dict[str, Callable[[Recording], str]] = {
    "The node answers, and rejects no image": _answered,
    "Every output comes for every answered image, with that image's stamp": _complete,
    "One stream from the first image to the last, one frame more with each answer": _one_world,
    "Published depth and camera_info give the published points": _points_agree,
    "TF and odometry hold the same pose": _poses_agree,
    "Budget and bits change together, between two frames, and stay changed": _change_shows,
    "Cached tokens never exceed the budget": _within_budget,
    "The cache takes less memory after the change": _memory_falls,
    "SIGINT ends the node with exit code 0": _stops,
}

_CLAIMS_OF_TRUTH: dict[str, Callable[[Comparison], str]] = {
    "The path is closer to the true one than standing still": _better_than_still,
    "The depth is closer to the true one than a constant": _better_than_constant,
}
