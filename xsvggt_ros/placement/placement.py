# SPDX-License-Identifier: Apache-2.0
"""Where a frame is: in metres if their number is known, and as pose of the robot if its camera mounting is."""

from __future__ import annotations

import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import R_WORLD_OPTICAL, Array, inverse, rigid
from xsvggt_ros.placement.scale import CameraHeight, MetricTrack, ReferenceDepth, ReferenceMotion, make_scale
from xsvggt_ros.placement.scale.depth import DepthSamples
from xsvggt_ros.placement.tf_buffer import TransformBuffer
from xsvggt_ros.status import ScaleStatus
from xsvggt_ros.upsampling import upsampled

WAITING = {"odometry": 10_000, "tf": 10_000, "depth": 300}  # reference messages kept until the next frame, at most
PATIENCE_NS = 2_000_000_000  # how long a frame waits for TF's reference motion at its stamp


class NotPlaced(LookupError):
    """What is missing to say where the frame is."""


@dataclass(frozen=True)
class Placed:
    """A frame and where it is. World: x forward, y left, z up (REP 103); at the start the child lies in its origin.

    odom is that world too, unless worlds continue one another there (`continue_odom`); map always is.
    """

    stamp_ns: int  # of its image
    camera: str  # frame_id of its image
    frame: Frame  # depth, points and T_first_cam's position in metres, or in the model's unit if scale says none
    T_odom_cam: Array  # [4, 4], ROS world <- camera's optical frame
    T_odom_child: Array  # [4, 4], ROS world <- child
    child: str  # base_frame, or the camera's frame where that is not set
    scale: ScaleStatus
    starts: bool = False  # whether it is the first of its world to be placed
    T_map_odom: Array | None = None  # [4, 4], what of the way is corrected; None: no map says where the camera is
    T_map_first: Array = field(default_factory=lambda: np.eye(4))  # [4, 4], ROS world <- the stream's first camera
    image: NDArray[np.uint8] | None = None  # [H, W, 3], rectified, the camera's, where outputs have its resolution

    @cached_property
    def output(self) -> Frame:
        """The frame at the resolution of the outputs; who asks first has it computed."""
        return self.frame if self.image is None else upsampled(self.frame, self.image)

    @property
    def view(self) -> tuple[NDArray[np.uint8], Array]:
        """The image of `output` and its intrinsics, which cost nothing."""
        if self.image is None or self.frame.resize is None:
            return self.frame.image, self.frame.intrinsics
        return self.image, self.frame.resize.image_intrinsics(self.frame.intrinsics)


