# SPDX-License-Identifier: Apache-2.0
"""What a CameraInfo says of an image: its camera matrix, and the lens distortion that is undone.

Serves the message classes of rclpy and those of a rosbags typestore alike; neither is imported here.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from xsvggt_ros.geometry import FOV_LIMITS, Array, intrinsic_matrix

# distortion_model of a CameraInfo, in lower case -> the numbers of coefficients that OpenCV knows it by. Drivers write
# plumb_bob over 8 coefficients and rational_polynomial over 5; image_geometry leaves both to OpenCV, which counts.
PINHOLE, FISHEYE = (4, 5, 8, 12, 14), (4,)
COEFFICIENTS: dict[str, tuple[int, ...]] = {
    "plumb_bob": PINHOLE,
    "rational_polynomial": PINHOLE,
    "radtan": PINHOLE,
    "": PINHOLE,
}
COEFFICIENTS |= {"equidistant": FISHEYE, "fisheye": FISHEYE}
NEGLIGIBLE = 1e-4  # of the focal length: no calibration is as sure
MOST_UNEQUAL = 4.0  # one focal length over the other: of no lens, however wide its film
OFF_CENTRE = 1.0  # sides of the image that its principal point may lie outside of it, as that of a region of interest
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
        `equidistant` too, as in image_geometry, and so does a K of zeros where there is a P.
        rectify False: the image was rectified before, as image_rect is.

        Raises ValueError, with the fix, for a calibration that is no calibration or not the image's.
        """
        K = decode_intrinsics(info, image.shape[:2], rectified=not rectify)
        d = np.trim_zeros(np.array(info.d, np.float64), "b")
        if not rectify or not len(d):
            return image, K
        if not np.any(info.k):
            raise ValueError("camera_info K is zero, though there is distortion; calibrate the camera")
        calibration = (K.tobytes(), d.tobytes(), len(info.d), info.distortion_model, image.shape[:2])
        if calibration != self._calibration:
            self._maps = _maps(K, *_distortion(info, d), *image.shape[:2])
            self._calibration = calibration
        return cv2.remap(image, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT), K


def decode_intrinsics(info: Any, shape: tuple[int, int] | None = None, rectified: bool = False) -> Array:
    """K of the image that a CameraInfo came with, float64 [3, 3], in its pixels, whose centres lie at integers.

    shape: (H, W) of that image, checked against the message when given.
    rectified: of the rectified image, which P states, instead of the raw one's, which K does. Where one of them is
    zero, the other counts.
    Binning and region of interest are applied (REP 104): the message's matrices are of the full sensor.

    Raises ValueError for what `check_camera_matrix` refuses, and for another size.
    """
    K, name = _stated_matrix(info, rectified)
    if shape is not None and _leaves_size_open(info):
        return _of_open_size(K, name, *shape)
    width, height, pixel = _window(info)
    if shape is not None and shape != (height, width):
        raise ValueError(
            f"camera_info is for {width} x {height} pixels, the image has {shape[1]} x {shape[0]}; "
            "use the camera_info of this image"
        )
    return check_camera_matrix(pixel @ K, name, height, width)


def check_camera_matrix(K: Array, name: str, height: int, width: int) -> Array:
    """K [3, 3] of an image of that size in its pixels, exactly of the form [f 0 c, 0 f c, 0 0 1].

    Raises ValueError, with the fix, for values that are not finite, focal lengths not above 0, another form, and for
    a field of view outside of FOV_LIMITS or a principal point far outside of the image. name: what to call it.
    """
    K = _check_form(K, name)
    size, focal, centre = np.array([width, height]), K[[0, 1], [0, 1]], K[:2, 2]
    shortest = np.maximum(abs(centre), abs(size - centre)) / np.tan(FOV_LIMITS[1] / 2)
    longest = size / 2 / np.tan(FOV_LIMITS[0] / 2)
    unequal = focal.max() > MOST_UNEQUAL * focal.min()
    beyond = np.maximum(-centre, centre - size) > OFF_CENTRE * size
    if (focal < shortest).any() or (focal > longest).all() or beyond.any() or unequal:
        raise ValueError(
            f"{name} is none of an image of {width} x {height} pixels: focal lengths {focal.tolist()}, principal point "
            f"{centre.tolist()}; scale it to the image, or calibrate the camera"
        )
    return K


