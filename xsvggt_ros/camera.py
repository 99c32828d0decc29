# SPDX-License-Identifier: Apache-2.0
"""What a CameraInfo says of an image: its camera matrix, and the lens distortion that is undone.

Serves the message classes of rclpy and those of a rosbags typestore alike; neither is imported here.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from xsvggt_ros.geometry import FOV_LIMITS, Array

FISHEYE = "equidistant"
# distortion_model of a CameraInfo -> the numbers of coefficients that OpenCV knows it by.
COEFFICIENTS = {"plumb_bob": (4, 5), "": (4, 5), "rational_polynomial": (8, 12, 14), FISHEYE: (4,)}
LEAST_SEEN = 0.25  # part of a rectified image that the camera must see; with less, the calibration is not its own
LONGEST_SIDE = 32766  # pixels; cv2.remap takes no more

Maps = tuple[np.ndarray, np.ndarray]


class Rectifier:
    """Makes images what a pinhole camera sees. Keeps the maps of the newest calibration. For one thread."""

    def __init__(self) -> None:
        self._calibration: tuple = ()
        self._maps: Maps  # of that calibration; none while it is empty

    def __call__(self, image: np.ndarray, info: Any, rectify: bool) -> tuple[np.ndarray, Array]:
        """Image uint8 [H, W, 3] and its sensor_msgs CameraInfo -> rectified image [H, W, 3] and its K, float64 [3, 3].

        rectify: the image is as the lens made it, and its distortion is undone; K stays the camera matrix and the
        optical frame the same, so that a stereo pair is not aligned (R is not applied). What the camera does not see
        becomes black. Without distortion, the image comes back as it is; all coefficients being 0 means that for
        `equidistant` too, as in image_geometry.
        rectify False: the image was rectified before, as image_rect is.

        Raises ValueError, with the fix, for a calibration that is no calibration or not the image's.
        """
        K = decode_intrinsics(info, image.shape[:2], rectified=not rectify)
        d = np.array(info.d, np.float64)
        if not rectify or not d.any():
            return image, K
        calibration = (K.tobytes(), d.tobytes(), info.distortion_model, image.shape[:2])
        if calibration != self._calibration:
            self._maps = _maps(K, d, info.distortion_model, *image.shape[:2])
            self._calibration = calibration
        return cv2.remap(image, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT), K


def decode_intrinsics(info: Any, shape: tuple[int, int] | None = None, rectified: bool = False) -> Array:
    """K of the image that a CameraInfo came with, float64 [3, 3], in its pixels, whose centres lie at integers.

    shape: (H, W) of that image, checked against the message when given.
    rectified: of the rectified image, which P states, instead of the raw one's, which K does.
    Binning and region of interest are applied (REP 104): the message's matrices are of the full sensor.

    Raises ValueError for values that are not finite, focal lengths not above 0, another form or another size, and
    for a field of view outside of FOV_LIMITS.
    """
    K = np.array(info.k, np.float64).reshape(3, 3)
    name = "K"
    if rectified and not info.p[0] <= 0:  # a NaN counts, to be refused
        K = np.array(info.p, np.float64).reshape(3, 4)[:, :3]
        name = "P"
    _check_matrix(K, name)
    width, height, pixel = _window(info)
    if shape is not None and shape != (height, width):
        raise ValueError(
            f"camera_info is for {width} x {height} pixels, the image has {shape[1]} x {shape[0]}; "
            "publish the camera_info of this image"
        )
    _check_view(K, name, info)
    return pixel @ K


def _check_matrix(K: Array, name: str) -> None:
    if not np.isfinite(K).all():
        raise ValueError(f"camera_info {name} has values that are not finite: {K.ravel().tolist()}")
    if K[0, 0] <= 0 or K[1, 1] <= 0:
        raise ValueError(
            f"camera_info focal lengths must be above 0, got {K[0, 0]} and {K[1, 1]}; calibrate the camera"
        )
    if K[0, 1] or K[1, 0] or K[2].tolist() != [0, 0, 1]:
        raise ValueError(f"camera_info {name} must be of the form [f 0 c, 0 f c, 0 0 1], got {K.ravel().tolist()}")


def _check_view(K: Array, name: str, info: Any) -> None:
    size, focal, centre = np.array([info.width, info.height]), K[[0, 1], [0, 1]], K[:2, 2]
    shortest = np.maximum(abs(centre), abs(size - centre)) / np.tan(FOV_LIMITS[1] / 2)
    longest = size / 2 / np.tan(FOV_LIMITS[0] / 2)
    if (focal < shortest).any() or (focal > longest).all():
        raise ValueError(
            f"camera_info {name} is none of a sensor of {info.width} x {info.height} pixels: focal lengths "
            f"{focal.tolist()}, principal point {centre.tolist()}; calibrate the camera"
        )


def _window(info: Any) -> tuple[int, int, Array]:
    """Width and height of the image, and the matrix [3, 3] that takes pixels of the full sensor to the image's."""
    x, y, width, height = info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height
    if not any((x, y, width, height)):
        width, height = info.width, info.height
    if x + width > info.width or y + height > info.height:
        raise ValueError(
            f"camera_info roi ({width} x {height} pixels at {x}, {y}) lies outside of the sensor's "
            f"{info.width} x {info.height}; give roi in pixels of the full, unbinned sensor"
        )
    columns, rows = max(info.binning_x, 1), max(info.binning_y, 1)
    # The centre of a binned pixel lies midway between those of the pixels that it is made of.
    offset_x, offset_y = (0.5 - x) / columns - 0.5, (0.5 - y) / rows - 0.5
    pixel = np.array([[1 / columns, 0, offset_x], [0, 1 / rows, offset_y], [0, 0, 1]])
    return width // columns, height // rows, pixel


def _maps(K: Array, d: Array, model: str, height: int, width: int) -> Maps:
    """Where each pixel of the rectified image comes from, in the fixed-point form of cv2.remap.

    K is the image's own: a window of the sensor sees the same rays by it, and the distortion is one of rays.
    """
    _check_distortion(d, model)
    if max(height, width) > LONGEST_SIDE:
        raise ValueError(
            f"an image of {width} x {height} pixels cannot be rectified; send one of at most {LONGEST_SIDE} a side"
        )
    undistort = cv2.fisheye.initUndistortRectifyMap if model == FISHEYE else cv2.initUndistortRectifyMap
    x, y = undistort(K, d, np.eye(3), K, (width, height), cv2.CV_32FC1)  # [H, W] each
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"camera_info distortion {d.tolist()} leads to no finite pixels; calibrate the camera")
    seen = np.mean((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))
    if seen < LEAST_SEEN:
        raise ValueError(
            f"camera_info distortion {d.tolist()} leaves {seen:.0%} of the image; "
            "check that camera_info is this camera's and its roi not too far out"
        )
    return cv2.convertMaps(x, y, cv2.CV_16SC2)


def _check_distortion(d: Array, model: str) -> None:
    if model not in COEFFICIENTS:
        raise ValueError(
            f"camera_info distortion_model {model!r} is not supported; "
            f"calibrate for one of {', '.join(filter(None, COEFFICIENTS))}, or rectify images before (rectify false)"
        )
    if len(d) not in COEFFICIENTS[model]:
        raise ValueError(
            f"camera_info has {len(d)} distortion coefficients, {model or 'plumb_bob'} has "
            f"{' or '.join(map(str, COEFFICIENTS[model]))}; publish all of them, in OpenCV's order"
        )
    if not np.isfinite(d).all():
        raise ValueError(f"camera_info distortion has values that are not finite: {d.tolist()}")