class Placement:
    """Places the frames of one stream, in order. `receive` may be called from another thread than `place`."""

    def __init__(self, config: NodeConfig) -> None:
        self.transforms = TransformBuffer()
        self.scale = ScaleStatus(config.scale.source, math.nan)  # as of the newest frame
        self._newest_ns = -math.inf  # stamp of that frame
        self._measured = make_scale(config.scale)
        # Poses of the robot, or depth images, whichever measure the scale.
        self._references: deque[tuple[int, Any]] = deque(maxlen=WAITING.get(config.scale.source))
        self._T_odom_child: Array | None = None  # of the newest frame that was placed
        self._start()

    def _start(self) -> None:
        self._track = MetricTrack()
        self._T_map_first: Array | None = None  # ROS world <- first camera's optical frame, once a frame is placed
        self._T_odom_map = np.eye(4)  # before the map is corrected
        self._unmatched: deque[int] = deque()  # stamps at which TF's reference motion is still to come

    def receive_transforms(self, transforms: Any, static: bool) -> None:
        """Takes the `transforms` of a TFMessage."""
        self.transforms.add(transforms, static)

    def receive_pose(self, stamp_ns: int, T_reference_base: Array) -> None:
        """Takes where the robot's own odometry says that it is, [4, 4], metres."""
        self._references.append((stamp_ns, T_reference_base))

    def receive_depth(self, stamp_ns: int, depth: NDArray[np.float32]) -> None:
        """Takes what a depth camera measures, [H, W], metres."""
        self._references.append((stamp_ns, DepthSamples.of(depth)))

    @property
    def goes_by_depth(self) -> bool:
        """Whether the frames' depth says what the metres are."""
        return isinstance(self._measured, (CameraHeight, ReferenceDepth))

    def motion(self, a: int, b: int) -> Array | None:
        """T_a_b [4, 4] of the camera at two frames of these indices, in the stream's unit, as odometry or TF have it.

        None where neither measures the scale, or does not know both.
        """
        if not isinstance(self._measured, ReferenceMotion) or math.isnan(self.scale.scale):
            return None
        T_a_b = self._measured.motion(a, b)
        return None if T_a_b is None else in_metres(T_a_b, 1 / self.scale.scale)

    def place(self, frame: Frame, stamp_ns: int, camera: str, config: NodeConfig) -> Placed:
        """Places a frame of the camera with that frame_id.

        With a stamp before the last time has restarted: the transforms that have a time are forgotten.
        Raises NotPlaced, with the reason and the remedy, while its mounting or the scale is unknown.
        """
        if stamp_ns < self._newest_ns:
            self.transforms.clear()
        self._newest_ns = stamp_ns
        if frame.index == 0:
            self._start()
            self._measured.reset()
        if frame.segment:  # whatever else may be missing
            self._take_unit(frame.segment.rescaled)
        if camera == config.world_frame:
            raise NotPlaced(f"the image's frame_id is world_frame, {camera}; give world_frame another name")
        T_base_cam = self._mounting(config.base_frame, camera, stamp_ns) if config.base_frame else None
        self.scale = self._measure(frame, stamp_ns, camera, T_base_cam, config)
        if math.isnan(self.scale.scale):
            raise NotPlaced(_unknown_scale(config, self.scale))
        metric = self._track.metric(frame, self.scale.scale)
        starts = self._T_map_first is None
        if self._T_map_first is None:
            self._T_map_first = self._begin(T_base_cam, config.continue_odom)
        T_map_first = self._T_map_first
        T_odom_cam = self._T_odom_map @ T_map_first @ metric.T_first_cam
        T_map_odom = inverse(self._T_odom_map) if config.continue_odom else None
        if frame.segment:
            T_map_cam = in_metres(frame.segment.T_map_cam, self.scale.scale)
            T_map_odom = T_map_first @ T_map_cam @ inverse(T_odom_cam) if frame.segment.located else None
        child, T_odom_child = camera, T_odom_cam
        if T_base_cam is not None:
            child, T_odom_child = config.base_frame, T_odom_cam @ inverse(T_base_cam)
        self._T_odom_child = T_odom_child
        return Placed(
            stamp_ns, camera, metric, T_odom_cam, T_odom_child, child, self.scale, starts, T_map_odom, T_map_first
        )

    def _begin(self, T_base_cam: Array | None, continues: bool) -> Array:
        """T_map_first [4, 4] of a world; continues: whether its child is in odom where the last world's was."""
        level = rigid(R_WORLD_OPTICAL, np.zeros(3))
        if continues and self._T_odom_child is not None:
            self._T_odom_map = self._T_odom_child @ (inverse(level) if T_base_cam is None else np.eye(4))
        return level if T_base_cam is None else T_base_cam

    def _take_unit(self, rescaled: float) -> None:
        if math.isnan(rescaled):
            self._measured.reset()
        elif rescaled != 1:
            self._measured.rescale(rescaled)

    def _mounting(self, base: str, camera: str, stamp_ns: int) -> Array:
        try:
            return self.transforms.lookup(base, camera, stamp_ns)
        except LookupError as error:
            raise NotPlaced(
                f"the camera's mounting on {base} is not known: {error.args[0]}. Add it to TF (ros2 run tf2_ros "
                "static_transform_publisher; in a bag /tf_static) or leave base_frame empty"
            ) from error

    def _measure(
        self, frame: Frame, stamp_ns: int, camera: str, T_base_cam: Array | None, config: NodeConfig
    ) -> ScaleStatus:
        if config.scale.source == "tf":
            self._match_motion(stamp_ns, config)
            with suppress(LookupError):  # else the camera is taken to move as base_frame does, or as its robot
                T_base_cam = self.transforms.lookup(config.scale.child_frame, camera, stamp_ns)
        while self._references:
            stamp, value = self._references.popleft()
            if isinstance(self._measured, ReferenceMotion):
                self._measured.add_pose(stamp, value)
            elif isinstance(self._measured, ReferenceDepth):
                self._measured.add_depth(stamp, value)
        return self._measured.update(frame, stamp_ns, T_base_cam, config.scale)

    def _match_motion(self, now_ns: int, config: NodeConfig) -> None:
        """Asks TF for the reference motion at the frames' stamps, once it is there."""
        self._unmatched.append(now_ns)
        parent, child = config.scale.parent_frame, config.scale.child_frame
        for _ in range(len(self._unmatched)):
            stamp = self._unmatched.popleft()
            try:
                self._references.append((stamp, self.transforms.lookup(parent, child, stamp, tolerance_s=0.0)))
            except LookupError:
                if now_ns - stamp < PATIENCE_NS:
                    self._unmatched.append(stamp)


def in_metres(T: Array, scale: float) -> Array:
    """A pose [4, 4] in a unit of so many metres, in metres."""
    return rigid(T[:3, :3], scale * T[:3, 3])


def _unknown_scale(config: NodeConfig, status: ScaleStatus) -> str:
    waits = {
        "camera_height": "the ground must be in view",
        "odometry": f"reference/odometry must show a motion of more than {config.scale.min_motion} m",
        "tf": f"{config.scale.child_frame} must move by more than {config.scale.min_motion} m "
        f"in {config.scale.parent_frame}",
        "depth": "reference/depth must come with stamps within 50 ms of the images'",
    }
    return (
        f"the scale is not known yet ({status.scale_measurements} measurements): {waits[config.scale.source]}; "
        "scale.source none gives out the model's own unit instead"
    )
