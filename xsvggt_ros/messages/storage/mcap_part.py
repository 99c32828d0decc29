# SPDX-License-Identifier: Apache-2.0
"""An mcap file (mcap.dev/spec): read by its index, or from record to record where it has none."""

from __future__ import annotations

import heapq
import io
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import lz4.frame
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, ChunkIndex, Footer, Schema, Statistics

from xsvggt_ros.messages.storage.part import DamagedPart, Part, Rows

MAGIC = b"\x89MCAP0\r\n"
RECORD = struct.Struct("<BQ")  # opcode, length
MESSAGE = struct.Struct("<HIQQ")  # channel, sequence, time of recording, time of publication
CHUNK = struct.Struct("<BQQQQII")  # opcode, length, first and last time, size, checksum, length of compression's name
CHUNK_SIZE = struct.Struct("<Q")  # of its data, after the name of the compression
CHUNK_START = struct.Struct("<Q")  # first time
INDEX = struct.Struct("<HI")  # channel, bytes of its entries
INDEX_ENTRY = 16
FOOTER_SIZE = RECORD.size + 20 + len(MAGIC)
STRETCH = 2**20  # bytes of messages outside of chunks that are read together
DEFINITIONS = (Opcode.SCHEMA, Opcode.CHANNEL)
# What mcap, lz4 and zstandard make of foreign bytes.
ERRORS = (McapError, struct.error, ValueError, RuntimeError, zstandard.ZstdError)


@dataclass
class Stretch:
    """Records that lie together: a chunk, or messages outside of chunks."""

    start: int  # the earliest time of recording in it, ns
    position: int
    end: int
    is_chunk: bool
    channels: set[int]


