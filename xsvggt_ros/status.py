# SPDX-License-Identifier: Apache-2.0
"""What there is to say after an image: one snapshot, of which ~/status and /diagnostics are functions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

NOT_ALWAYS = "tracks", "refine", "segments"  # stages of a step
NO_CAMERA_INFO = "no camera_info has come: the intrinsics are the model's guess"


@dataclass(frozen=True)
class SegmentStatus:
    """Of a stream of segments; zeros where it is none."""

    segment: int = 0  # segments before the present one
    located: bool = True  # whether the map says where the camera is; else its place is a new one, so far
    keyframes: int = 0
    keyframe_bytes: int = 0  # of all that there is room for
    closures: int = 0  # segments that began at a keyframe seen before
    closures_refused: int = 0  # keyframes that turned out to be of another place
    join_rotation_spread: float = 0.0  # radians, by which shared frames are off the newest join at most
    join_scale_spread: float = 0.0  # of the logarithm of the scale
    join_uncertain: bool = False  # whether they did not agree

    @property
    def held(self) -> SegmentStatus:
        """What is left of it where segments have been switched off, until a new world starts."""
        return SegmentStatus(located=self.located, keyframes=self.keyframes, keyframe_bytes=self.keyframe_bytes)


@dataclass(frozen=True)
class StepStatus:
    """What a step of the stream cost and what the cache holds after it. See msg/StreamStatus.msg."""

    frame: int = 0
    event: str = ""
    policy: str = ""
    tokens: int = 0
    budget_tokens: int = 0
    ceiling_tokens: int = 0
    budget_reason: str = ""
    floor_tokens: int = 0
    budget_raised: bool = False
    evicted_tokens: int = 0
    taken_in: bool = True
    frames_taken_in: int = 0
    reencoded_tokens: int = 0
    quantizer: str = ""
    key_bits: int = 16
    value_bits: int = 16
    cache_bytes: int = 0
    scratch_bytes: int = 0
    track_bytes: int = 0
    camera_frames: int = 0
    dense: bool = True  # whether depth and confidence were computed
    refined_points: int = 0  # matches that put pose, or pose and depth, right (refine); 0: both are by the network
    seconds: dict[str, float] = field(
        default_factory=dict
    )  # by stage, and "step" for all of it; of a chunk's, the frame's share
    segments: SegmentStatus = SegmentStatus()


@dataclass(frozen=True)
class ScaleStatus:
    """How many metres the model's unit is, and how sure that is."""

    scale_source: str = "none"
    scale: float = 1.0  # metres per unit; NaN while unknown
    scale_spread: float = math.nan  # robust standard deviation of the measurements' logarithms; NaN: unknown
    scale_measurements: int = 0  # since the world began; the newest `scale.window` of them count


@dataclass(frozen=True)
class ImageCounts:
    """What became of the input images."""

    frames_received: int = 0
    frames_replaced: int = 0
    frames_refused: int = 0
    frames_late: int = 0
    frames_lost: int = 0
    frames_rejected: int = 0
    frames_unplaced: int = 0
    frames_failed: int = 0
    frames_abandoned: int = 0
    frames_waiting: int = 0
    resets: int = 0

    def not_used(self) -> dict[str, int]:
        """{cause: number} of images that came, where there are any."""
        counts = {name.removeprefix("frames_"): n for name, n in asdict(self).items() if name.startswith("frames_")}
        return {cause: n for cause, n in counts.items() if n and cause != "received"}


@dataclass(frozen=True)
class Performance:
    """How a node keeps up; zeros in a replay, which is in no hurry."""

    input_rate: float = 0.0
    step_median_seconds: float = 0.0
    step_worst_seconds: float = 0.0
    age_seconds: float = 0.0
    shed_level: int = 0


@dataclass(frozen=True)
class Status:
    """All of it at one moment."""

    step: StepStatus = StepStatus()  # of the newest frame
    scale: ScaleStatus = ScaleStatus()
    images: ImageCounts = ImageCounts()
    performance: Performance = Performance()
    missing: str = ""  # why the newest frame could not be placed; empty: it could
    shortage: str = ""  # why the cache is smaller than configured, since memory ran out; empty: it is not
    silent: bool = False  # whether images have stopped coming
    calibration: str = ""  # why the newest image's intrinsics are the model's guess; empty: camera_info gives them
    unused: dict[str, str] = field(default_factory=dict)  # why the newest of each of ImageCounts' causes was not used

    def figures(self) -> dict[str, Any]:
        """{name: value} of everything that is counted or measured: the fields of msg/StreamStatus.msg."""
        step = dict(vars(self.step))  # asdict would copy every value
        seconds = dict.fromkeys(NOT_ALWAYS, 0.0) | step.pop("seconds")
        seconds = {f"{stage}_seconds": float(value) for stage, value in seconds.items()}
        step |= vars(step.pop("segments")) | seconds | {"calibration": self.calibration}
        step["located"] &= self.step.segments != SegmentStatus()  # no map says it
        return step | vars(self.scale) | vars(self.images) | vars(self.performance)
