# SPDX-License-Identifier: Apache-2.0
"""ROS messages -> arrays.

Serves the message classes of rclpy and those of a rosbags typestore alike, so that a node and a bag are read
the same; neither is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from xsvggt_ros.camera import Rectifier
from xsvggt_ros.frame import InputImage
from xsvggt_ros.geometry import LEAST_LENGTH, rigid, rotation_matrix
from xsvggt_ros.names import frame_name

try:  # a ROS distribution has cv_bridge, unless it was built for another numpy
    from cv_bridge.boost.cv_bridge_boost import cvtColor2 as convert_color
except (ImportError, SystemError):
    from rosbags.image.image import convert_color

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
FRAME_ID = "camera"  # where the header names none: an empty frame_id is no frame


@dataclass(frozen=True)
class Damaged:
    """Stands for an image message of a recording that cannot be read, and says why."""

    reason: str


class CameraDecoder:
    """The messages of one camera as images: rectified, with their K, where a usable camera_info came.

    warn: says why a camera_info is ignored, once for each reason. `camera_info` may be set from another thread.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.camera_info: Any = None  # sensor_msgs CameraInfo, the newest
        self._warn = warn
        self._warned = ""
        self._rectifier = Rectifier()

    def decode(self, msg: Any, rectify: bool) -> InputImage:
        """The image of a sensor_msgs Image or CompressedImage. Raises ValueError with what is wrong and the remedy."""
        image, K = self._rectified(decode_image(msg), rectify)
        return InputImage(stamp_ns(msg.header), image, K, frame_name(msg.header.frame_id) or FRAME_ID)

    def _rectified(self, image: np.ndarray, rectify: bool) -> tuple[np.ndarray, np.ndarray | None]:
        info = self.camera_info
        if info is None:
            return image, None
        try:
            return self._rectifier(image, info, rectify)
        except ValueError as error:
            if str(error) != self._warned:
                self._warned = str(error)
                self._warn(f"camera_info ignored: {error}")
            return image, None


def decode_image(msg: Any) -> np.ndarray:
    """RGB image of a sensor_msgs Image or CompressedImage, uint8 [H, W, 3].

    16-bit images are stretched from their darkest to their brightest sample, as RViz shows them:
    cameras fill 10 to 16 of the bits, and the message does not say how many.

    Raises ValueError with what is wrong and what would be right.
    """
    if isinstance(msg, Damaged):
        raise ValueError(msg.reason)
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
