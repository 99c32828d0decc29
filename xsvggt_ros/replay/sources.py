# SPDX-License-Identifier: Apache-2.0
"""What a folder, a video or a rosbag2 holds of one camera, as the messages that a node would have received."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
from natsort import natsorted

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.frame import InputImage
from xsvggt_ros.messages.bag import Bag, DamagedBag, is_bag, open_bag
from xsvggt_ros.messages.decode import FRAME_ID, CameraDecoder, Damaged, decode_image, stamp_ns
from xsvggt_ros.messages.topics import (
    CAMERA_INFO,
    CAMERA_INFO_TYPE,
    IMAGE,
    IMAGE_TYPES,
    REFERENCES,
    TF,
    TF_STATIC,
    references,
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FOLDER_RATE = 30.0  # images per second

log = logging.getLogger(__name__)

Messages = Iterator[tuple[str, Any]]  # topic, as messages.topics names it, and message


@dataclass(frozen=True)
class ImageFile:
    """The bytes of an image file as the CompressedImage that a camera would have sent of it."""

    header: Any
    format: str
    data: bytes
    name: str


class Source:
    """Iterates once over a recording's messages, in order; of the images, over every `stride`-th.

    /tf_static and the first camera_info come before all else: they hold for the whole recording. Where the recording
    breaks off, the messages end and `damage` says why.
    """

    def __init__(self, messages: Messages, length: int | None, stride: int) -> None:
        self.length = None if length is None else -(-length // stride)  # images, where known beforehand
        self.damage = ""
        self._messages = messages

    def __iter__(self) -> Messages:
        try:
            yield from self._messages
        except DamagedBag as error:
            self.damage = str(error)


class Images:
    """Iterates once over the images of a source that can be used; `skipped` says why others cannot.

    rectify: undo the distortion that the source's camera_info states.
    """

    def __init__(self, source: Source, rectify: bool = True) -> None:
        self.skipped: list[str] = []
        self._source = source
        self._rectify = rectify

    def __iter__(self) -> Iterator[InputImage]:
        camera = CameraDecoder(warn=log.warning)
        for topic, message in self._source:
            if topic == CAMERA_INFO:
                camera.camera_info = message
            if topic != IMAGE:
                continue
            try:
                yield camera.decode(message, self._rectify)
            except ValueError as error:
                self.skipped.append(complaint(message, str(error)))


def complaint(message: Any, reason: str) -> str:
    """Why an image is not used, with what tells it from the others."""
    name = getattr(message, "name", "")
    if not name:
        with suppress(ValueError, AttributeError):  # it has no stamp, and that is the reason
            name = f"image of {stamp_ns(message.header)} ns"
    return f"{name}: {reason}" if name else reason


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """The recording, and what is read of it."""
    parser.add_argument(
        "input", type=Path, help="folder of images, video file, or rosbag2 (folder, .mcap or .db3), whole or cut off"
    )
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="use every N-th image (default: 1)")
    parser.add_argument(
        "--rate", type=float, metavar="HZ", help="images per second (default: the video's own, 30 for a folder)"
    )
    parser.add_argument("--topic", default="", help="image topic of a bag (default: the first)")
    parser.add_argument(
        "--reference", default="", metavar="TOPIC", help="odometry or depth topic of a bag that scale.source names"
    )


def open_source(
    path: Path,
    *,
    rate: float | None = None,
    topic: str = "",
    stride: int = 1,
    references: Mapping[str, str] | None = None,
) -> AbstractContextManager[Source]:
    """What a folder, a video file, or a rosbag2 (folder, .mcap or .db3) holds.

    A folder is read in natural order of its file names; of one that has `*.color.*` files, as RGB-D
    recordings do, only those. Image i is stamped i / rate seconds; a video's own rate is the default,
    and 30 a second in a folder. A bag's images keep their stamps, frame and CameraInfo; `topic` is its
    image topic, by default the first.
    references: topic of messages.topics.REFERENCES -> topic of the bag that is read along under that name; one of its
    messages that cannot be decoded is ignored, with a warning.

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
        return _bag(path, topic, stride, references or {})
    if topic:
        raise ValueError(f"{path} is not a bag: leave the topic out")
    if references:
        raise ValueError(
            f"{path} is not a bag, which alone has {', '.join(references.values())}: "
            "leave out the settings that need it"
        )
    return _folder(path, rate, stride) if path.is_dir() else _video(path, rate, stride)


def bag_topics(config: NodeConfig, reference: str) -> dict[str, str]:
    """What the placement needs -> topic of the bag; `reference` is that of the robot's odometry or depth.

    Raises ValueError, with the fix, where `reference` is missing or needless.
    """
    wanted = references(config)
    if reference and not any(name.startswith("reference/") for name in wanted):
        raise ValueError(f"scale.source {config.scale.source} does not use a reference topic: leave it out")
    topics = {name: reference if name.startswith("reference/") else name for name in wanted}
    if not all(topics.values()):
        raise ValueError(f"scale.source {config.scale.source}: name the topic of the bag with --reference")
    return topics


def usable(source: Source, path: Path) -> Iterator[tuple[str, Any]]:
    """The messages of a source that has at least one image that can be decoded. Raises ValueError if it has none."""
    messages, read, reason = iter(source), [], ""
    for topic, message in messages:
        read.append((topic, message))
        if topic == IMAGE:
            try:
                decode_image(message)
                return chain(read, messages)
            except ValueError as error:
                reason = reason or complaint(message, str(error))
    raise ValueError(f"{path} has no image that can be used: {reason or source.damage or 'it is empty'}")


