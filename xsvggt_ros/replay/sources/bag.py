# SPDX-License-Identifier: Apache-2.0
"""A rosbag2: the images of one topic, their calibration, and what a placement needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from xsvggt_ros.messages.bag import Bag, DamagedBag, Rows, open_bag
from xsvggt_ros.messages.decode import Damaged
from xsvggt_ros.messages.topics import CAMERA_INFO, CAMERA_INFO_TYPE, IMAGE, REFERENCES, TF, TF_STATIC
from xsvggt_ros.replay.sources.source import Messages, Source
from xsvggt_ros.replay.sources.topic_choice import image_topic

log = logging.getLogger(__name__)


@contextmanager
def open_recording(path: Path, topic: str, stride: int, references: Mapping[str, str]) -> Iterator[Source]:
    with open_bag(path) as bag:
        topic = image_topic(bag, topic)
        _check_topics(bag, references)
        yield Source(_bag_messages(bag, topic, stride, references), bag.counts[topic], stride)


def _bag_messages(bag: Bag, topic: str, stride: int, references: Mapping[str, str]) -> Messages:
    names = {in_bag: name for name, in_bag in references.items()}
    if info := _info_topic(bag, topic):
        with suppress(DamagedBag):  # reading the images will say so
            yield from _first_infos(_decoded(bag, bag.messages([info]), {info: CAMERA_INFO}))
    if TF_STATIC in names:
        with suppress(DamagedBag):
            yield from _decoded(bag, bag.messages([TF_STATIC]), names)
    images = count()
    for in_bag, data in bag.messages([topic, *(name for name in names if name != TF_STATIC)]):
        if in_bag != topic:
            yield from _decoded(bag, iter([(in_bag, data)]), names)
        elif next(images) % stride == 0:
            yield IMAGE, _bag_image(bag, topic, data)


def _bag_image(bag: Bag, topic: str, data: bytes | memoryview) -> Any:
    try:
        return bag.decode(topic, data)
    except ValueError as error:
        return Damaged(str(error))


def _first_infos(infos: Messages) -> Messages:
    """The first of each camera that can be decoded, which holds for the whole bag."""
    cameras = set()
    for topic, info in infos:
        if info.header.frame_id in cameras:
            return
        cameras.add(info.header.frame_id)
        yield topic, info


def _info_topic(bag: Bag, topic: str) -> str:
    """CameraInfo beside the image topic, as image_transport names it; empty, which is said, if it is elsewhere."""
    namespace, _, last = topic.rpartition("/")
    beside = [f"{namespace}/camera_info"]
    if last.startswith("compressed"):  # beside the topic of which this is the compressed one
        beside.append(f"{namespace.rpartition('/')[0]}/camera_info")
    there = {
        name.strip("/"): name for name, kind in bag.topics.items() if kind == CAMERA_INFO_TYPE and bag.counts[name]
    }
    for name in beside:
        if name.strip("/") in there:
            return there[name.strip("/")]
    if there:
        expected, others = " or ".join(beside), ", ".join(there.values())
        log.warning(
            "no CameraInfo on %s, the model guesses the intrinsics; CameraInfo topics there: %s", expected, others
        )
    return ""


def _decoded(bag: Bag, messages: Rows, names: Mapping[str, str]) -> Messages:
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
