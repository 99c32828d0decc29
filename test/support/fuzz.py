# SPDX-License-Identifier: Apache-2.0
"""Random messages, well-formed and broken, and what must become of them: by another way than the code's.

The messages are rclpy's. `run_cases` and `drawn` are the ways to draw them.
"""

from __future__ import annotations

import array
import io
import math
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nav_msgs.msg import Odometry
from PIL import Image as PilImage
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

SHORT = 10  # the short form has one of so many cases
UINT32 = 2**32 - 1

# Bytes of a pixel, as sensor_msgs/image_encodings.hpp has them.
COLOURS = {"rgb8": 3, "bgr8": 3, "8UC3": 3, "rgba8": 4, "bgra8": 4, "8UC4": 4}
GREYS = {"mono8": 1, "8UC1": 1, "mono16": 2, "16UC1": 2}
SHARED = {"yuv422": 2, "uyvy": 2, "yuv422_yuy2": 2, "yuyv": 2}
MOSAICS = {f"bayer_{order}{bits}": bits // 8 for order in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)}
PIXEL_BYTES = COLOURS | GREYS | SHARED | MOSAICS
DEPTH_BYTES = {"32FC1": 4, "16UC1": 2}

FRAMES = ["map", "odom", "base", "/base", "lens", "", "ünïcode \n", "../../x"]
ODD_FLOATS = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e308, -1e308, 1e200, 1e-200, 5e-324]
floats = st.one_of(st.floats(-10, 10), st.sampled_from(ODD_FLOATS), st.floats())
seeds = st.integers(0, UINT32)
names = st.one_of(st.sampled_from(FRAMES), st.text(max_size=8).map(lambda text: text.replace("\0", "")))


