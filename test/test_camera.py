# SPDX-License-Identifier: Apache-2.0
"""Dots at known rays are drawn where OpenCV's forward projection puts them on the full sensor; region of interest and
binning are then cut and averaged as a camera does. After rectification, dots and K must agree."""

from importlib import import_module
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from xsvggt_ros.camera import Rectifier, decode_intrinsics
from xsvggt_ros.messages.bag import TYPES

WIDTH, HEIGHT = 640, 480
K = np.array([[420.0, 0, 311.5], [0, 410.0, 247.25], [0, 0, 1]])
P = np.array([[350.0, 0, 300], [0, 350.0, 230], [0, 0, 1]])
# Models as ROS drivers publish them, with the strength of real lenses.
LENSES = {
    "plumb_bob 5": ("plumb_bob", [-0.32, 0.12, 1.2e-3, -8e-4, -0.02]),
    "plumb_bob 4": ("plumb_bob", [-0.28, 0.07, -5e-4, 1e-3]),
    "unnamed": ("", [0.12, -0.2, 1e-3, 1e-3, 0.05]),
    "rational 8": ("rational_polynomial", [0.45, -2.4, 8e-4, 3e-4, 1.3, 0.33, -2.2, 1.25]),
    "rational 12": ("rational_polynomial", [-0.3, 0.1, 0, 0, 0, 0.02, 0, 0, 4e-3, 1e-3, -3e-3, 1e-3]),
    "rational 14": ("rational_polynomial", [-0.3, 0.1, 0, 0, 0, 0.02, 0, 0, 0, 0, 0, 0, 0.04, -0.03]),
    "equidistant": ("equidistant", [-0.02, 0.01, -4e-3, 1e-3]),
}
NO_ROI = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0)


def camera_info(model="plumb_bob", d=(), k=K, p=None, roi=NO_ROI, binning=(0, 0), size=(WIDTH, HEIGHT)):
    """The fields of a sensor_msgs/CameraInfo. p: [3, 3]."""
    p = np.zeros((3, 4)) if p is None else np.hstack([p, np.zeros((3, 1))])
    return SimpleNamespace(
        width=size[0],
        height=size[1],
        distortion_model=model,
        d=np.array(d, float),
        k=np.ravel(k).astype(float),
        p=np.ravel(p),
        binning_x=binning[0],
        binning_y=binning[1],
        roi=roi,
    )


def region(x, y, width, height):
    return SimpleNamespace(x_offset=x, y_offset=y, width=width, height=height)


def rays():
    """A grid of rays [N, 3] with z = 1 that a pinhole camera with K sees in the image."""
    u, v = np.meshgrid(np.arange(40.0, WIDTH, 80), np.arange(40.0, HEIGHT, 80))
    return np.stack([u.ravel(), v.ravel(), np.ones(u.size)], axis=1) @ np.linalg.inv(K).T


def project(rays, model, d):
    """Pixels [N, 2] of the full sensor at which the lens shows the rays."""
    d, zero = np.array(d, float), np.zeros(3)
    if model == "equidistant":
        return cv2.fisheye.projectPoints(rays[:, None], zero, zero, K, d)[0][:, 0]
    return cv2.projectPoints(rays, zero, zero, K, d)[0][:, 0]


def dots(pixels, width=WIDTH, height=HEIGHT, sigma=2.0):
    """Image [H, W, 3] of Gaussian dots at pixels [N, 2]."""
    y, x = np.indices((height, width))
    brightness = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2)) for u, v in pixels)
    return np.repeat(np.uint8(np.rint(255 * np.minimum(brightness, 1)))[..., None], 3, axis=2)


def readout(sensor, roi, binning):
    """What a camera sends of its sensor [H, W, 3]: the region, and of it the mean of each bin."""
    if roi.width:
        sensor = sensor[roi.y_offset : roi.y_offset + roi.height, roi.x_offset : roi.x_offset + roi.width]
    bx, by = (max(n, 1) for n in binning)
    height, width = sensor.shape[0] // by, sensor.shape[1] // bx
    bins = sensor[: height * by, : width * bx].reshape(height, by, width, bx, 3)
    return np.rint(bins.mean(axis=(1, 3))).astype(np.uint8)


