# SPDX-License-Identifier: Apache-2.0
"""Between ROS messages and arrays: the one place that converts.

Serves the message classes of rclpy and those of a rosbags typestore alike, so that a node and a bag
hold the same messages; neither is imported here.
"""

from __future__ import annotations

import array
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import cv2
import numpy as np

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.geometry import inverse, quaternion_xyzw, rigid, rotation_matrix
from xsvggt_ros.placement.placement import Placed, Placement
from xsvggt_ros.placement.scale import ScaleStatus
from xsvggt_ros.placement.tf_buffer import LEAST_LENGTH
from xsvggt_ros.stream import Frame, Status

try:  # a ROS distribution has cv_bridge, unless it was built for another numpy
    from cv_bridge.boost.cv_bridge_boost import cvtColor2 as convert_color
except (ImportError, SystemError):
    from rosbags.image.image import convert_color

# Output topic -> message type. The node publishes these and a replay writes them.
TOPICS = {
    "/tf": "tf2_msgs/msg/TFMessage",
    "~/depth/image": "sensor_msgs/msg/Image",
    "~/depth/camera_info": "sensor_msgs/msg/CameraInfo",
    "~/confidence/image": "sensor_msgs/msg/Image",
    "~/points": "sensor_msgs/msg/PointCloud2",
    "~/odometry": "nav_msgs/msg/Odometry",
    "~/path": "nav_msgs/msg/Path",
    "~/status": "xsvggt_ros/msg/StreamStatus",
}

_BAYER = ("rggb", "bggr", "gbrg", "grbg")
# Accepted encoding -> its 8-bit form as cv_bridge and rosbags both name it, channels, sample type.
ENCODINGS = {
    "rgb8": ("rgb8", 3, "u1"),
    "bgr8": ("bgr8", 3, "u1"),
    "8UC3": ("bgr8", 3, "u1"),  # OpenCV's order, as RViz shows it
    "rgba8": ("rgba8", 4, "u1"),
    "bgra8": ("bgra8", 4, "u1"),
    "8UC4": ("bgra8", 4, "u1"),
    "mono8": ("mono8", 1, "u1"),
    "8UC1": ("mono8", 1, "u1"),
    "mono16": ("mono8", 1, "<u2"),
    "16UC1": ("mono8", 1, "<u2"),
    "yuv422": ("yuv422", 2, "u1"),
    "uyvy": ("yuv422", 2, "u1"),
    "yuv422_yuy2": ("yuv422_yuy2", 2, "u1"),
    "yuyv": ("yuv422_yuy2", 2, "u1"),
    **{f"bayer_{pattern}8": (f"bayer_{pattern}8", 1, "u1") for pattern in _BAYER},
    **{f"bayer_{pattern}16": (f"bayer_{pattern}8", 1, "<u2") for pattern in _BAYER},
}

DEPTH_ENCODINGS = {"32FC1": ("<f4", 1.0), "16UC1": ("<u2", 0.001)}  # sample type, metres per step (REP 118)
UNKNOWN_VARIANCE = 1e6  # what robot_localization and Nav2 take as no information
NOMINAL_DRIFT = 0.05  # of the distance
NOMINAL_NOISE = 0.01  # metres
NOMINAL_ROTATION = 0.05  # radians


def decode_image(msg: Any) -> np.ndarray:
    """RGB image of a sensor_msgs Image or CompressedImage, uint8 [H, W, 3].

    16-bit images are stretched from their darkest to their brightest sample, as RViz shows them:
    cameras fill 10 to 16 of the bits, and the message does not say how many.

    Raises ValueError with what is wrong and what would be right.
    """
    return _decode_compressed(msg) if hasattr(msg, "format") else _decode_raw(msg)


def _decode_raw(msg: Any) -> np.ndarray:
    if msg.encoding not in ENCODINGS:
        raise ValueError(f"image encoding {msg.encoding!r} is not supported; publish one of {', '.join(ENCODINGS)}")
    name, channels, dtype = ENCODINGS[msg.encoding]
    pixels = _samples(msg, channels, dtype)
    if "yuv" in name and msg.width % 2:
        raise ValueError(f"{msg.encoding} shares colour between two pixels; width must be even, got {msg.width}")
    if channels > 1:
        pixels = pixels.reshape(msg.height, msg.width, channels)
    if dtype != "u1":
        pixels = cv2.normalize(pixels, np.empty(pixels.shape, np.uint8), 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    return convert_color(pixels, name, "rgb8")


def _samples(msg: Any, channels: int, dtype: str) -> np.ndarray:
    """Copy of a raw image's samples [H, W * channels]. Raises ValueError if sizes, step or bytes do not fit."""
    row_bytes = msg.width * channels * np.dtype(dtype).itemsize
    _check_layout(msg, row_bytes)
    rows = np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.step)[:, :row_bytes]  # [H, bytes] without padding
    return rows.copy().view(dtype)


