# SPDX-License-Identifier: Apache-2.0
"""ROS messages -> arrays.

Serves the message classes of rclpy and those of a rosbags typestore alike, so that a node and a bag are read
the same; neither is imported here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from rosbags.image import image_to_cvimage
from simplejpeg import decode_jpeg, decode_jpeg_header

from xsvggt_ros.camera import Rectifier
from xsvggt_ros.frame import InputImage
from xsvggt_ros.geometry import LEAST_LENGTH, rigid, rotation_matrix
from xsvggt_ros.messages.libraries import cv_bridge
from xsvggt_ros.names import frame_name
from xsvggt_ros.preprocess import eight_bits, stretched
from xsvggt_ros.status import NO_CAMERA_INFO

imgmsg_to_cv2: Callable[[Any, str], np.ndarray] = cv_bridge.imgmsg_to_cv2 if cv_bridge else image_to_cvimage

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
    "rgb16": ("rgb8", 3, "<u2"),
    "bgr16": ("bgr8", 3, "<u2"),
    "16UC3": ("bgr8", 3, "<u2"),
    "rgba16": ("rgba8", 4, "<u2"),
    "bgra16": ("bgra8", 4, "<u2"),
    "16UC4": ("bgra8", 4, "<u2"),
    "mono16": ("mono8", 1, "<u2"),
    "16UC1": ("mono8", 1, "<u2"),
    "yuv422": ("yuv422", 2, "u1"),
    "uyvy": ("yuv422", 2, "u1"),
    "yuv422_yuy2": ("yuv422_yuy2", 2, "u1"),
    "yuyv": ("yuv422_yuy2", 2, "u1"),
    **{f"bayer_{pattern}8": (f"bayer_{pattern}8", 1, "u1") for pattern in _BAYER},
    **{f"bayer_{pattern}16": (f"bayer_{pattern}8", 1, "<u2") for pattern in _BAYER},
}

ENCODING_NAMES = {name.lower(): name for name in ENCODINGS}
# Sample type and channels of a decoded file -> the encoding that a raw message of it would have.
DECODED = {
    ("uint8", 1): "mono8",
    ("uint8", 3): "bgr8",
    ("uint8", 4): "bgra8",
    ("uint16", 1): "mono16",
    ("uint16", 3): "bgr16",
    ("uint16", 4): "bgra16",
}
JPEG, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# What libjpeg says of pictures that are complete all the same.
HARMLESS = re.compile("extraneous bytes before marker 0xd9|JFIF revision|Adobe color transform|SOS parameters")
VIDEO = re.compile("h\\.?26[45]|hevc|theora|av1|vp[89]", re.IGNORECASE)
MOST_PIXELS = 2**28  # of a JPEG; a damaged header may state more

DEPTH_ENCODINGS = {"32FC1": ("<f4", 1.0), "16UC1": ("<u2", 0.001)}  # sample type, metres per step (REP 118)
MOST_CAMERAS = 16  # on one topic
FRAME_ID = "camera"  # where the header names none: an empty frame_id is no frame


@dataclass(frozen=True)
class Damaged:
    """Stands for an image message of a recording that cannot be read, and says why."""

    reason: str


class CameraDecoder:
    """The messages of one camera as images: rectified, with their K, where a usable camera_info came.

    warn: says why a camera_info is ignored, once for each reason. `receive` may be called from another thread.
    `calibration`: why the newest image has no K; empty: it has.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._infos: dict[str, Any] = {}  # frame_id -> newest CameraInfo: several cameras may send on one topic
        self.calibration = ""
        self._warn = warn
        self._warned = ""
        self._rectifier = Rectifier()

    def receive(self, info: Any) -> None:
        """Takes a sensor_msgs CameraInfo: for the images of its frame_id, or for all while no other camera has one."""
        camera = camera_of(info)
        if camera not in self._infos and len(self._infos) >= MOST_CAMERAS:
            self._infos = {}
        self._infos[camera] = info

    def decode(self, msg: Any, rectify: bool) -> InputImage:
        """The image of a sensor_msgs Image or CompressedImage. Raises ValueError with what is wrong and the remedy."""
        image, camera = decode_image(msg), camera_of(msg)
        image, K = self._rectified(image, camera, rectify)
        return InputImage(stamp_ns(msg.header), image, K, camera)

    def _rectified(self, image: np.ndarray, camera: str, rectify: bool) -> tuple[np.ndarray, np.ndarray | None]:
        infos = self._infos.copy()  # of this moment
        info = infos.get(camera) or (next(iter(infos.values())) if len(infos) == 1 else None)
        if info is None:
            others = ", ".join(sorted(infos))
            self.calibration = NO_CAMERA_INFO + (f"; none of camera {camera}, but of {others}" if others else "")
            return image, None
        try:
            rectified = self._rectifier(image, info, rectify)
        except ValueError as error:
            self.calibration = f"camera_info ignored: {error}"
            if self.calibration != self._warned:
                self._warned = self.calibration
                self._warn(self.calibration)
            return image, None
        self.calibration = ""
        return rectified


