# SPDX-License-Identifier: Apache-2.0
"""Metres for a stream whose unit is the model's: where their number comes from, and frames that are given in them."""

from xsvggt_ros.config import ScaleConfig
from xsvggt_ros.placement.scale.depth import ReferenceDepth
from xsvggt_ros.placement.scale.ground import CameraHeight
from xsvggt_ros.placement.scale.motion import ReferenceMotion
from xsvggt_ros.placement.scale.ratio import Fixed, RunningRatio, ScaleSource
from xsvggt_ros.placement.scale.track import MetricTrack

__all__ = [
    "CameraHeight",
    "Fixed",
    "MetricTrack",
    "ReferenceDepth",
    "ReferenceMotion",
    "RunningRatio",
    "ScaleSource",
    "make_scale",
]

SOURCES: dict[str, type[Fixed | CameraHeight | ReferenceMotion | ReferenceDepth]] = {
    "none": Fixed,
    "fixed": Fixed,
    "camera_height": CameraHeight,
    "odometry": ReferenceMotion,
    "tf": ReferenceMotion,
    "depth": ReferenceDepth,
}


def make_scale(config: ScaleConfig) -> ScaleSource:
    """The source that the settings name, without measurements yet."""
    return SOURCES[config.source]()