class McapPart(Part):
    """Raises OSError if the file cannot be read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._schemas: dict[int, str] = {}
        self._stretches: list[Stretch] = []
        self._damage: dict[int, str] = {}  # byte from which on -> what is wrong
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            if not self._read_summary(file, size):
                self._scan(file, size)
        self._stretches.sort(key=lambda stretch: (stretch.start, stretch.position))

    def rows(self, topics: Mapping[str, str]) -> Rows:
        wanted, damage = self._wanted(topics), self._damage.copy()
        # A heap: time, position of its stretch, its own there, channel, message.
        waiting: list[tuple[int, int, int, int, memoryview]] = []
        with self.path.open("rb") as file:
            for stretch in self._stretches:
                if wanted.keys().isdisjoint(stretch.channels):
                    continue
                while waiting and waiting[0][:2] < (stretch.start, stretch.position):
                    *_, channel, message = heapq.heappop(waiting)
                    yield wanted[channel], message
                try:
                    for time, position, channel, message in _messages(file, stretch, wanted):
                        heapq.heappush(waiting, (time, stretch.position, position, channel, message))
                except ERRORS as error:
                    damage.setdefault(stretch.position, _reason(error))
        while waiting:
            *_, channel, message = heapq.heappop(waiting)
            yield wanted[channel], message
        if damage:
            raise DamagedPart("; ".join(f"from byte {position} on {reason}" for position, reason in damage.items()))

    def _read_summary(self, file: BinaryIO, size: int) -> bool:
        """Whether the end of the file says, and plausibly, what is in it and where."""
        try:
            records = list(_summary(file, size))
            chunks = [_parsed(ChunkIndex, content) for opcode, content in records if opcode == Opcode.CHUNK_INDEX]
            (statistics,) = (_parsed(Statistics, content) for opcode, content in records if opcode == Opcode.STATISTICS)
            schemas = {_parsed(Schema, content).id for opcode, content in records if opcode == Opcode.SCHEMA}
            channels = [_parsed(Channel, content) for opcode, content in records if opcode == Opcode.CHANNEL]
            if not _complete(statistics, chunks, channels, schemas):
                return False
            if not all(_is_there(file, chunk, size) for chunk in chunks):
                return False
            for opcode, content in records:
                self._define(opcode, content)
        except ERRORS:
            return False
        for chunk in chunks:
            position = chunk.chunk_start_offset
            held = set(chunk.message_index_offsets or self._channels)
            end = position + chunk.chunk_length
            self._stretches.append(Stretch(chunk.message_start_time, position, end, True, held))
        self._count(statistics.channel_message_counts)
        return True

    def _scan(self, file: BinaryIO, size: int) -> None:
        """Finds what there is from record to record, as far as these go."""
        chunk: Stretch | None = None
        indexed: Counter[int] = Counter()
        position = 0
        try:
            for opcode, position, length in _records(file, len(MAGIC), size):
                if opcode == Opcode.MESSAGE_INDEX:
                    channel, entries = INDEX.unpack(file.read(INDEX.size))
                    indexed[channel] += entries // INDEX_ENTRY
                    continue
                self._keep(file, chunk, indexed)
                chunk, indexed = None, Counter()
                if opcode in (Opcode.DATA_END, Opcode.FOOTER):
                    return
                chunk = self._enter(file, opcode, position, length)
            self._damage[position] = "it lacks its end"
        except ERRORS as error:
            self._damage[position] = _reason(error)
        self._keep(file, chunk, Counter())

    def _enter(self, file: BinaryIO, opcode: int, position: int, length: int) -> Stretch | None:
        """Enters a record of the file, or returns the chunk that it is."""
        file.seek(position + RECORD.size)
        if opcode == Opcode.CHUNK:
            (start,) = CHUNK_START.unpack(file.read(CHUNK_START.size))
            return Stretch(start, position, position + RECORD.size + length, True, set())
        if opcode == Opcode.MESSAGE:
            channel, _, time, _ = MESSAGE.unpack(file.read(MESSAGE.size))
            self._extend(channel, time, position, position + RECORD.size + length)
        elif opcode in DEFINITIONS:
            self._define(opcode, file.read(length))
        return None

    def _keep(self, file: BinaryIO, chunk: Stretch | None, indexed: Counter[int]) -> None:
        """Enters a chunk with the index that follows it; without one, or with unknown channels, what is in it."""
        if chunk is None:
            return
        if not indexed or not self._channels.keys() >= indexed.keys():
            indexed = self._contents(file, chunk)
        self._count(indexed)
        chunk.channels.update(indexed)
        self._stretches.append(chunk)

    def _contents(self, file: BinaryIO, chunk: Stretch) -> Counter[int]:
        """Messages by channel in a chunk, whose definitions are entered."""
        counts: Counter[int] = Counter()
        try:
            for opcode, _, content in _stretch_records(file, chunk):
                if opcode == Opcode.MESSAGE:
                    counts[MESSAGE.unpack_from(content)[0]] += 1
                elif opcode in DEFINITIONS:
                    self._define(opcode, bytes(content))
        except ERRORS as error:
            self._damage[chunk.position] = _reason(error)
        return counts

    def _extend(self, channel: int, time: int, position: int, end: int) -> None:
        """Enters a message outside of chunks."""
        last = self._stretches[-1] if self._stretches else None
        if last is None or last.is_chunk or end - last.position > STRETCH:
            last = Stretch(time, position, end, False, set())
            self._stretches.append(last)
        last.start, last.end = min(last.start, time), end
        last.channels.add(channel)
        self._count({channel: 1})

    def _define(self, opcode: int, content: bytes) -> None:
        if opcode == Opcode.SCHEMA:
            schema = _parsed(Schema, content)
            self._schemas[schema.id] = schema.name
        elif opcode == Opcode.CHANNEL:
            channel = _parsed(Channel, content)
            kind = self._schemas.get(channel.schema_id, "")
            self._add_channel(channel.id, channel.topic, kind, channel.message_encoding)


def _messages(file: BinaryIO, stretch: Stretch, wanted: Collection[int]) -> Iterator[tuple[int, int, int, memoryview]]:
    """Time, position, channel and data of those in a stretch."""
    for opcode, position, content in _stretch_records(file, stretch):
        if opcode == Opcode.MESSAGE:
            channel, _, time, _ = MESSAGE.unpack_from(content)
            if channel in wanted:
                yield time, position, channel, content[MESSAGE.size :]


def _stretch_records(file: BinaryIO, stretch: Stretch) -> Iterator[tuple[int, int, memoryview]]:
    """Opcode, position and content of what is in a stretch."""
    file.seek(stretch.position)
    size = stretch.end - stretch.position
    data, size = _chunk(file, size) if stretch.is_chunk else (file.read(size), size)
    for opcode, position, length in _records(io.BytesIO(data), 0, len(data)):
        content = position + RECORD.size
        yield opcode, position, memoryview(data)[content : content + length]
    if len(data) != size:
        raise DamagedPart("a chunk is cut off")


def _chunk(file: BinaryIO, size: int) -> tuple[bytes, int]:
    """What is in a chunk of which so many bytes are there, as far as it goes, and how many bytes that should be."""
    end = file.tell() + size
    opcode, _, _, _, full_size, checksum, length = CHUNK.unpack(file.read(CHUNK.size))
    if opcode != Opcode.CHUNK:
        raise DamagedPart("a chunk is missing")
    compression = file.read(min(length, end - file.tell())).decode()
    (length,) = CHUNK_SIZE.unpack(file.read(CHUNK_SIZE.size))
    data = file.read(min(length, end - file.tell()))
    if compression == "zstd":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    elif compression == "lz4":
        data = lz4.frame.LZ4FrameDecompressor().decompress(data)
    elif compression:
        raise DamagedPart(f"a chunk has the unknown compression {compression!r}")
    if checksum and len(data) == full_size and zlib.crc32(data) != checksum:
        raise DamagedPart("a chunk does not have its checksum")
    return data, full_size


def _summary(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Opcode and content of the records at the end of a file. Raises one of ERRORS if it has none."""
    file.seek(max(0, size - FOOTER_SIZE))
    tail = file.read()
    if tail[:1] != bytes([Opcode.FOOTER]) or not tail.endswith(MAGIC):
        raise DamagedPart("the footer is missing")
    for opcode, _, length in _records(file, _parsed(Footer, tail[RECORD.size :]).summary_start, size - FOOTER_SIZE):
        if opcode in (Opcode.CHUNK, Opcode.MESSAGE):
            raise DamagedPart("the summary is not where the footer says")
        yield opcode, file.read(length)