def _check_layout(msg: Any, row_bytes: int) -> None:
    if msg.width == 0 or msg.height == 0:
        raise ValueError(f"image is {msg.width} x {msg.height} pixels; both must be above 0")
    if msg.step < row_bytes:
        raise ValueError(f"image step is {msg.step} bytes; {msg.width} pixels of {msg.encoding} need {row_bytes}")
    if len(msg.data) != msg.step * msg.height:
        raise ValueError(
            f"image data has {len(msg.data)} bytes; step {msg.step} x height {msg.height} is {msg.step * msg.height}"
        )
    if msg.is_bigendian and any(
        bits in msg.encoding for bits in ("16", "32")
    ):  # byte order means nothing to 8-bit samples
        raise ValueError(f"big-endian {msg.encoding} is not supported; publish little-endian with is_bigendian 0")


def _decode_compressed(msg: Any) -> np.ndarray:
    encoded = np.frombuffer(msg.data, np.uint8) if len(msg.data) else np.zeros(1, np.uint8)
    head = encoded[:2].tobytes()
    if head == b"\xff\xd8" and b"\xff\xd9" not in encoded.tobytes():  # OpenCV 4 would fill the rest with grey
        raise ValueError(f"compressed image is cut off: {len(msg.data)} bytes without the end of a JPEG")
    if head == b"#?":  # Radiance HDR, of which OpenCV makes a temporary file
        raise ValueError("compressed image in Radiance HDR is not supported; publish JPEG or PNG")
    try:
        bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # absurd sizes in a corrupt header
        bgr = None
    if bgr is None:
        raise ValueError(
            f"compressed image ({msg.format!r}, {len(msg.data)} bytes) cannot be decoded; publish JPEG or PNG"
        )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def hand_over(placement: Placement, topic: str, msg: Any) -> None:
    """Gives the placement a message of one of its REFERENCES. Raises ValueError for one that cannot be used."""
    if topic in ("/tf", "/tf_static"):
        placement.receive_transforms(msg.transforms, static=topic == "/tf_static")
    elif topic == "reference/depth":
        placement.receive_depth(stamp_ns(msg.header), decode_depth(msg))
    else:
        placement.receive_pose(stamp_ns(msg.header), decode_pose(msg))


def decode_depth(msg: Any) -> np.ndarray:
    """Metres [H, W], float32, of a depth image (REP 118): 32FC1 in metres or 16UC1 in millimetres; NaN: no depth.

    Raises ValueError with what is wrong and what would be right.
    """
    if msg.encoding not in DEPTH_ENCODINGS:
        raise ValueError(
            f"depth encoding {msg.encoding!r} is not supported; publish one of {', '.join(DEPTH_ENCODINGS)}"
        )
    dtype, unit = DEPTH_ENCODINGS[msg.encoding]
    depth = _samples(msg, 1, dtype).astype(np.float32) * np.float32(unit)  # [H, W]
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(np.nan))


def decode_pose(msg: Any) -> np.ndarray:
    """T_parent_child, float64 [4, 4], of an Odometry. Raises ValueError for values that are no pose."""
    p, q = msg.pose.pose.position, msg.pose.pose.orientation
    rotation, translation = np.array([q.x, q.y, q.z, q.w]), np.array([p.x, p.y, p.z])
    length = math.hypot(*rotation)
    if not (np.isfinite(translation).all() and LEAST_LENGTH <= length < math.inf):
        raise ValueError(f"odometry is no pose: position {translation.tolist()}, orientation {rotation.tolist()}")
    return rigid(rotation_matrix(rotation / length), translation)


def stamp_ns(header: Any) -> int:
    """Stamp of a std_msgs Header in nanoseconds. Raises ValueError for one that no output, or no bag, could carry."""
    if header.stamp.sec < 0 or header.stamp.nanosec >= 1_000_000_000:
        raise ValueError(
            f"the stamp, {header.stamp.sec} s and {header.stamp.nanosec} ns, is no time; "
            "publish seconds from 0 on, and less than 1000000000 ns"
        )
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


