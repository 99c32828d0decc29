# SPDX-License-Identifier: Apache-2.0
"""A sqlite3 database of rosbag2, damaged or not; the one that is given is never written to."""

from __future__ import annotations

import io
import sqlite3
from array import array
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from xsvggt_ros.messages.storage.part import DamagedPart, Part, Rows

MAGIC = b"SQLite format 3\0"
SIDE_FILES = ("-wal", "-journal")  # what a killed recorder had not yet put into the database, or not yet taken back
TOPICS = """SELECT id, CAST(ifnull(name, '') AS TEXT), CAST(ifnull(type, '') AS TEXT),
    CAST(ifnull(serialization_format, '') AS TEXT) FROM topics ORDER BY id"""
# Not by the index of time, which a damaged file may lack.
SCAN = """SELECT CAST(ifnull(timestamp, 0) AS INTEGER), rowid, CAST(ifnull(topic_id, 0) AS INTEGER)
    FROM messages NOT INDEXED ORDER BY rowid"""
MESSAGE = "SELECT data FROM messages WHERE rowid = ?"
# UnicodeDecodeError: for the text of an error that has a damaged name in it. TypeError: a view has no row numbers.
ERRORS = (sqlite3.Error, UnicodeDecodeError, TypeError)


def side_files(path: Path) -> list[Path]:
    """Files beside a database without which it is not whole."""
    beside = [path.with_name(path.name + suffix) for suffix in SIDE_FILES]
    return [file for file in beside if file.is_file() and file.stat().st_size]


class SqlitePart(Part):
    """`copied`: it is a copy with its side files, into which sqlite may put what these hold.

    Raises DamagedPart if it has no topics that can be read.
    """

    def __init__(self, path: Path, copied: bool) -> None:
        super().__init__(path)
        self._options = "" if copied else "?immutable=1"
        try:
            with closing(self._connect()) as database:
                for row in database.execute(TOPICS):
                    self._add_channel(*row)
                self._messages, damage = _scanned(database)  # [N, 3]: time, number, channel
        except ERRORS as error:
            raise DamagedPart(_reason(error)) from error
        self._damage = damage or ("" if copied else _shortness(path))
        self._count(Counter(self._messages[:, 2].tolist()))

    def rows(self, topics: Mapping[str, str]) -> Rows:
        wanted, damage = self._wanted(topics), self._damage
        chosen = self._messages[np.isin(self._messages[:, 2], list(wanted))]
        with closing(self._connect()) as database:
            for _, number, channel in chosen.tolist():
                try:
                    (message,) = database.execute(MESSAGE, (number,)).fetchone() or (None,)
                except ERRORS as error:
                    message, damage = None, damage or _reason(error)
                if isinstance(message, bytes):
                    yield wanted[channel], message
        if damage:
            raise DamagedPart(damage)

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(f"{self.path.resolve().as_uri()}{self._options}", uri=True)
        database.text_factory = lambda text: text.decode(errors="replace")
        database.execute("PRAGMA writable_schema = ON")  # sqlite then reads a file that is shorter than it should be
        return database


def _scanned(database: sqlite3.Connection) -> tuple[np.ndarray, str]:
    """Time, number and channel of all messages that can be found, in order of time, and what hides others."""
    numbers, damage = _numbers(database, SCAN)
    if damage:  # what lies behind the damage
        numbers = np.concatenate([numbers, _numbers(database, f"{SCAN} DESC")[0]])
        numbers = numbers[np.unique(numbers[:, 1], return_index=True)[1]]
    return numbers[np.lexsort((numbers[:, 1], numbers[:, 0]))], damage


def _numbers(database: sqlite3.Connection, query: str) -> tuple[np.ndarray, str]:
    """Rows of three integers, [N, 3], as far as they can be read, and why no further."""
    found, damage = array("q"), ""
    try:
        for row in database.execute(query):
            found.extend(row)
    except ERRORS as error:
        damage = _reason(error)
    return np.array(found, np.int64).reshape(-1, 3), damage


def _shortness(path: Path) -> str:
    """What is missing of a file by its header (sqlite.org/fileformat.html), empty if nothing is."""
    with path.open("rb") as file:
        header = file.read(100)
        size = file.seek(0, io.SEEK_END)
    page, changed, pages, counted = (
        int.from_bytes(header[i:j], "big") for i, j in ((16, 18), (24, 28), (28, 32), (92, 96))
    )
    full = pages * (65536 if page == 1 else page)
    return f"it has {size} of {full} bytes" if changed == counted and size < full else ""


def _reason(error: Exception) -> str:
    return error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)