def _complete(statistics: Statistics, chunks: list[Any], channels: list[Channel], schemas: set[int]) -> bool:
    """Whether a summary defines all channels and, as the index of every message, lists all chunks."""
    counts = statistics.channel_message_counts
    indexed = set().union(*(chunk.message_index_offsets for chunk in chunks))
    return (
        len(channels) == statistics.channel_count
        and {channel.schema_id for channel in channels} <= schemas | {0}
        and indexed <= {channel.id for channel in channels}
        and len(chunks) == statistics.chunk_count
        and sum(counts.values()) == statistics.message_count
        and bool(chunks or not counts)
    )


def _is_there(file: BinaryIO, chunk: ChunkIndex, size: int) -> bool:
    """Whether a chunk lies in a file of that size as its index says: damage there would cost chunks that are whole."""
    if chunk.chunk_start_offset + chunk.chunk_length > size:
        return False
    file.seek(chunk.chunk_start_offset)
    head = RECORD.pack(Opcode.CHUNK, chunk.chunk_length - RECORD.size) + CHUNK_START.pack(chunk.message_start_time)
    return file.read(len(head)) == head


def _records(stream: BinaryIO, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Opcode, position and length of each record, with the stream at its content. Of a chunk also what is left of it.

    Raises DamagedPart where they break off.
    """
    while position < end:
        stream.seek(position)
        head = stream.read(min(RECORD.size, end - position))
        if len(head) < RECORD.size or not head[0]:
            raise DamagedPart("there is no record" if any(head) else "there are zeros")
        opcode, length = RECORD.unpack(head)
        left = end - position - RECORD.size
        if length <= left or opcode == Opcode.CHUNK:
            if opcode == Opcode.MESSAGE and length < MESSAGE.size:
                raise DamagedPart("a message is too short")
            yield opcode, position, min(length, left)
        if length > left:
            raise DamagedPart("a record is cut off")
        position += RECORD.size + length


def _parsed(kind: Any, content: bytes) -> Any:
    return kind.read(ReadDataStream(io.BytesIO(content)))


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