@dataclass(frozen=True)
class InputCounts:
    """What became of the input images: fields of StreamStatus that only their receiver knows."""

    frames_received: int = 0
    frames_replaced: int = 0
    frames_refused: int = 0
    frames_lost: int = 0
    frames_rejected: int = 0
    frames_unplaced: int = 0
    frames_failed: int = 0
    resets: int = 0


@dataclass(frozen=True)
class Performance:
    """How the node keeps up: fields of StreamStatus that mean nothing in a replay."""

    input_rate: float = 0.0
    step_median_seconds: float = 0.0
    step_worst_seconds: float = 0.0
    age_seconds: float = 0.0
    rung: int = 0


class FrameMessages:
    """Makes the output messages of frames, for the topics of `TOPICS`.

    message_class: gives the class of a message type name, for example "sensor_msgs/msg/Image", from
    rclpy's packages or from a rosbags typestore.
    """

    def __init__(self, message_class: Callable[[str], Any]) -> None:
        self._class = message_class
        # rosbags' classes are dataclasses and hold ndarrays; rclpy's would convert an ndarray value by value.
        self._sequence = np.asarray if is_dataclass(message_class("sensor_msgs/msg/Image")) else _array
        self._path: list[Any] = []

    def convert(self, placed: Placed, stamp: int, frame_id: str, config: NodeConfig) -> dict[str, Callable[[], Any]]:
        """{topic: function that makes its message}, so that only what is wanted is made; ~/status is not among them.

        stamp [ns] and frame_id are the input image's. Poses go from `config.world_frame` (x forward,
        y left, z up) to the placed frame's child; points and depth are in the camera's optical frame.
        /tf is left out unless `config.publish_tf`.
        """
        frame = placed.frame
        camera = self._header(stamp, frame_id)
        world = self._header(stamp, config.world_frame)
        pose = self._pose(placed.T_odom_child)
        self._extend_path(placed, self._make("geometry_msgs/msg/PoseStamped", header=world, pose=pose), config)
        threshold = config.output.confidence_threshold
        topics = {
            "/tf": lambda: self._tf(stamp, placed, config),
            "~/depth/image": lambda: self._image(camera, frame.depth * _nan_mask(frame, threshold)),
            "~/depth/camera_info": lambda: self._camera_info(camera, frame),
            "~/confidence/image": lambda: self._image(camera, frame.confidence),
            "~/points": lambda: self._points(camera, frame, threshold, config.output.point_stride),
            "~/odometry": lambda: self._odometry(world, placed, pose),
            "~/path": lambda: self._make("nav_msgs/msg/Path", header=world, poses=list(self._path)),
        }
        if not config.publish_tf:
            del topics["/tf"]
        return topics

    def status(
        self,
        status: Status,
        stamp: int,
        frame_id: str,
        *,
        scale: ScaleStatus,
        counts: InputCounts,
        performance: Performance,
    ) -> Any:
        """The message of ~/status."""
        same = {f.name: getattr(status, f.name) for f in fields(status) if f.name != "seconds"}
        seconds = {f"{stage}_seconds": float(value) for stage, value in status.seconds.items()}
        others = asdict(scale) | asdict(counts) | asdict(performance)
        return self._make(
            "xsvggt_ros/msg/StreamStatus", header=self._header(stamp, frame_id), **same, **seconds, **others
        )

    def _make(self, name: str, **values: Any) -> Any:
        return self._class(name)(**values)

    def _header(self, stamp: int, frame_id: str) -> Any:
        sec, nanosec = divmod(stamp, 1_000_000_000)
        time = self._make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
        return self._make("std_msgs/msg/Header", stamp=time, frame_id=frame_id)

    def _vector(self, name: str, values: Any) -> Any:
        return self._make(name, **dict(zip("xyzw", map(float, values), strict=False)))

    def _pose(self, T: np.ndarray) -> Any:
        return self._make(
            "geometry_msgs/msg/Pose",
            position=self._vector("geometry_msgs/msg/Point", T[:3, 3]),
            orientation=self._vector("geometry_msgs/msg/Quaternion", quaternion_xyzw(T[:3, :3])),
        )

    def _extend_path(self, placed: Placed, pose: Any, config: NodeConfig) -> None:
        if placed.starts:
            self._path.clear()
        self._path.append(pose)
        del self._path[: -config.path_length]

    def _tf(self, stamp: int, placed: Placed, config: NodeConfig) -> Any:
        parent, child, T = config.world_frame, placed.child, placed.T_odom_child
        if config.invert_tf:
            parent, child, T = child, parent, inverse(T)
        transform = self._make(
            "geometry_msgs/msg/Transform",
            translation=self._vector("geometry_msgs/msg/Vector3", T[:3, 3]),
            rotation=self._vector("geometry_msgs/msg/Quaternion", quaternion_xyzw(T[:3, :3])),
        )
        header = self._header(stamp, parent)
        stamped = self._make(
            "geometry_msgs/msg/TransformStamped", header=header, child_frame_id=child, transform=transform
        )
        return self._make("tf2_msgs/msg/TFMessage", transforms=[stamped])

    def _odometry(self, header: Any, placed: Placed, pose: Any) -> Any:
        zero = self._vector("geometry_msgs/msg/Vector3", (0, 0, 0))
        twist = self._make("geometry_msgs/msg/Twist", linear=zero, angular=zero)
        unknown = np.diag(np.full(6, UNKNOWN_VARIANCE)).ravel()
        return self._make(
            "nav_msgs/msg/Odometry",
            header=header,
            child_frame_id=placed.child,
            pose=self._make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=pose_covariance(placed)),
            twist=self._make("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=unknown),
        )

    def _image(self, header: Any, values: np.ndarray) -> Any:
        height, width = values.shape
        return self._make(
            "sensor_msgs/msg/Image",
            header=header,
            height=height,
            width=width,
            encoding="32FC1",
            is_bigendian=0,
            step=4 * width,
            data=self._bytes(values.astype("<f4", copy=False)),
        )

    def _camera_info(self, header: Any, frame: Frame) -> Any:
        height, width = frame.depth.shape
        roi = self._make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self._make(
            "sensor_msgs/msg/CameraInfo",
            header=header,
            height=height,
            width=width,
            distortion_model="plumb_bob",
            d=self._sequence(np.zeros(5)),
            k=frame.intrinsics.ravel(),
            r=np.eye(3).ravel(),
            p=np.hstack([frame.intrinsics, np.zeros((3, 1))]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=roi,
        )

    def _points(self, header: Any, frame: Frame, threshold: float, stride: int) -> Any:
        valid = _nan_mask(frame, threshold)[::stride, ::stride]  # [h, w]
        height, width = valid.shape
        cloud = np.empty((height, width, 4), "<f4")
        np.multiply(frame.points_cam()[::stride, ::stride], valid[..., None], out=cloud[..., :3])
        # The fourth float carries the integer 0x00RRGGBB: blue comes first in memory.
        cloud[..., 3] = 0
        cloud.view(np.uint8)[..., 12:15] = frame.image[::stride, ::stride, ::-1]
        return self._make(
            "sensor_msgs/msg/PointCloud2",
            header=header,
            height=height,
            width=width,
            fields=[self._float_field(name, 4 * i) for i, name in enumerate(("x", "y", "z", "rgb"))],
            is_bigendian=False,
            point_step=16,
            row_step=16 * width,
            data=self._bytes(cloud),
            is_dense=False,
        )

    def _float_field(self, name: str, offset: int) -> Any:
        field = self._class("sensor_msgs/msg/PointField")
        return field(name=name, offset=offset, datatype=field.FLOAT32, count=1)

    def _bytes(self, values: np.ndarray) -> Any:
        return self._sequence(np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def pose_covariance(placed: Placed) -> np.ndarray:
    """Row-major [36] of x, y, z, roll, pitch, yaw, for ~/odometry.

    The model estimates none: positions get the nominal drift, or the scale's spread if that is more, times the
    distance from the origin; with no scale they are unknown.
    """
    relative = max(NOMINAL_DRIFT, np.nan_to_num(placed.scale.scale_spread))
    distance = np.linalg.norm(placed.T_odom_child[:3, 3])
    position = (NOMINAL_NOISE + relative * distance) ** 2 if placed.scale.scale_source != "none" else UNKNOWN_VARIANCE
    return np.diag([position] * 3 + [NOMINAL_ROTATION**2] * 3).ravel()


def _nan_mask(frame: Frame, threshold: float) -> np.ndarray:
    """Factor of depth and points, float32 [h, w]: 1, or NaN where the confidence is below the threshold."""
    return np.where(frame.confidence >= threshold, np.float32(1), np.float32(np.nan))


def _array(values: np.ndarray) -> array.array:
    """The values in one copy, uint8 or float64."""
    copy = array.array(values.dtype.char)
    copy.frombytes(values.view(np.uint8).data)
    return copy