@contextmanager
def _folder(path: Path, rate: float | None, stride: int) -> Iterator[Source]:
    files = natsorted((f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES), key=lambda file: file.name)
    files = [file for file in files if ".color." in file.name] or files
    if not files:
        raise ValueError(f"{path} has no images ({' '.join(IMAGE_SUFFIXES)}) and is no rosbag2")
    step = 1e9 / (rate or FOLDER_RATE)
    images = ((IMAGE, _image_file(files[i], round(i * step))) for i in range(0, len(files), stride))
    yield Source(images, len(files), stride)


def _image_file(path: Path, stamp: int) -> ImageFile:
    return ImageFile(_header(stamp), path.suffix[1:], path.read_bytes(), path.name)


def _header(stamp: int) -> Any:
    sec, nanosec = divmod(stamp, 1_000_000_000)
    return SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=nanosec), frame_id=FRAME_ID)


@contextmanager
def _video(path: Path, rate: float | None, stride: int) -> Iterator[Source]:
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise ValueError(f"{path} is neither a video that OpenCV can read, nor a folder of images, nor a rosbag2")
        rate = rate or capture.get(cv2.CAP_PROP_FPS)
        if not rate > 0:
            raise ValueError(f"{path} does not say how many images a second it has: give the rate")
        length = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        yield Source(_video_images(capture, 1e9 / rate, stride), length if length > 0 else None, stride)
    finally:
        capture.release()


def _video_images(capture: cv2.VideoCapture, step: float, stride: int) -> Messages:
    for index in count():
        if not capture.grab():
            return
        if index % stride == 0:
            yield IMAGE, _video_image(capture, index, round(index * step))


def _video_image(capture: cv2.VideoCapture, index: int, stamp: int) -> Any:
    """As the Image that a camera would have sent of it."""
    decoded, bgr = capture.retrieve()
    if not decoded:
        return Damaged(f"image {index} of the video cannot be decoded")
    height, width = bgr.shape[:2]
    return SimpleNamespace(
        header=_header(stamp),
        height=height,
        width=width,
        encoding="bgr8",
        is_bigendian=0,
        step=3 * width,
        data=bgr.reshape(-1),
    )


@contextmanager
def _bag(path: Path, topic: str, stride: int, references: Mapping[str, str]) -> Iterator[Source]:
    with open_bag(path) as bag:
        topic = _image_topic(bag, topic)
        _check_topics(bag, references)
        yield Source(_bag_messages(bag, topic, stride, references), bag.counts.get(topic), stride)


def _bag_messages(bag: Bag, topic: str, stride: int, references: Mapping[str, str]) -> Messages:
    names = {in_bag: name for name, in_bag in references.items()}
    with suppress(DamagedBag):  # reading the images will say so
        yield from _first_info(bag, topic)
    if TF_STATIC in names:
        with suppress(DamagedBag):
            yield from _decoded(bag, bag.messages([TF_STATIC]), names)
    images = count()
    for in_bag, data in bag.messages([topic, *(name for name in names if name != TF_STATIC)]):
        if in_bag != topic:
            yield from _decoded(bag, [(in_bag, data)], names)
        elif next(images) % stride == 0:
            yield IMAGE, _bag_image(bag, topic, data)


def _bag_image(bag: Bag, topic: str, data: bytes) -> Any:
    try:
        return bag.decode(topic, data)
    except ValueError as error:
        return Damaged(str(error))


def _first_info(bag: Bag, topic: str) -> Messages:
    """CameraInfo beside the image topic, as image_transport names it: the first holds for the whole bag."""
    info = f"{topic.removesuffix('/compressed').rpartition('/')[0]}/camera_info"
    if bag.topics.get(info) != CAMERA_INFO_TYPE:
        return
    for message in bag.messages([info]):
        yield from _decoded(bag, [message], {info: CAMERA_INFO})
        return


def _decoded(bag: Bag, messages: Iterable[tuple[str, bytes]], names: Mapping[str, str]) -> Messages:
    """Those that can be decoded, under their names."""
    for topic, data in messages:
        try:
            message = bag.decode(topic, data)
        except ValueError as error:
            log.warning("%s ignored: %s", names[topic], error)
        else:
            yield names[topic], message


def _check_topics(bag: Bag, references: Mapping[str, str]) -> None:
    optional = (TF, TF_STATIC)
    missing = [topic for name, topic in references.items() if topic not in bag.topics and name not in optional]
    if missing:
        there = ", ".join(f"{name} ({kind})" for name, kind in bag.topics.items())
        raise ValueError(f"{bag.path} has no topic {' '.join(missing)}; topics in it: {there}")
    for name, topic in references.items():
        kind = REFERENCES[name]
        if bag.topics.get(topic, kind) != kind:
            raise ValueError(f"{topic} of {bag.path} is a {bag.topics[topic]}, it must be a {kind}")


def _image_topic(bag: Bag, topic: str) -> str:
    there = [name for name, kind in bag.topics.items() if kind in IMAGE_TYPES]
    listed = ", ".join(there) or "none"
    if not there or (topic and topic not in there):
        raise ValueError(f"{bag.path} has no image topic {topic}".rstrip() + f"; image topics in it: {listed}")
    if not topic and len(there) > 1:
        log.warning("using %s; image topics in %s: %s", there[0], bag.path, listed)
    return topic or there[0]
