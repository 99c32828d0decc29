# SPDX-License-Identifier: Apache-2.0
"""The recordings of a batch: what their folders are called, and what is noted of those that are done.

A recording is done where its folder is there: that is made under a hidden name, and renamed once all in it is written.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.replay.sources import Reading, check_alone
from xsvggt_ros.settings import values

RECORD, PREVIEW = "batch.json", "preview.jpg"  # in a recording's folder, beside what a replay writes
TABLE, PAGE = "summary.csv", "summary.html"
UNFINISHED = ".{name}.{attempt}.unfinished"
LOCK = ".batch.lock"
THREADS = 1  # of a process, unless it is told otherwise
ENDING_S = 1.0  # in which processes that were ended may still write


@dataclass(frozen=True)
class Job:
    """A recording that is to be replayed into the folder of that name."""

    name: str
    recording: Path  # absolute


@dataclass(frozen=True)
class Record:
    """What is noted of a recording that is done."""

    recording: str
    settings: dict[str, Any]  # that are not at their default, and what is read of the recording
    frames: int
    skipped: int  # images
    worlds: int
    seconds: float  # of the replay, without loading the model
    cache_bytes: int
    threads: int
    warnings: list[str]
    damage: str = ""  # why the recording breaks off; empty: it is whole

    def write(self, folder: Path) -> None:
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=1))


def read_record(folder: Path) -> Record | None:
    """None: the folder is not there, or not of a batch."""
    try:
        return Record(**json.loads((folder / RECORD).read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / RECORD} is not as a batch writes it ({error}): remove {folder}") from error


def settings_of(config: NodeConfig, reading: Reading, threads: int = THREADS) -> dict[str, Any]:
    """What outputs depend on beside the recording, as far as it is not at its default."""
    both = (config, reading, threads), (NodeConfig(), Reading(), THREADS)
    given, defaults = (values(c) | asdict(r) | {"threads": n} for c, r, n in both)
    return {name: value for name, value in given.items() if value != defaults[name]}


@contextmanager
def output_of_one_batch(output: Path) -> Iterator[None]:
    """Makes the folder, keeps other batches out of it, and leaves nothing that is unfinished there.

    Raises ValueError where that cannot be.
    """
    made = not output.exists()
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = _locked(output / LOCK)
    except BlockingIOError:
        raise ValueError(f"another batch writes into {output}: wait for it, or choose another folder") from None
    except OSError as error:
        raise ValueError(f"cannot write into {output}: {error.strerror}; choose another output folder") from error
    unfinished = UNFINISHED.format(name="*", attempt="*")
    with lock:
        try:
            remove(output, unfinished)  # of a batch that was killed
            yield
        finally:
            remove(output, unfinished)
            (output / LOCK).unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # something is in it
                    output.rmdir()


def _locked(path: Path) -> TextIO:
    """That file, which nobody else has while it is open. Raises BlockingIOError if somebody has it."""
    while True:
        with ExitStack() as stack:
            file = stack.enter_context(path.open("w"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samefile(path, file.fileno()):  # whoever had it has not removed it meanwhile
                    stack.pop_all()
                    return file


def remove(folder: Path, pattern: str) -> None:
    """Removes the folders of that name, even if a process that was just ended still writes there."""
    end = time.monotonic() + ENDING_S
    while (left := [*folder.glob(pattern)]) and time.monotonic() < end:
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.02)


def asked_for(inputs: list[Path]) -> list[Path]:
    """The recordings, absolute, each once."""
    return list(dict.fromkeys(Path(os.path.abspath(path)) for path in inputs))


def plan(inputs: list[Path], output: Path, settings: dict[str, Any]) -> tuple[list[Job], dict[str, Record]]:
    """What is to be done, and {name: record} of all that was done into that folder already.

    Raises FileNotFoundError or ValueError where one of the inputs cannot be meant, or was done with other settings.
    """
    recordings = asked_for(inputs)
    for path in recordings:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist; give folders of images, video files or rosbag2s")
        if path.is_relative_to(output):
            raise ValueError(f"{path} lies in the output folder: choose another")
        check_alone(path)
    found = {record.recording: (folder, record) for folder in output.iterdir() if (record := read_record(folder))}
    for folder, record in (found[str(path)] for path in recordings if str(path) in found):
        if other := _differences(record.settings, settings):
            raise ValueError(
                f"{folder} was made with other settings ({other}): choose another output folder, or remove that one to "
                "make it anew"
            )
    names = _names([path for path in recordings if str(path) not in found], output)
    return [Job(name, path) for path, name in names.items()], {f.name: record for f, record in found.values()}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    then, today = ([f"{each[name]!r}" if name in each else "the default" for name in names] for each in (before, now))
    return ", ".join(f"{name}: {a}, now {b}" for name, a, b in zip(names, then, today, strict=True))


def _names(recordings: list[Path], output: Path) -> dict[Path, str]:
    """As the recordings are called, with as many of the folders that they are in as it takes to tell them apart."""
    taken = {TABLE, PAGE, *os.listdir(output)}
    names: dict[Path, str] = {}
    for length in range(max((len(path.parts) for path in recordings), default=0) + 1):
        labels = {path: _label(path, length) for path in recordings if path not in names}
        counts = Counter(labels.values())
        names |= {path: label for path, label in labels.items() if counts[label] == 1 and label and label not in taken}
        taken |= set(names.values())
    for path in recordings:
        if path not in names:
            raise ValueError(f"{output} has folders of all names that {path} could have: choose another output folder")
    return {path: names[path] for path in recordings}


def _label(path: Path, length: int) -> str:
    if not length:
        return (path.stem if path.is_file() else path.name).lstrip(".")
    return "_".join(path.parts[-length:]).lstrip(".").replace(os.sep, "")