def centroids(image, expected, reach):
    """Centres of brightness [N, 2] of the squares that reach so far from the expected pixels."""
    found = []
    for u, v in np.rint(expected).astype(int):
        patch = image[v - reach : v + reach + 1, u - reach : u + reach + 1, 0].astype(float)
        y, x = np.indices(patch.shape) - reach
        found.append((u + (x * patch).sum() / patch.sum(), v + (y * patch).sum() / patch.sum()))
    return np.array(found)


def errors(image, K, rays, reach=8):
    """Distance in pixels [N] of the dots from where K puts their rays, of those whose surroundings are in the image."""
    expected = (rays @ K.T)[:, :2]
    size = np.array(image.shape[1::-1])
    inside = ((expected > reach + 1) & (expected < size - reach - 2)).all(axis=1)
    assert inside.sum() >= 4
    return np.linalg.norm(centroids(image, expected[inside], reach) - expected[inside], axis=1)


@pytest.mark.parametrize("lens", LENSES)
@pytest.mark.parametrize(
    ("roi", "binning"),
    [
        (NO_ROI, (0, 0)),
        (region(0, 0, WIDTH, HEIGHT), (1, 1)),
        (NO_ROI, (2, 2)),
        (region(121, 67, 420, 350), (0, 0)),
        (region(80, 33, 483, 401), (2, 1)),  # 483 pixels are 241 bins and one that is left
    ],
    ids=["full", "full roi", "binned", "roi", "roi binned"],
)
def test_dots_come_to_lie_where_K_puts_them(lens, roi, binning):
    model, d = LENSES[lens]
    raw = readout(dots(project(rays(), model, d)), roi, binning)
    info = camera_info(model, d, roi=roi, binning=binning)
    rectified, K_image = Rectifier()(raw, info, True)
    assert rectified.shape == raw.shape and rectified.dtype == np.uint8
    assert errors(rectified, K_image, rays()).max() < 0.15


@pytest.mark.parametrize("lens", LENSES)
def test_without_rectification_dots_are_elsewhere(lens):
    """So that the test before this one can fail."""
    displaced = project(rays(), *LENSES[lens]) - (rays() @ K.T)[:, :2]
    assert np.linalg.norm(displaced, axis=1).max() > 3


