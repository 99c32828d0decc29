# SPDX-License-Identifier: Apache-2.0
"""What went to the node and what came back, and whether that is as it should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.config import NodeConfig, values
from xsvggt_ros.geometry import inverse, ros_pose, unproject
from xsvggt_ros.ros.conversions import InputCounts
from xsvggt_ros.sequences import InputImage
from xsvggt_ros.stream import Status
from xsvggt_ros.world import WorldFrame

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
    status: Status


@dataclass(frozen=True)
class Played:
    """What came of sending images to the node."""

    sent_rate: float  # images per second, as achieved
    answers: list[Answer]  # in the order of the images
    incomplete: list[str]  # images whose outputs did not all come, and what is missing
    strays: list[str]  # outputs whose stamp is no image's
    counts: InputCounts  # what the node says of the images
    change_after: int  # images sent when the change was asked for
    refusal: str  # why the node refused it; empty: it did not


@dataclass(frozen=True)
class Recording:
    """One run of the demo."""

    source: str  # the images, in words
    images: list[InputImage]
    truth: list[WorldFrame]  # one per image, or none
    start: NodeConfig  # settings before the change
    later: NodeConfig  # and after it
    played: Played
    exit_code: int  # of the node, after SIGINT

    @property
    def answers(self) -> list[Answer]:
        return self.played.answers

    @property
    def change(self) -> int | None:
        """Index of the first answer that shows the changed settings; None if there is none."""
        return next((i for i, answer in enumerate(self.answers) if _runs(answer.status, self.later)), None)

    def true_path(self) -> NDArray[np.float64]:
        """True camera positions [N, 3] of all images, metres, in the axes of the node's world; N = 0: unknown."""
        if not (self.truth and self.answers):
            return np.zeros((0, 3))
        T_first_world = inverse(self.truth[self.answers[0].image].T_world_cam)
        return np.array([ros_pose(T_first_world @ truth.T_world_cam)[:3, 3] for truth in self.truth])


@dataclass(frozen=True)
class Check:
    """Something that must hold of a recording."""

    claim: str
    problem: str  # empty: it holds


def check(recording: Recording) -> list[Check]:
    """Whether the node did what it promises: a check per claim, each with the first problem found."""
    return [Check(claim, problem(recording)) for claim, problem in _CLAIMS.items()]


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
            {"image": a.image, "latency": a.latency, "T_world_cam": a.T_tf.tolist(), "status": asdict(a.status)}
            for a in r.answers
        ],
    }


def _runs(status: Status, config: NodeConfig) -> bool:
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
        expected = unproject(a.depth, a.intrinsics)[::stride, ::stride]
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
