# SPDX-License-Identifier: Apache-2.0
"""Images of one camera in order, from a folder, a video or a rosbag2."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from xsvggt_ros.camera import Rectifier
from xsvggt_ros.messages.bag import Bag, DamagedBag, is_bag, open_bag
from xsvggt_ros.messages.conversions import decode_image, stamp_ns

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
STATIC = "/tf_static"
FRAME_ID = "camera"  # where the source names none
FOLDER_RATE = 30.0  # images per second

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputImage:
    """One image of a camera."""

    stamp_ns: int
    image: np.ndarray  # uint8 [H, W, 3], RGB
    intrinsics: np.ndarray | None  # float64 [3, 3] of that image, where the source has them
    frame_id: str


@dataclass(frozen=True)
class Listener:
    """Takes the messages of a topic, which must be of that type; raises ValueError for those that it cannot use."""

    kind: str
    take: Callable[[Any], None]


class ImageSequence:
    """Iterates once over the images that can be used, every `stride`-th of the source.

    An image that cannot be decoded is left out, and the reason noted in `skipped`. Where the source
    breaks off, the sequence ends and `damage` says why.
    """

    def __init__(self, loaders: Iterable[Callable[[], InputImage]], length: int | None, stride: int) -> None:
        self.length = None if length is None else -(-length // stride)  # images, where known beforehand
        self.skipped: list[str] = []
        self.damage = ""
        self._loaders = islice(loaders, 0, None, stride)

    def __iter__(self) -> Iterator[InputImage]:
        try:
            for load in self._loaders:
                try:
                    image = load()
                except ValueError as error:
                    self.skipped.append(str(error))
                else:
                    yield image
        except DamagedBag as error:
            self.damage = str(error)


def open_sequence(
    path: Path,
    *,
    rate: float | None = None,
    topic: str = "",
    stride: int = 1,
    rectify: bool = True,
    others: Mapping[str, Listener] | None = None,
) -> AbstractContextManager[ImageSequence]:
    """The images of a folder, a video file, or a rosbag2 (folder, .mcap or .db3).

    A folder is read in natural order of its file names; of one that has `*.color.*` files, as RGB-D
    recordings do, only those. Image i is stamped i / rate seconds; a video's own rate is the default,
    and 30 a second in a folder. A bag's images keep their stamps, frame and CameraInfo; `topic` is its
    image topic, by default the first. Unless `rectify` is false, they are rectified by their CameraInfo.
    others: topics of a bag that are read along, each with what takes its messages; /tf_static beforehand. One that
    cannot be decoded or used is ignored, with a warning.

    Raises FileNotFoundError or ValueError, with the fix, where there are no images to be read.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder of images, a video file or a rosbag2")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    if rate is not None and not rate > 0:
        raise ValueError(f"rate must be above 0 images per second, got {rate}")
    if is_bag(path):
        if rate is not None:
            raise ValueError(f"{path} is a bag, whose images have stamps: leave the rate out")
        return _bag(path, topic, stride, rectify, others or {})
    if topic:
        raise ValueError(f"{path} is not a bag: leave the topic out")
    if others:
        raise ValueError(
            f"{path} is not a bag, which alone has {', '.join(others)}: leave out the settings that need it"
        )
    return _folder(path, rate, stride) if path.is_dir() else _video(path, rate, stride)


@contextmanager
def _folder(path: Path, rate: float | None, stride: int) -> Iterator[ImageSequence]:
    files = sorted((f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES), key=_natural_order)
    files = [file for file in files if ".color." in file.name] or files
    if not files:
        raise ValueError(f"{path} has no images ({' '.join(IMAGE_SUFFIXES)}) and is no rosbag2")
    step = 1e9 / (rate or FOLDER_RATE)
    loaders = (partial(_image_file, file, round(i * step)) for i, file in enumerate(files))
    yield ImageSequence(loaders, len(files), stride)


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Numbers by value: frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def _image_file(path: Path, stamp: int) -> InputImage:
    # Decoded as the CompressedImage that a camera would have sent of it.
    message = SimpleNamespace(format=path.suffix[1:], data=path.read_bytes())
    try:
        return InputImage(stamp, decode_image(message), None, FRAME_ID)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


@contextmanager
def _video(path: Path, rate: float | None, stride: int) -> Iterator[ImageSequence]:
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise ValueError(f"{path} is neither a video that OpenCV can read, nor a folder of images, nor a rosbag2")
        rate = rate or capture.get(cv2.CAP_PROP_FPS)
        if not rate > 0:
            raise ValueError(f"{path} does not say how many images a second it has: give the rate")
        count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        yield ImageSequence(_video_loaders(capture, 1e9 / rate), count if count > 0 else None, stride)
    finally:
        capture.release()