def run_cases(endurance: bool, check: Callable[[Any], None], strategy: st.SearchStrategy, cases: int) -> None:
    """Checks `cases` draws with --endurance; otherwise fewer, the same ones every time that the code is the same."""
    form = settings(
        max_examples=cases if endurance else max(1, cases // SHORT),
        derandomize=not endurance,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    form(given(strategy)(check))()


def drawn(endurance: bool, strategy: st.SearchStrategy, cases: int) -> list:
    """The draws themselves, for tests in which the order counts."""
    found: list = []
    run_cases(endurance, lambda draw: found.append(draw), strategy, cases)
    return found


def stamp(ns: int) -> Time:
    sec, nanosec = divmod(ns, 10**9)
    return Time(sec=sec, nanosec=nanosec)


stamps = st.one_of(
    st.integers(0, 3 * 10**9).map(stamp),
    st.builds(
        Time,
        sec=st.sampled_from([-(2**31), -1, 2**31 - 1]) | st.integers(-(2**31), 2**31 - 1),
        nanosec=st.sampled_from([10**9 - 1, 10**9, UINT32]) | st.integers(0, UINT32),
    ),
)
headers = st.builds(Header, stamp=stamps, frame_id=names)


def byte_array(data: Any) -> array.array:
    made = array.array("B")
    made.frombytes(np.ascontiguousarray(data).view(np.uint8).tobytes() if isinstance(data, np.ndarray) else data)
    return made


# Image


def image(encoding: str, height: int, step: int, width: int, rows: np.ndarray) -> Image:
    return Image(height=height, width=width, encoding=encoding, step=step, data=byte_array(rows))


@st.composite
def wrong_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Values for one or two fields of an Image, which may be what they were."""
    sizes = st.one_of(st.integers(0, 20), st.sampled_from([2**16, 2**31, UINT32]))
    fields = dict(
        height=sizes,
        width=sizes,
        step=st.one_of(st.integers(0, 90), st.just(UINT32)),
        encoding=st.one_of(st.sampled_from([*PIXEL_BYTES, *DEPTH_BYTES, "RGB8", "64FC1", ""]), names),
        is_bigendian=st.sampled_from([1, 255]),
        data=st.binary(max_size=99).map(byte_array),
    )
    return {name: draw(fields[name]) for name in draw(st.sets(st.sampled_from(sorted(fields)), min_size=1, max_size=2))}


Sizes = st.SearchStrategy[tuple[int, int]]  # height and width of a picture


def sizes(most: int) -> Sizes:
    return st.tuples(st.integers(1, most), st.integers(1, most))


SMALL, LESS_SMALL = sizes(20), sizes(40)


@st.composite
def images(
    draw: st.DrawFn, pixel_bytes: dict[str, int] = PIXEL_BYTES, wrong: float = 1 / 3, sizes: Sizes = SMALL
) -> Image:
    """Well-formed but for a share of them, `wrong`, which have fields that hardly fit."""
    encoding = draw(st.sampled_from(sorted(pixel_bytes)))
    height, width = draw(sizes)
    width += width % 2 if encoding in SHARED else 0
    step = width * pixel_bytes[encoding] + draw(st.sampled_from([0, 0, 1, 7]))
    rows = np.random.default_rng(draw(seeds)).integers(0, 256, (height, step), np.uint8)
    if encoding == "32FC1":
        rows[:, : 4 * width] = draw_depths(draw, height, width)
    msg = image(encoding, height, step, width, rows)
    for name, value in (draw(wrong_fields()) if draw(st.integers(0, 99)) >= 100 * (1 - wrong) else {}).items():
        setattr(msg, name, value)
    return msg


def draw_depths(draw: st.DrawFn, height: int, width: int) -> np.ndarray:
    values = np.random.default_rng(draw(seeds)).uniform(-1, 10, (height, width)).astype("<f4")
    odd = draw(st.lists(st.tuples(st.integers(0, values.size - 1), st.floats(width=32)), max_size=4))
    for index, value in odd:
        values.ravel()[index] = value
    return values.view(np.uint8)


def rows_of(msg: Image, pixel_bytes: dict[str, int]) -> np.ndarray | None:
    """The rows [h, bytes] without padding; None if the message must be refused."""
    size = pixel_bytes.get(msg.encoding, 0)
    fits = msg.width and msg.height and size and msg.step >= msg.width * size
    if not fits or len(msg.data) != msg.step * msg.height:
        return None
    if (msg.is_bigendian and ("16" in msg.encoding or "32" in msg.encoding)) or (
        msg.encoding in SHARED and msg.width % 2
    ):
        return None
    return np.frombuffer(msg.data, np.uint8).reshape(msg.height, msg.step)[:, : msg.width * size]


def check_pixels(decoded: np.ndarray, msg: Image, rows: np.ndarray) -> None:
    """That they are those of the message."""
    assert decoded.dtype == np.uint8
    assert decoded.shape == (msg.height, msg.width, 3)
    if msg.encoding in COLOURS:
        colours = rows.reshape(*decoded.shape[:2], -1)
        order = [0, 1, 2] if msg.encoding.startswith("rgb") else [2, 1, 0]
        assert np.array_equal(decoded, colours[..., order])
    elif msg.encoding in SHARED:
        assert np.abs(decoded - _shared_colour(rows, msg.encoding)).max() <= 2
    else:
        samples = np.ascontiguousarray(rows).view("<u2" if PIXEL_BYTES[msg.encoding] == 2 else "u1").astype(float)
        if PIXEL_BYTES[msg.encoding] == 2:
            least, most = samples.min(), samples.max()
            samples = (samples - least) * 255 / max(1, most - least)
        _check_samples(decoded.astype(float), msg.encoding, samples)


def _shared_colour(rows: np.ndarray, encoding: str) -> np.ndarray:
    """RGB of 4:2:2 by ITU-R BT.601, whose luma has 16 to 235."""
    quads = rows.reshape(len(rows), -1, 4).astype(float)  # [h, w / 2, 4]
    luma, first = (quads[..., 1::2], 0) if encoding in ("yuv422", "uyvy") else (quads[..., 0::2], 1)
    y = luma.reshape(len(rows), -1)
    u, v = (np.repeat(quads[..., first + n], 2, axis=1) - 128 for n in (0, 2))
    y = 1.164 * np.maximum(y - 16, 0)
    return np.clip(np.stack([y + 1.596 * v, y - 0.391 * u - 0.813 * v, y + 2.018 * u], -1), 0, 255)


def _check_samples(decoded: np.ndarray, encoding: str, samples: np.ndarray) -> None:
    if encoding in GREYS:
        assert np.abs(decoded - samples[..., None]).max() <= 1
        return
    for at, letter in enumerate(encoding.removeprefix("bayer_")[:4]):  # a filtered colour stays in its place
        top, left = divmod(at, 2)
        inner = np.zeros(samples.shape, bool)
        inner[top::2, left::2] = True
        inner[[0, -1]] = inner[:, [0, -1]] = False  # which are made of their neighbours
        assert np.abs(decoded[..., "rgb".index(letter)] - samples)[inner].max(initial=0) <= 1


# CompressedImage

SUFFIXES = {"png": True, "bmp": True, "jpg": False, "webp": False}  # whether it keeps the pixels


@st.composite
def compressed(draw: st.DrawFn, sizes: Sizes = LESS_SMALL) -> tuple[CompressedImage, np.ndarray | None, str]:
    """A message; the picture, RGB, if the bytes are whole; how they were damaged."""
    suffix = draw(st.sampled_from(sorted(SUFFIXES)))
    small = np.random.default_rng(draw(seeds)).integers(0, 256, (3, 4, 3), np.uint8)
    picture = cv2.resize(small, draw(sizes)[::-1])
    whole = bytearray(cv2.imencode(f".{suffix}", picture[..., ::-1])[1].tobytes())
    damage = draw(st.sampled_from(["none", "none", "cut", "flips", "noise", "foreign"]))
    if damage == "cut":
        del whole[draw(st.integers(0, max(0, len(whole) - 13))) :]
    elif damage == "flips":
        for at, bit in draw(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 7)), min_size=1)):
            whole[at] ^= 1 << bit
    elif damage == "noise":
        whole[draw(st.integers(0, len(whole))) :] = draw(st.binary(max_size=60))
    elif damage == "foreign":
        whole = bytearray(draw(st.sampled_from(MAGIC)) + draw(st.binary(max_size=60)))
    msg = CompressedImage(header=draw(headers), format=draw(st.one_of(st.just(suffix), names)), data=byte_array(whole))
    return msg, picture if damage == "none" else None, f"{suffix} {damage}"


# What OpenCV takes for the begin of a format, which a sender can choose.
MAGIC = [
    b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF89a", b"II*\0", b"MM\0*", b"RIFF\x10\0\0\0WEBP", b"P6 9 9 255 ",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\x76\x2f\x31\x01", b"#?RADIANCE\n", b"\x59\xa6\x6a\x95", b"\0\0\0\x20ftypavif",
]  # fmt: skip


def check_compressed(decoded: np.ndarray, msg: CompressedImage, picture: np.ndarray | None) -> None:
    assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3 and decoded.size
    if picture is None:
        return
    pil = PilImage.open(io.BytesIO(bytes(msg.data)))
    assert decoded.shape == picture.shape
    if pil.format in ("PNG", "BMP"):
        assert np.array_equal(decoded, picture)
    else:
        assert np.abs(decoded.astype(int) - np.asarray(pil.convert("RGB"))).max() <= 4


# CameraInfo

SIZE = (24, 32)  # rows and columns of the images that the calibrations are for
LENSES = {"plumb_bob": (4, 5), "": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}


@st.composite
def camera_infos(draw: st.DrawFn) -> CameraInfo:
    """A calibration, most often for images of SIZE, as plausible as not."""
    odd = draw(st.sampled_from([False, False, True]))
    info = _plausible(draw)
    if not odd:
        return info
    fields: dict[str, st.SearchStrategy] = dict(
        height=st.sampled_from([0, 1, 48, UINT32]),
        width=st.sampled_from([0, 1, 64, UINT32]),
        distortion_model=st.one_of(st.sampled_from([*LENSES, "fov", "PLUMB_BOB"]), names),
        d=st.lists(floats, max_size=15),
        binning_x=st.sampled_from([1, 2, 3, UINT32]),
        binning_y=st.sampled_from([1, 2, 3, UINT32]),
    )
    for name in draw(st.sets(st.sampled_from([*sorted(fields), "k", "p", "roi"]), min_size=1, max_size=3)):
        if name in fields:
            setattr(info, name, draw(fields[name]))
        elif name == "roi":
            for side in ("x_offset", "y_offset", "width", "height"):
                setattr(info.roi, side, draw(st.sampled_from([0, 1, 32, 24, UINT32])))
        else:
            getattr(info, name)[draw(st.integers(0, 8))] = draw(floats)
    return info


def _plausible(draw: st.DrawFn) -> CameraInfo:
    height, width = SIZE
    rows, columns = draw(st.sampled_from([0, 1, 2])), draw(st.sampled_from([0, 1, 3]))
    info = CameraInfo(binning_x=columns, binning_y=rows)
    wide, high = width * max(1, columns), height * max(1, rows)
    info.width, info.height = wide, high
    if draw(st.booleans()):
        x, y = draw(st.integers(0, 9)), draw(st.integers(0, 9))
        info.width, info.height = wide + x + draw(st.integers(0, 9)), high + y + draw(st.integers(0, 9))
        info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = x, y, wide, high
    fx, fy = draw(st.floats(0.5, 3)) * info.width, draw(st.floats(0.5, 3)) * info.height
    cx, cy = draw(st.floats(0.3, 0.7)) * info.width, draw(st.floats(0.3, 0.7)) * info.height
    info.k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
    info.p = [1.1 * fx, 0.0, cx, 0.0, 0.0, 1.2 * fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0] if draw(st.booleans()) else [0.0] * 12
    info.distortion_model = draw(st.sampled_from(sorted(LENSES)))
    count = draw(st.sampled_from(LENSES[info.distortion_model]))
    info.d = [draw(st.floats(-0.05, 0.05)) for _ in range(count)] if draw(st.booleans()) else []
    return info


# References


@st.composite
def odometries(draw: st.DrawFn, values: st.SearchStrategy = floats) -> Odometry:
    msg = Odometry(header=draw(headers), child_frame_id=draw(names))
    fill(draw, msg.pose.pose.position, "xyz", values)
    fill(draw, msg.pose.pose.orientation, "xyzw", values)
    return msg


@st.composite
def transforms(draw: st.DrawFn, values: st.SearchStrategy = floats) -> TransformStamped:
    msg = TransformStamped(header=draw(headers), child_frame_id=draw(names))
    fill(draw, msg.transform.translation, "xyz", values)
    fill(draw, msg.transform.rotation, "xyzw", values)
    return msg


def fill(draw: st.DrawFn, vector: Any, fields: str, values: st.SearchStrategy) -> None:
    usual = st.floats(-10, 10)
    for name, odd in zip(fields, draw(st.lists(st.integers(0, 9).map(lambda n: n == 0), min_size=4)), strict=False):
        setattr(vector, name, draw(values if odd else usual))


def depth_of(msg: Image, rows: np.ndarray) -> np.ndarray:
    """Metres, float64; NaN where there is no depth."""
    samples = np.ascontiguousarray(rows).view("<f4" if msg.encoding == "32FC1" else "<u2")
    metres = samples.astype(np.float64) / (1 if msg.encoding == "32FC1" else 1000)
    return np.where(np.isfinite(metres) & (metres > 0), metres, np.nan)