@pytest.mark.parametrize("lens", ["plumb_bob 5", "equidistant"])
def test_straight_lines_become_straight(lens):
    model, d = LENSES[lens]
    ends = np.array([[(60.0, 90), (590, 60)], [(90, 440), (560, 330)], [(70, 60), (130, 430)]])
    for start, end in ends:
        line = start + np.linspace(0, 1, 400)[:, None] * (end - start)  # [400, 2]
        on_rays = np.column_stack([line, np.ones(400)]) @ np.linalg.inv(K).T
        raw = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        curve = np.rint(project(on_rays, model, d) * 16).astype(np.int32)
        cv2.polylines(raw, [curve], False, (255, 255, 255), 3, cv2.LINE_AA, shift=4)
        rectified, _ = Rectifier()(raw, camera_info(model, d), True)
        y, x = np.nonzero(rectified[..., 0] > 20)
        weights = rectified[y, x, 0].astype(float)
        along = (end - start) / np.linalg.norm(end - start)
        offset = (np.stack([x, y], axis=1) - start) @ [-along[1], along[0]]
        part = ((np.stack([x, y], axis=1) - start) @ along // 20).astype(int)  # pieces of 20 pixels
        middle = [np.average(offset[part == i], weights=weights[part == i]) for i in range(1, part.max())]
        assert np.abs(middle).max() < 0.3


def test_what_the_camera_does_not_see_is_black():
    """A pincushion lens: its corners show what lies nearer to the centre, and beyond is nothing."""
    white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    rectified, _ = Rectifier()(white, camera_info(d=[0.3, 0, 0, 0]), True)
    assert rectified[0, 0].max() == 0 and rectified[240, 320].min() == 255


def test_K_of_region_and_bins_is_that_of_pixel_centres():
    """Bin 0 of two is centred at 0.5: the principal point at 100.5 is that of the bin 50 after the region's first 0."""
    k = [[400.0, 0, 110.5], [0, 300.0, 60.0], [0, 0, 1]]
    info = camera_info(k=k, roi=region(10, 20, 200, 90), binning=(2, 3))
    np.testing.assert_allclose(decode_intrinsics(info, (30, 100)), [[200, 0, 50], [0, 100, 13], [0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize(("model", "d"), [("plumb_bob", ()), ("plumb_bob", [0.0] * 5), ("equidistant", [0.0] * 4)])
def test_an_image_without_distortion_is_not_touched(model, d):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    same, K_image = Rectifier()(image, camera_info(model, d), True)
    assert same is image
    np.testing.assert_array_equal(K_image, K)


def test_a_rectified_image_has_the_K_of_P_where_there_is_one():
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    same, K_image = Rectifier()(image, camera_info(d=[-0.3, 0.1, 0, 0], p=P), False)
    assert same is image
    np.testing.assert_array_equal(K_image, P)
    np.testing.assert_array_equal(Rectifier()(image, camera_info(d=[-0.3, 0.1, 0, 0]), False)[1], K)
    binned = Rectifier()(image[::2, ::2], camera_info(p=P, binning=(2, 2)), False)[1]
    np.testing.assert_allclose(binned, [[175, 0, 149.75], [0, 175, 114.75], [0, 0, 1]])


def test_maps_are_computed_once_for_a_calibration(monkeypatch):
    computed = []
    original = cv2.initUndistortRectifyMap

    def counted(*arguments):
        computed.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(cv2, "initUndistortRectifyMap", counted)
    image, rectifier = dots(project(rays(), *LENSES["plumb_bob 5"])), Rectifier()
    first, _ = rectifier(image, camera_info(*LENSES["plumb_bob 5"]), True)
    again, _ = rectifier(image, camera_info(*LENSES["plumb_bob 5"]), True)
    assert len(computed) == 1
    np.testing.assert_array_equal(first, again)
    other, _ = rectifier(image, camera_info(*LENSES["plumb_bob 4"]), True)
    assert len(computed) == 2 and not np.array_equal(first, other)


def test_after_a_refused_calibration_the_last_one_still_works():
    image, rectifier = dots(project(rays(), *LENSES["plumb_bob 5"])), Rectifier()
    first, _ = rectifier(image, camera_info(*LENSES["plumb_bob 5"]), True)
    with pytest.raises(ValueError):
        rectifier(image, camera_info(d=[1e300] * 5), True)
    np.testing.assert_array_equal(rectifier(image, camera_info(*LENSES["plumb_bob 5"]), True)[0], first)


def changed(position, value):
    matrix = K.copy()
    matrix[position] = value
    return matrix


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (camera_info(k=changed((0, 2), np.inf)), "K has values that are not finite"),
        (camera_info(k=np.zeros((3, 3))), "above 0, got 0.0 and 0.0; calibrate"),
        (camera_info(k=changed((1, 1), -5)), "above 0, got 420.0 and -5.0; calibrate"),
        (camera_info(k=changed((0, 1), 3)), "K must be of the form"),
        (camera_info(k=changed((2, 2), 0)), "K must be of the form"),
        (
            camera_info(size=(320, 240)),
            "for 320 x 240 pixels, the image has 640 x 480; use the camera_info of this",
        ),
        (camera_info(binning=(2, 1)), "for 320 x 480 pixels, the image has 640 x 480"),
        (camera_info(roi=region(8, 8, 100, 80)), "for 100 x 80 pixels, the image has 640 x 480"),
        (camera_info(roi=region(8, 8, 640, 480)), "lies outside of the sensor's 640 x 480; give roi in pixels"),
        (camera_info("mei", [0.1]), "'mei' is not supported; calibrate for one of plumb_bob, rational_pol"),
        (
            camera_info("plumb_bob", [0.1] * 6),
            "6 distortion coefficients, plumb_bob has 4 or 5 or 8 or 12 or 14; give",
        ),
        (camera_info("", [0.1]), "1 distortion coefficients, plumb_bob has 4 or 5"),
        (camera_info("plumb_bob", [0.1, 0, 0]), "3 distortion coefficients, plumb_bob has 4 or 5"),
        (camera_info("rational_polynomial", [0.1] * 15), "has 4 or 5 or 8 or 12 or 14"),
        (camera_info("equidistant", [0.1] * 5), "equidistant has 4"),
        (camera_info("none", [0.1] * 5), "'none' is not supported"),
        (camera_info(k=K.T), "camera_info K is transposed"),
        (camera_info(k=K / 420), "K must be of the form"),
        (camera_info(k=np.zeros((3, 3)), p=K, d=[0.1, 0, 0, 0]), "K is zero, though there is distortion; calibrate"),
        (camera_info(k=[[0.65, 0, 0.5], [0, 0.65, 0.5], [0, 0, 1]]), "K is none of an image"),
        (camera_info(k=K[:2]), "K must have 9 values, got 6"),
        (camera_info(size=(0, 0), k=changed((0, 2), 639.5)), "states no width and height, and the principal point"),
        (camera_info(d=[np.nan, 0, 0, 0]), "distortion has values that are not finite"),
        (camera_info(d=[1e300, 1e300, 0, 0]), "no finite pixels; calibrate"),
        (camera_info("equidistant", [1e300, 0, 0, 1e308]), "no finite pixels; calibrate"),
        (camera_info(d=[1e6, 0, 0, 0]), "leaves 0% of the image; check"),
    ],
)
def test_what_is_no_calibration_is_refused_with_the_fix(info, words):
    with pytest.raises(ValueError) as error:
        Rectifier()(np.zeros((HEIGHT, WIDTH, 3), np.uint8), info, True)
    assert words in str(error.value)


# The same calibration, as drivers also write it.
ALSO = {
    "plumb_bob over 8": ("plumb_bob 5", "plumb_bob", [0.0] * 3),
    "plumb_bob over 14": ("plumb_bob 4", "plumb_bob", [0.0] * 10),
    "plumb_bob over 6": ("plumb_bob 5", "plumb_bob", [0.0]),
    "rational over 5": ("plumb_bob 5", "rational_polynomial", []),
    "rational over 4": ("plumb_bob 4", "rational_polynomial", []),
    "plumb_bob over 8, all in use": ("rational 8", "plumb_bob", []),
    "unnamed over 12": ("rational 12", "", []),
    "capitals": ("plumb_bob 5", "Plumb_Bob", []),
    "Kalibr's name": ("plumb_bob 4", "radtan", []),
    "equidistant over 5": ("equidistant", "equidistant", [0.0]),
    "fisheye over 14": ("equidistant", "fisheye", [0.0] * 10),
}


@pytest.mark.parametrize("name", ALSO)
def test_what_is_the_same_calibration_gives_the_same_image(name):
    lens, model, zeros = ALSO[name]
    usual, d = LENSES[lens]
    raw = dots(project(rays(), usual, d))
    expected, _ = Rectifier()(raw, camera_info(usual, d), True)
    rectified, _ = Rectifier()(raw, camera_info(model, d + zeros), True)
    np.testing.assert_array_equal(rectified, expected)
    assert errors(rectified, K, rays()).max() < 0.15


def test_a_calibration_is_not_taken_for_one_that_differs_in_how_many_coefficients_are_sent():
    """Two coefficients in use are a calibration where four are sent, and none where two are."""
    image, rectifier = dots(project(rays(), "plumb_bob", [0.1, 0.02, 0, 0])), Rectifier()
    rectifier(image, camera_info(d=[0.1, 0.02, 0, 0]), True)
    with pytest.raises(ValueError, match="2 distortion coefficients"):
        rectifier(image, camera_info(d=[0.1, 0.02]), True)


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (camera_info(d=[0.0] * 8, k=np.zeros((3, 3)), p=P), P),  # a stream that is rectified
        (camera_info("none", [0.0] * 5), K),
        (camera_info(k=K + np.array([[0, 1e-9, 0], [2e-3, 0, 0], [0, 1e-12, 1e-8]])), K),
        (camera_info(size=(0, 0)), K),
    ],
    ids=["K zero", "none", "rounding", "no size"],
)
def test_matrices_as_drivers_write_them_are_used(info, expected, rectify):
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    same, K_image = Rectifier()(image, info, rectify)
    assert same is image
    np.testing.assert_array_equal(K_image, expected)