def _stated_matrix(info: Any, rectified: bool) -> tuple[Array, str]:
    """K or P's first three columns, of the full sensor, and its name."""
    K = _entries(info.k, (3, 3), "K")
    if rectified or not K.any():
        P = _entries(info.p, (3, 4), "P")
        if not P[0, 0] <= 0:  # a NaN counts, to be refused
            return _check_form(P[:, :3], "camera_info P"), "camera_info P"
    return _check_form(K, "camera_info K"), "camera_info K"


def _entries(values: Any, shape: tuple[int, int], name: str) -> Array:
    matrix = np.array(values, np.float64)
    if matrix.size != shape[0] * shape[1]:
        raise ValueError(f"camera_info {name} must have {shape[0] * shape[1]} values, got {matrix.size}")
    return matrix.reshape(shape)


def _check_form(K: Array, name: str) -> Array:
    """K without what is but rounding. Raises ValueError, with the fix, if that is not a camera matrix."""
    said = f"got {K.ravel().tolist()}"
    if not np.isfinite(K).all():
        raise ValueError(f"{name} has values that are not finite, {said}; calibrate the camera")
    if K[0, 0] <= 0 or K[1, 1] <= 0:
        raise ValueError(f"{name}: focal lengths must be above 0, got {K[0, 0]} and {K[1, 1]}; calibrate the camera")
    form = intrinsic_matrix(K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    if _same(K, form):
        return form
    if _same(K.T, intrinsic_matrix(K[0, 0], K[1, 1], K[2, 0], K[2, 1])):
        raise ValueError(f"{name} is transposed: it must be of the form [f 0 c, 0 f c, 0 0 1], {said}; transpose it")
    raise ValueError(f"{name} must be of the form [f 0 c, 0 f c, 0 0 1], {said}; correct it, or calibrate the camera")


def _same(K: Array, form: Array) -> bool:
    """Whether the two put every ray at the same pixel, as nearly as a calibration is sure."""
    scale = np.array([[form[0, 0]], [form[1, 1]], [1]])
    return bool((abs(K - form) <= NEGLIGIBLE * scale).all())


def _leaves_size_open(info: Any) -> bool:
    """Some drivers fill in the matrices only."""
    window = (info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height)
    return not any((info.width, info.height, *window)) and max(info.binning_x, info.binning_y) <= 1


def _of_open_size(K: Array, name: str, height: int, width: int) -> Array:
    """K if it is one of an image of that size: the principal point in its middle half; that of twice it is not."""
    share = K[:2, 2] / (width, height)
    if (abs(share - 0.5) > 0.25).any():
        raise ValueError(
            f"camera_info states no width and height, and the principal point of {name} is not in the middle of the "
            f"image's {width} x {height} pixels: {K[:2, 2].tolist()}; state the size that it is for"
        )
    return check_camera_matrix(K, name, height, width)


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


def _maps(K: Array, d: Array, fisheye: bool, height: int, width: int) -> Maps:
    """Where each pixel of the rectified image comes from, in the fixed-point form of cv2.remap.

    K is the image's own: a window of the sensor sees the same rays by it, and the distortion is one of rays.
    """
    if max(height, width) > LONGEST_SIDE:
        raise ValueError(
            f"an image of {width} x {height} pixels cannot be rectified; send one of at most {LONGEST_SIDE} a side"
        )
    undistort = cv2.fisheye.initUndistortRectifyMap if fisheye else cv2.initUndistortRectifyMap
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


def _distortion(info: Any, d: Array) -> tuple[Array, bool]:
    """The coefficients as OpenCV counts them, and whether they are its fisheye's; d: those up to the last not 0."""
    counts = COEFFICIENTS.get(info.distortion_model.lower())
    if counts is None:
        raise ValueError(
            f"camera_info distortion_model {info.distortion_model!r} is not supported; "
            f"calibrate for one of {', '.join(filter(None, COEFFICIENTS))}, or rectify images before (rectify false)"
        )
    # Zeros at the end may be too many, but coefficients that are not sent are not taken to be zero.
    fitting = [count for count in counts if len(d) <= count <= len(info.d)]
    if not fitting:
        raise ValueError(
            f"camera_info has {len(info.d)} distortion coefficients, {info.distortion_model or 'plumb_bob'} has "
            f"{' or '.join(map(str, counts))}; give all of them, in OpenCV's order"
        )
    if not np.isfinite(d).all():
        raise ValueError(f"camera_info distortion has values that are not finite: {d.tolist()}; calibrate the camera")
    return np.pad(d, (0, fitting[0] - len(d))), counts is FISHEYE