def _video_loaders(capture: cv2.VideoCapture, step: float) -> Iterator[Callable[[], InputImage]]:
    index = 0
    while capture.grab():
        yield partial(_video_image, capture, index, round(index * step))
        index += 1


def _video_image(capture: cv2.VideoCapture, index: int, stamp: int) -> InputImage:
    decoded, bgr = capture.retrieve()
    if not decoded:
        raise ValueError(f"image {index} of the video cannot be decoded")
    return InputImage(stamp, cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), None, FRAME_ID)


@contextmanager
def _bag(path: Path, topic: str, stride: int, rectify: bool, others: Mapping[str, Listener]) -> Iterator[ImageSequence]:
    with open_bag(path) as bag:
        topic = _image_topic(bag, topic)
        _check_topics(bag, others)
        camera = _Camera(bag, topic, rectify)
        yield ImageSequence(_bag_loaders(bag, topic, camera, others), bag.counts.get(topic), stride)


def _bag_loaders(
    bag: Bag, topic: str, camera: _Camera, others: Mapping[str, Listener]
) -> Iterator[Callable[[], InputImage]]:
    if STATIC in others:
        with suppress(DamagedBag):  # reading the images will say so
            for name, message in bag.messages([STATIC]):
                _hand_over(bag, name, message, others[name])
    for name, message in bag.messages([topic, *(name for name in others if name != STATIC)]):
        if name == topic:
            yield partial(camera.load, message)
        else:
            _hand_over(bag, name, message, others[name])


def _hand_over(bag: Bag, topic: str, message: bytes, listener: Listener) -> None:
    try:
        listener.take(bag.decode(topic, message))
    except ValueError as error:
        log.warning("%s ignored: %s", topic, error)


def _check_topics(bag: Bag, others: Mapping[str, Listener]) -> None:
    missing = [name for name in others if name not in bag.topics and not name.startswith("/tf")]
    if missing:
        there = ", ".join(f"{name} ({kind})" for name, kind in bag.topics.items())
        raise ValueError(f"{bag.path} has no topic {' '.join(missing)}; topics in it: {there}")
    for name, listener in others.items():
        if bag.topics.get(name, listener.kind) != listener.kind:
            raise ValueError(f"{name} of {bag.path} is a {bag.topics[name]}, it must be a {listener.kind}")


def _image_topic(bag: Bag, topic: str) -> str:
    there = [name for name, kind in bag.topics.items() if kind in IMAGE_TYPES]
    listed = ", ".join(there) or "none"
    if not there or (topic and topic not in there):
        raise ValueError(f"{bag.path} has no image topic {topic}".rstrip() + f"; image topics in it: {listed}")
    if not topic and len(there) > 1:
        log.warning("using %s; image topics in %s: %s", there[0], bag.path, listed)
    return topic or there[0]


class _Camera:
    """The messages of one image topic as images, with the camera's calibration where the bag has one."""

    def __init__(self, bag: Bag, topic: str, rectify: bool) -> None:
        self._bag = bag
        self._topic = topic
        self._rectify = rectify
        self._rectifier = Rectifier()
        self._info = self._first_info()
        self._info_error = ""

    def load(self, message: bytes) -> InputImage:
        msg = self._bag.decode(self._topic, message)
        stamp = stamp_ns(msg.header)
        try:
            image = decode_image(msg)
        except ValueError as error:
            raise ValueError(f"image of {stamp} ns: {error}") from error
        return InputImage(stamp, *self._rectified(image), msg.header.frame_id or FRAME_ID)

    def _first_info(self) -> Any:
        """CameraInfo beside the image topic, as image_transport names it: the first holds for the whole bag."""
        base = self._topic.removesuffix("/compressed").rpartition("/")[0]
        info = f"{base}/camera_info"
        if self._bag.topics.get(info) != CAMERA_INFO_TYPE:
            return None
        try:
            message = next(self._bag.messages([info]), None)
            return None if message is None else self._bag.decode(*message)
        except DamagedBag:  # reading the images will say so
            return None
        except ValueError as error:
            log.warning("camera_info ignored: %s", error)
            return None

    def _rectified(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        if self._info is None:
            return image, None
        try:
            return self._rectifier(image, self._info, self._rectify)
        except ValueError as error:
            if str(error) != self._info_error:
                self._info_error = str(error)
                log.warning("camera_info ignored: %s", error)
            return image, None