def test_a_corner_of_a_sensor_is_seen_by_rays_that_its_middle_is_not():
    """Its principal point lies outside of it."""
    info = camera_info(k=[[500.0, 0, 639.5], [0, 500, 479.5], [0, 0, 1]], size=(1280, 960), roi=region(0, 0, 400, 300))
    np.testing.assert_allclose(decode_intrinsics(info, (300, 400))[:2, 2], [639.5, 479.5])


def test_a_P_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="P has values that are not finite"):
        decode_intrinsics(camera_info(p=changed((0, 0), np.nan)), rectified=True)


def test_an_image_too_long_for_opencv_is_refused():
    matrix = [[40_000, 0, 20_000], [0, 40_000, 0], [0, 0, 1]]
    info = camera_info(d=[0.1, 0, 0, 0], k=matrix, size=(40_000, 1))
    with pytest.raises(ValueError, match="40000 x 1 pixels cannot be rectified; send one of at most 32766"):
        Rectifier()(np.zeros((1, 40_000, 3), np.uint8), info, True)


@pytest.fixture(params=["rclpy", "rosbags"])
def message_class(request):
    if request.param == "rosbags":
        return lambda kind: TYPES.types[f"sensor_msgs/msg/{kind}"]
    pytest.importorskip("rclpy")
    return lambda kind: getattr(import_module("sensor_msgs.msg"), kind)


