# SPDX-License-Identifier: Apache-2.0
"""The storage files of rosbag2: mcap and sqlite3, also within a zstd file. What is in one, it says itself."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import zstandard

from xsvggt_ros.messages.storage import mcap_part, sqlite_part
from xsvggt_ros.messages.storage.part import DamagedPart, Part, Rows

__all__ = ["ROS_1", "ZSTD", "DamagedPart", "Part", "Rows", "is_storage", "open_part", "starts_as", "without_zstd"]

SUFFIXES = (".mcap", ".db3")
PACKED = (".zstd", ".zst")
ZSTD = b"\x28\xb5\x2f\xfd"
ROS_1 = b"#ROSBAG V"
MAGICS = (mcap_part.MAGIC, sqlite_part.MAGIC, ZSTD, ROS_1)


def is_storage(path: Path) -> bool:
    """Whether the name is that of a storage file of rosbag2."""
    return not path.name.startswith(".") and without_zstd(path.name.lower()).endswith(SUFFIXES)


def starts_as(path: Path) -> bytes:
    """The one of MAGICS with which a file starts, b"" if with none. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(max(map(len, MAGICS)))
    return next((magic for magic in MAGICS if head.startswith(magic)), b"")


def without_zstd(name: str) -> str:
    return next((name[: -len(suffix)] for suffix in PACKED if name.lower().endswith(suffix)), name)


def open_part(path: Path, stack: ExitStack) -> Part:
    """A storage file; what must be unpacked or copied for that is temporary, until the stack closes.

    Raises DamagedPart if nothing in it can be read, OSError if the file cannot be, ValueError without room for a copy.
    """
    start = starts_as(path)
    if start == ZSTD:
        path = _unpacked(path, stack)
        start = starts_as(path)
    if start == mcap_part.MAGIC:
        return mcap_part.McapPart(path)
    if start == sqlite_part.MAGIC:
        side_files = sqlite_part.side_files(path)
        return sqlite_part.SqlitePart(_copied(path, side_files, stack) if side_files else path, bool(side_files))
    raise DamagedPart("it starts neither as an mcap nor as a sqlite3 file" if path.stat().st_size else "it is empty")


def _unpacked(path: Path, stack: ExitStack) -> Path:
    """Of a file that is cut off or damaged, what can be unpacked: its end is then missing."""
    with _scratch(path, stack) as folder:
        unpacked = folder / without_zstd(path.name)
        with path.open("rb") as packed, unpacked.open("wb") as file, suppress(zstandard.ZstdError):
            zstandard.ZstdDecompressor().copy_stream(packed, file)
        return unpacked


def _copied(path: Path, beside: list[Path], stack: ExitStack) -> Path:
    with _scratch(path, stack) as folder:
        for file in (path, *beside):
            shutil.copyfile(file, folder / file.name)
        return folder / path.name


@contextmanager
def _scratch(path: Path, stack: ExitStack) -> Iterator[Path]:
    try:
        yield Path(stack.enter_context(TemporaryDirectory(prefix="xsvggt-")))
    except OSError as error:
        raise ValueError(
            f"{path} has to be unpacked or copied to be read, which failed in {gettempdir()} ({error.strerror}): "
            "set TMPDIR to a folder with room"
        ) from error
