# SPDX-License-Identifier: Apache-2.0
"""What a part of a recording has, whichever way it is stored."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

Rows = Iterator[tuple[str, bytes | memoryview]]  # topic, serialized message
ENCODINGS = ("cdr", "")  # of ROS 2's messages; the first recorders left the name out


class DamagedPart(ValueError):
    """What of a part is missing, or that nothing of it can be read."""


class Part(ABC):
    """One storage file. Whatever is no message of ROS 2 is left out: a storage may hold other tools' data too.

    A damaged one has the topics and counts of what is left of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.topics: dict[str, str] = {}  # topic -> message type
        self.counts: Counter[str] = Counter()  # topic -> messages
        self.foreign: dict[str, str] = {}  # topic -> why it is left out
        self._channels: dict[int, tuple[str, str]] = {}  # number in the file -> topic, type, empty if foreign

    @abstractmethod
    def rows(self, topics: Mapping[str, str]) -> Rows:
        """Messages of topic -> type, in order of time. Raises DamagedPart at the end, if some are missing."""

    def _add_channel(self, number: int, topic: str, kind: str, encoding: str) -> None:
        if encoding.lower() in ENCODINGS and kind:
            self.topics.setdefault(topic, ros_type(kind))
            self._channels[number] = (topic, ros_type(kind))
        else:
            self.foreign[topic] = f"{kind or 'no type'} in {encoding or 'no encoding'}"
            self._channels[number] = (topic, "")

    def _wanted(self, topics: Mapping[str, str]) -> dict[int, str]:
        """Number in the file -> topic, of those of the type that is asked for."""
        return {number: topic for number, (topic, kind) in self._channels.items() if topics.get(topic) == kind}

    def _count(self, messages: Mapping[int, int]) -> None:
        for number, topic in self._wanted(self.topics).items():
            self.counts[topic] += messages.get(number, 0)


def ros_type(name: str) -> str:
    """As ROS 2 writes it: package/msg/Name, for ROS 1's package/Name and DDS's package::msg::dds_::Name_ too."""
    words = [word for word in re.split("/|::", name) if word != "dds_"]
    if "::" in name:
        words[-1] = words[-1].removesuffix("_")
    return "/".join(words if len(words) != 2 else [words[0], "msg", words[1]])