def test_messages_of_either_library(message_class):
    header = import_module("std_msgs.msg").Header() if "sensor_msgs.msg" in str(message_class("Image")) else None
    roi = message_class("RegionOfInterest")(x_offset=100, y_offset=60, width=440, height=360, do_rectify=True)
    model, d = LENSES["plumb_bob 5"]
    values = dict(
        header=header,
        width=WIDTH,
        height=HEIGHT,
        distortion_model=model,
        d=np.array(d),
        k=K.ravel(),
        r=np.eye(3).ravel(),
        p=np.zeros(12),
        binning_x=2,
        binning_y=2,
        roi=roi,
    )
    raw = readout(dots(project(rays(), model, d)), roi, (2, 2))
    rectified, K_image = Rectifier()(raw, message_class("CameraInfo")(**values), True)
    assert errors(rectified, K_image, rays()).max() < 0.15


SIDE = 16


def check_refused_or_fits(image, info, rectify):
    """Either a ValueError about camera_info, or an image that shows something and whose pixels have rays."""
    try:
        rectified, K_image = Rectifier()(image, info, rectify)
    except ValueError as error:
        assert "camera_info" in str(error)
        return
    assert rectified.shape == image.shape and rectified.dtype == np.uint8
    assert rectified.mean() > 0.2 * image.mean()
    first, last = np.linalg.solve(K_image, [[0, SIDE], [0, SIDE], [1, 1]]).T
    assert np.abs(first).max() < 120 and np.abs(last).max() < 120  # tangents of less than 90 degrees


numbers = st.one_of(st.floats(), st.floats(0.1, 100), st.sampled_from([0.0, -0.0, 5e-324, 1e308]))
counts = st.sampled_from([0, 1, 2, SIDE - 1, SIDE, 2 * SIDE, 100, 2**32 - 1])


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    entries=st.one_of(st.just([20.0, 20.0, 8.0, 8.0]), st.lists(numbers, min_size=4, max_size=4)),
    size=st.one_of(st.just((SIDE, SIDE)), st.tuples(counts, counts)),
    binning=st.one_of(st.just((0, 0)), st.tuples(counts, counts)),
    roi=st.one_of(st.just((0, 0, 0, 0)), st.tuples(counts, counts, st.just(SIDE), st.just(SIDE))),
    rectify=st.booleans(),
)
def test_any_sensor_fits_or_is_refused(entries, size, binning, roi, rectify):
    focal_x, focal_y, center_x, center_y = entries
    matrix = [[focal_x, 0, center_x], [0, focal_y, center_y], [0, 0, 1]]
    info = camera_info(k=matrix, p=matrix, roi=region(*roi), binning=binning, size=size)
    check_refused_or_fits(np.full((SIDE, SIDE, 3), 200, np.uint8), info, rectify)


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    model=st.sampled_from(["plumb_bob", "", "rational_polynomial", "equidistant", "x"]),
    d=st.one_of(
        *(st.lists(st.one_of(st.floats(-1, 1), numbers), min_size=n, max_size=n) for n in (1, 4, 5, 8, 12, 14))
    ),
)
def test_any_distortion_leaves_an_image_or_is_refused(model, d):
    matrix = [[12.0, 0, 8], [0, 12, 8], [0, 0, 1]]
    info = camera_info(model, d, matrix, size=(SIDE, SIDE))
    check_refused_or_fits(np.full((SIDE, SIDE, 3), 200, np.uint8), info, True)