def camera_of(msg: Any) -> str:
    """The frame of an image message, or of a CameraInfo. Raises ValueError for a message that cannot be read."""
    if isinstance(msg, Damaged):
        raise ValueError(msg.reason)
    return frame_name(msg.header.frame_id) or FRAME_ID


def decode_image(msg: Any) -> np.ndarray:
    """RGB image of a sensor_msgs Image or CompressedImage, uint8 [H, W, 3]: the same of both.

    16-bit grey and Bayer images are stretched from their darkest to their brightest sample, as RViz shows them: cameras
    fill 10 to 16 of the bits, and the message does not say how many. 16-bit colours keep their proportion, and of
    colours with alpha the colours are taken.

    Raises ValueError with what is wrong and what would be right.
    """
    if isinstance(msg, Damaged):
        raise ValueError(msg.reason)
    return _converted(*(_decompressed(msg) if hasattr(msg, "format") else _raw(msg)))


def decode_samples(data: bytes) -> np.ndarray:
    """The samples of an image file as they are in it, uint8 or uint16 [H, W], or [H, W, 3 or 4] in order B, G, R, A.

    An orientation that the file states is left to the caller. Raises ValueError for a file that is damaged, cut off, or
    of a kind that is not read.
    """
    samples = _decode_jpeg(data) if data[:2] == JPEG else _decode_other(data)
    if samples.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"its samples are of type {samples.dtype}; convert it to 8 or 16 bits")
    return samples


def _converted(samples: np.ndarray, encoding: str) -> np.ndarray:
    """RGB image, uint8 [H, W, 3], of samples [H, W] or [H, W, C] in one of ENCODINGS."""
    name, channels, dtype = ENCODINGS[encoding]
    if dtype == "<u2":
        samples = stretched(samples) if channels == 1 else eight_bits(samples)
    return imgmsg_to_cv2(_image(samples, name), "rgb8")


def _image(samples: np.ndarray, encoding: str) -> SimpleNamespace:
    """Samples [H, W] or [H, W, C], as cv_bridge and rosbags read them of an Image message."""
    height, width = samples.shape[:2]
    samples = np.ascontiguousarray(samples)
    return SimpleNamespace(
        encoding=encoding, height=height, width=width, step=samples[0].nbytes, is_bigendian=False, data=samples
    )


def _raw(msg: Any) -> tuple[np.ndarray, str]:
    """Samples and encoding of a sensor_msgs Image."""
    encoding = ENCODING_NAMES.get(msg.encoding.strip().lower())
    if encoding is None:
        raise ValueError(
            f"image encoding {msg.encoding!r} is not supported; convert it to one of {', '.join(ENCODINGS)}"
        )
    name, channels, dtype = ENCODINGS[encoding]
    samples = _samples(msg, channels, dtype)
    if "yuv" in name and msg.width % 2:
        raise ValueError(f"{encoding} shares colour between two pixels; width must be even, got {msg.width}")
    return samples if channels == 1 else samples.reshape(msg.height, msg.width, channels), encoding


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
        raise ValueError(f"big-endian {msg.encoding} is not supported; make it little-endian, with is_bigendian 0")


