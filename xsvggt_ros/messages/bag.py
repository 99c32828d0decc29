# SPDX-License-Identifier: Apache-2.0
"""rosbag2 recordings (sqlite3 and mcap) without ROS: read, whole or cut off, and written."""

from __future__ import annotations

import io
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from natsort import natsorted
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

STORAGE_SUFFIXES = (".mcap", ".db3")
# Images and CameraInfo are the same in every ROS 2, so that a bag without definitions decodes too.
TYPES = get_typestore(Stores.LATEST)
Rows = Iterator[tuple[str, bytes]]  # topic, serialized message


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
    """The bag ends before its recording did; all that was read until then is sound."""


@dataclass(frozen=True)
class Bag:
    """An open bag. `damage` says why it is incomplete; empty if it is whole."""

    path: Path
    topics: dict[str, str]  # topic -> message type
    counts: dict[str, int]  # topic -> messages, where known
    rows: Callable[[Sequence[str]], Rows]
    damage: str = ""

    def messages(self, topics: Sequence[str]) -> Rows:
        """(topic, serialized message) in order of time. Raises DamagedBag where a damaged bag ends."""
        try:
            yield from self.rows(topics)
        except Exception as error:  # foreign bytes: each library below rosbags has errors of its own
            raise DamagedBag(f"{self.path} is damaged: {error}") from error
        if self.damage:
            raise DamagedBag(f"{self.path} is incomplete: {self.damage}")

    def decode(self, topic: str, message: bytes) -> Any:
        """The message object. Raises ValueError if the bytes are no message of the topic's type."""
        try:
            return TYPES.deserialize_cdr(message, self.topics[topic])
        except SerdeError as error:
            raise ValueError(f"message on {topic} cannot be decoded: {error}") from error


def is_bag(path: Path) -> bool:
    """Whether the path is a rosbag2 folder or one of its storage files."""
    if path.is_dir():
        return (path / "metadata.yaml").exists() or bool(_storage_files(path))
    return path.suffix in STORAGE_SUFFIXES


@contextmanager
def open_bag(path: Path) -> Iterator[Bag]:
    """Opens a rosbag2 folder or storage file; one whose recorder was cut off, as far as it goes.

    Raises ValueError if nothing in it can be read.
    """
    with ExitStack() as stack:
        try:
            readers = [stack.enter_context(Reader(path))]
            bag = Bag(path, *_contents(readers), rows=lambda topics: _rows(readers, topics))
        except Exception as error:  # foreign bytes: each library below rosbags has errors of its own
            bag = _salvaged(path, str(error), stack)
        yield bag


def _storage_files(path: Path) -> list[Path]:
    """In order of recording: rosbag2 numbers the parts of a split bag without leading zeros."""
    files = [path] if path.is_file() else [p for suffix in STORAGE_SUFFIXES for p in path.glob(f"*{suffix}")]
    return natsorted(files, key=lambda file: file.name)


def _contents(readers: list[Reader]) -> tuple[dict[str, str], dict[str, int]]:
    connections = [connection for reader in readers for connection in reader.connections]
    counts = dict.fromkeys((c.topic for c in connections), 0)
    for connection in connections:
        counts[connection.topic] += connection.msgcount
    return {c.topic: c.msgtype for c in connections}, counts


def _rows(readers: list[Reader], topics: Sequence[str]) -> Rows:
    for reader in readers:
        wanted = [connection for connection in reader.connections if connection.topic in topics]
        for connection, _, message in reader.messages(wanted) if wanted else ():
            yield connection.topic, message


def _salvaged(path: Path, reason: str, stack: ExitStack) -> Bag:
    """What the storage files hold, though the folder's metadata or the end of a file is missing."""
    files = _storage_files(path)
    salvage = _salvaged_databases if files and files[0].suffix == ".db3" else _salvaged_mcap
    try:
        bag = salvage(path, files, reason, stack)
    except Exception as error:  # foreign bytes: each library below rosbags has errors of its own
        raise ValueError(f"{path} cannot be read as a rosbag2: {error}") from error
    if not bag.topics:
        raise ValueError(f"{path} cannot be read as a rosbag2: {reason}")
    return bag


def _salvaged_mcap(path: Path, files: list[Path], reason: str, stack: ExitStack) -> Bag:
    readers = [stack.enter_context(Reader(_UnfinishedMcap(file))) for file in files]
    return Bag(path, *_contents(readers), rows=lambda topics: _rows(readers, topics), damage=reason)


def _salvaged_databases(path: Path, files: list[Path], reason: str, stack: ExitStack) -> Bag:
    databases = [stack.enter_context(closing(_open_database(file))) for file in files]
    topics = {name: kind for db in databases for name, kind in db.execute("SELECT name, type FROM topics")}
    return Bag(path, topics, {}, rows=lambda wanted: _database_rows(databases, wanted), damage=reason)


def _open_database(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)
    connection.execute("PRAGMA writable_schema = ON")  # sqlite then reads a file that is shorter than it should be
    return connection


def _database_rows(databases: list[sqlite3.Connection], topics: Sequence[str]) -> Rows:
    for database in databases:
        names = {key: name for key, name in database.execute("SELECT id, name FROM topics") if name in topics}
        # In order of the table itself: the index by time may lie in the part that is missing.
        for key, message in database.execute("SELECT topic_id, data FROM messages ORDER BY id"):
            if key in names:
                yield names[key], message


class _UnfinishedMcap(type(Path())):  # type: ignore[misc]
    """Path of an mcap file that opens as if it had been closed after its last whole record."""

    def open(self, *args: Any, **kwargs: Any) -> BinaryIO:
        return io.BufferedReader(_ClosedMcap(super().open("rb", buffering=0)))


class _ClosedMcap(io.RawIOBase):
    """The whole data records of an mcap file and the footer that it may lack (mcap.dev/spec)."""

    MAGIC = b"\x89MCAP0\r\n"
    FOOTER = b"\x02" + struct.pack("<QQQI", 20, 0, 0, 0) + MAGIC  # no summary: readers scan
    LAST_DATA_OPCODES = (0x02, 0x0F)  # footer, end of data

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._end = self._end_of_data()
        self._position = 0

    def _end_of_data(self) -> int:
        size = self._file.seek(0, io.SEEK_END)
        end = len(self.MAGIC)
        while True:
            self._file.seek(end)
            head = self._file.read(9)  # opcode, length
            if len(head) < 9 or head[0] in self.LAST_DATA_OPCODES:
                return end
            following = end + 9 + int.from_bytes(head[1:], "little")
            if following > size:
                return end
            end = following

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end + len(self.FOOTER)}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position < self._end:
            self._file.seek(self._position)
            data = self._file.read(min(len(buffer), self._end - self._position))
        else:
            start = self._position - self._end
            data = self.FOOTER[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
