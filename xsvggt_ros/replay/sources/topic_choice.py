# SPDX-License-Identifier: Apache-2.0
"""Which of a bag's image topics is the camera that is meant, where the user does not say."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

from xsvggt_ros.messages.bag import Bag, DamagedBag
from xsvggt_ros.messages.decode import DEPTH_ENCODINGS, decode_image
from xsvggt_ros.messages.topics import IMAGE_TYPES

log = logging.getLogger(__name__)

LOOKED_AT = 3  # images of a topic: the first may be black, or cut off
LEVEL = 0.9  # topics with so much of the largest number of images have as many: recorders lose some of each
COLOUR, MONO, DEPTH, UNREADABLE, EMPTY = "colour", "mono", "depth", "cannot be decoded", "no messages"


@dataclass(frozen=True)
class Candidate:
    topic: str
    count: int
    content: str
    raw: bool

    def __str__(self) -> str:
        return f"{self.topic} ({self.content if self.content == EMPTY else f'{self.count}, {self.content}'})"


def image_topic(bag: Bag, topic: str) -> str:
    """The topic that is asked for, else the one with the most colour or mono images.

    Of those with about as many, a coloured one is taken before a mono one, a raw one before a compressed one, and then
    the first. Raises ValueError, with what there is, if there are no such images.
    """
    there = [name for name, kind in bag.topics.items() if kind in IMAGE_TYPES]
    if not there or (topic and topic not in there):
        raise ValueError(
            f"{bag.path} has no image topic {topic}".rstrip() + f"; image topics in it: {_names(bag, there)}"
        )
    if topic:
        if not bag.counts[topic]:
            counts = ", ".join(f"{name} ({bag.counts[name]})" for name in there)
            raise ValueError(f"{topic} of {bag.path} has no messages; image topics in it: {counts}")
        return topic
    candidates = [_candidate(bag, name) for name in there]
    chosen = _best(bag, candidates)
    if len(candidates) > 1:
        others = ", ".join(str(candidate) for candidate in candidates if candidate is not chosen)
        log.warning("using %s; other image topics in %s: %s", chosen, bag.path, others)
    return chosen.topic


def _names(bag: Bag, topics: list[str]) -> str:
    if topics:
        return ", ".join(topics)
    others = [f"{name} ({kind})" for name, kind in (bag.topics | bag.foreign).items()]
    return f"none, but {', '.join(others)}" + ("; only cdr, as ROS 2 writes it, is read" if bag.foreign else "")


def _best(bag: Bag, candidates: list[Candidate]) -> Candidate:
    usable = [candidate for candidate in candidates if candidate.content in (COLOUR, MONO)]
    # Nothing is known against the later images of a topic whose first cannot be decoded.
    usable = usable or [candidate for candidate in candidates if candidate.content == UNREADABLE]
    if not usable:
        raise ValueError(
            f"{bag.path} has no colour or mono images; image topics in it: {', '.join(map(str, candidates))}; "
            "depth is no picture (16UC1 is taken for mono16 if --topic names it); record the colour topic"
        )
    most = max(candidate.count for candidate in usable)
    level = [candidate for candidate in usable if candidate.count >= LEVEL * most]
    return min(level, key=lambda candidate: (candidate.content != COLOUR, not candidate.raw))


def _candidate(bag: Bag, topic: str) -> Candidate:
    count = bag.counts[topic]
    content = _content(bag, topic) if count else EMPTY
    return Candidate(topic, count, content, IMAGE_TYPES[bag.topics[topic]] == "raw")


def _content(bag: Bag, topic: str) -> str:
    contents = []
    with suppress(DamagedBag):  # reading the images will say so
        for _, data in islice(bag.messages([topic]), LOOKED_AT):
            with suppress(ValueError):
                contents.append(_shown(bag.decode(topic, data)))
    return next((content for content in (COLOUR, MONO, DEPTH) if content in contents), UNREADABLE)


def _shown(message: Any) -> str:
    """Raises ValueError if the image cannot be decoded."""
    # A compressed one states the encoding of the raw one before it: "16UC1; png compressed".
    encoding = getattr(message, "encoding", None) or getattr(message, "format", "").partition(";")[0].strip()
    depths = [name.lower() for name in DEPTH_ENCODINGS]
    if encoding.lower() in depths or "compresseddepth" in getattr(message, "format", "").lower():
        return DEPTH
    image = decode_image(message)
    return COLOUR if (image != image[..., :1]).any() else MONO