def _decompressed(msg: Any) -> tuple[np.ndarray, str]:
    """Samples and encoding of a sensor_msgs CompressedImage."""
    if "compresseddepth" in msg.format.lower():
        raise ValueError(f"a compressed image of format {msg.format!r} is depth; choose the topic of the colour image")
    if VIDEO.search(msg.format):
        raise ValueError(
            f"a compressed image of format {msg.format!r} is a piece of a video; republish it as raw images or JPEG"
        )
    try:
        samples = decode_samples(bytes(msg.data))
    except ValueError as error:
        raise ValueError(
            f"compressed image ({msg.format!r}, {len(msg.data)} bytes) cannot be decoded: {error}"
        ) from error
    encoding = DECODED[samples.dtype.name, 1 if samples.ndim == 2 else samples.shape[2]]
    return samples, _mosaic(msg.format, samples) or encoding


def _mosaic(description: str, samples: np.ndarray) -> str:
    """The Bayer encoding of samples that are a mosaic; empty: they are none.

    image_transport states `ORIGINAL; CODEC compressed TARGET`. It sends the original where it names no target, and ROS
    2 names one where it has converted a mosaic to grey or colour.
    """
    original, _, rest = description.lower().partition(";")
    stated = rest.partition("compressed")[2].strip() or original.strip()
    bayer = re.fullmatch(r"(bayer_[a-z]{4})\d+p?", stated)
    encoding = f"{bayer[1]}{8 * samples.itemsize}" if bayer and samples.ndim == 2 else ""
    return encoding if encoding in ENCODINGS else ""


def _decode_jpeg(data: bytes) -> np.ndarray:
    """Grey or BGR samples of a JPEG. One without end marker, as many webcams send it, may be whole."""
    # Of padding, which would be taken for the samples of a picture that is cut off, one byte may be the picture's last.
    data = data.rstrip(b"\0") + b"\0" * data.endswith(b"\0") + JPEG_END
    try:
        height, width, colours, _ = decode_jpeg_header(data)
        if height * width > MOST_PIXELS:
            raise ValueError(f"its header states {width} x {height} pixels")
        if colours in ("CMYK", "YCCK"):
            return _decode_other(data)
        target = "GRAY" if colours == "Gray" else "BGR"
        try:
            samples = decode_jpeg(data, colorspace=target, strict=True)  # says what is wrong with the data
        except ValueError as error:
            if not HARMLESS.search(str(error)):
                raise
            samples = decode_jpeg(data, colorspace=target, strict=False)
    except ValueError as error:
        raise ValueError(f"it is a damaged or cut off JPEG ({error})") from error
    return samples.squeeze(-1) if target == "GRAY" else samples


def _decode_other(data: bytes) -> np.ndarray:
    if data[:2] == b"#?":  # OpenCV would make a temporary file of it
        raise ValueError("Radiance HDR is not read; convert it to JPEG or PNG")
    try:
        samples = cv2.imdecode(np.frombuffer(data or b"\0", np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # absurd sizes in a corrupt header
        samples = None
    if samples is None:
        raise ValueError("it is damaged, cut off or of a kind that is not read; convert it to JPEG or PNG")
    return samples


def decode_depth(msg: Any) -> np.ndarray:
    """Metres [H, W], float32, of a depth image (REP 118): 32FC1 in metres or 16UC1 in millimetres; NaN: no depth.

    Raises ValueError with what is wrong and what would be right.
    """
    if msg.encoding not in DEPTH_ENCODINGS:
        raise ValueError(
            f"depth encoding {msg.encoding!r} is not supported; convert it to one of {', '.join(DEPTH_ENCODINGS)}"
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
            "a stamp has seconds from 0 on, and less than 1000000000 ns"
        )
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def name_of(image: Any) -> str:
    """What tells an image message from the others: its file's name, or its stamp; empty where it has neither."""
    if name := getattr(image, "name", ""):
        return name
    with suppress(ValueError, AttributeError):
        return f"image of {stamp_ns(image.header)} ns"
    return ""
