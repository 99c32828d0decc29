# SPDX-License-Identifier: Apache-2.0
"""rosbag2 recordings (sqlite3 and mcap) without ROS: read, whole or cut off, and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import Any

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore
from zstandard import ZstdDecompressor, ZstdError

from xsvggt_ros.messages.storage import ROS_1, ZSTD, DamagedPart, Part, Rows, is_storage, open_part, starts_as
from xsvggt_ros.messages.storage.folder import METADATA, Folder, read_folder
from xsvggt_ros.natural_order import naturally_sorted

# Images and CameraInfo are the same in every ROS 2, so that a bag without definitions decodes too.
TYPES = get_typestore(Stores.LATEST)


class NewBag:
    """A rosbag2 (mcap) being written, with one type per topic.

    Raises rosbags' WriterError if the path exists, OSError if it cannot be written.
    """

    def __init__(self, path: Path, topics: dict[str, str], types: Typestore = TYPES) -> None:
        self._topics, self._types = topics, types
        # Not version 9, whose QoS is no longer the text that Humble expects.
        self._writer = Writer(path, version=8, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._connections = {
            topic: self._writer.add_connection(topic, kind, typestore=types) for topic, kind in topics.items()
        }

    def write(self, topic: str, stamp_ns: int, message: Any) -> None:
        data = self._types.serialize_cdr(message, self._topics[topic])
        self._writer.write(self._connections[topic], stamp_ns, data)

    def close(self) -> None:
        self._writer.close()


class DamagedBag(ValueError):
    """Something of the bag is missing; all that was read of it is sound."""


@dataclass(frozen=True)
class Bag:
    """An open bag: what is in its storage files, whatever its metadata.yaml says."""

    path: Path
    parts: list[Part]  # in order of recording
    damage: list[str]  # what is known to be missing
    stated: Mapping[str, int]  # topic -> messages, as metadata.yaml has it

    @cached_property
    def topics(self) -> dict[str, str]:
        """Topic -> message type; only what is serialized as ROS 2 does it."""
        topics: dict[str, str] = {}
        for part in self.parts:
            topics |= part.topics | topics  # the first part that has a topic says its type
        return topics

    @cached_property
    def foreign(self) -> dict[str, str]:
        """Topic -> type and encoding of what is left out."""
        return {topic: reason for part in self.parts for topic, reason in part.foreign.items()}

    @cached_property
    def counts(self) -> Counter[str]:
        """Topic -> messages."""
        return sum((part.counts for part in self.parts), Counter())

    def messages(self, topics: Collection[str]) -> Rows:
        """(topic, serialized message) in order of time. Raises DamagedBag at the end, if something is missing."""
        wanted = {topic: self.topics[topic] for topic in topics if topic in self.topics}
        damage, found = list(self.damage), Counter[str]()
        for part in self.parts:
            try:
                for topic, message in part.rows(wanted):
                    found[topic] += 1
                    yield topic, message
            except (DamagedPart, OSError) as error:
                damage.append(f"{part.path.name}: {error}")
        for topic in topics:
            expected = max(self.counts[topic], self.stated.get(topic, 0))
            if found[topic] < expected:
                damage.append(f"{found[topic]} of {expected} messages of {topic} are there")
        if damage:
            raise DamagedBag(f"{self.path} is incomplete: {'; '.join(damage)}")

    def decode(self, topic: str, message: bytes | memoryview) -> Any:
        """The message object. Raises ValueError if the bytes are no message of the topic's type, or that is unknown."""
        kind = self.topics[topic]
        if kind not in TYPES.fielddefs:
            raise ValueError(f"messages on {topic} have the unknown type {kind}")
        try:
            if message[:4] == ZSTD:  # a serialized message starts with zeros
                message = ZstdDecompressor().decompressobj().decompress(message)
            return TYPES.deserialize_cdr(message, kind)
        except (SerdeError, ZstdError) as error:
            raise ValueError(f"message on {topic} cannot be decoded: {error}") from error


def is_bag(path: Path) -> bool:
    """Whether the path is a rosbag2 folder, one of its storage files, or a ROS 1 bag. Raises OSError."""
    if path.is_dir():
        return (path / METADATA).exists() or any(is_storage(file) and not file.is_dir() for file in path.iterdir())
    return path.is_file() and (is_storage(path) or starts_as(path) != b"")


def bags_below(path: Path) -> list[Path]:
    """The bags that lie in a folder which is none itself."""
    return naturally_sorted(file for file in path.iterdir() if is_bag(file))


@contextmanager
def open_bag(path: Path) -> Iterator[Bag]:
    """Opens a rosbag2 folder or storage file, whole or not.

    Raises ValueError if nothing in it can be read.
    """
    if path.is_file() and starts_as(path) == ROS_1:
        raise ValueError(
            f"{path} is a ROS 1 bag: convert it with "
            f"rosbags-convert --src {quote(str(path))} --dst {quote(str(path.with_suffix('')))}"
        )
    folder = read_folder(path) if path.is_dir() else Folder([path])
    parts, damage = [], list(folder.damage)
    with ExitStack() as stack:
        for file in folder.parts:
            try:
                parts.append(open_part(file, stack))
            except (DamagedPart, OSError) as error:
                damage.append(f"{file.name}: {error}")
        if not any(part.topics or part.foreign for part in parts):
            raise ValueError(f"{path} cannot be read as a rosbag2: {'; '.join([*damage, 'no topics are in it'])}")
        yield Bag(path, parts, damage, folder.counts)
