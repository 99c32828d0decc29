# SPDX-License-Identifier: Apache-2.0
"""One process of a batch: it replays recordings, one after the other, with one model."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from threading import Event

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from xsvggt_ros.batch.recordings import PREVIEW, THREADS, UNFINISHED, Job, Record, settings_of
from xsvggt_ros.config import NodeConfig, StreamConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.memory import give_back
from xsvggt_ros.model import StreamVGGT, load_model
from xsvggt_ros.pictures import DEPTH_COLOURS, false_colour, shown_range
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.replay.command import Replay, opened
from xsvggt_ros.replay.files import FULL
from xsvggt_ros.replay.sources import Reading
from xsvggt_ros.segments import SegmentedStream

TELL_S = 0.5  # between two times that a worker says how far it is
WIDTH, QUALITY = 240, 85  # of each picture of the preview: pixels; of its JPEG
KEPT = 16  # frames, of which one is near the middle
MOST_WARNINGS = 20  # of a recording


class Cause(Enum):
    """What is to be blamed where a recording could not be replayed."""

    RECORDING = auto()  # anywhere else it would be the same
    PLACE = auto()  # the machine, or the process
    DISK = auto()  # full
    SETTINGS = auto()  # no recording could be


@dataclass(frozen=True)
class Failure:
    cause: Cause
    reason: str


@dataclass(frozen=True)
class Progress:
    """How far a recording is, of as many images, where that is known beforehand."""

    frames: int
    images: int | None

    @property
    def share(self) -> float:
        """From 0 to 1; 0 as long as nothing is known."""
        return min(1.0, self.frames / self.images) if self.images else 0.0


class NoStream(Exception):
    """The settings do not make a stream."""


class Worker:
    """Its model is loaded for the first recording, and stays."""

    def __init__(self, config: NodeConfig, reading: Reading, output: Path, threads: int = THREADS) -> None:
        self._config = config
        self._reading = reading
        self._output = output
        self._threads = threads
        self._model: StreamVGGT | None = None

    def ready(self) -> None:
        """Returns once there is a worker."""

    def replay(self, job: Job, attempt: int) -> Iterator[Progress | Record | Failure]:
        """How far it is, now and then; in the end what is noted of the recording, or why there is nothing of it."""
        folder = self._output / UNFINISHED.format(name=job.name, attempt=attempt)
        failure = None
        try:
            yield from self._replay(job, folder)
        except NoStream as error:
            failure = Failure(Cause.SETTINGS, str(error))
        except (ValueError, OSError, MemoryError) as error:
            failure = self._failure(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            give_back()
        if failure:  # said last: it may be the end of this process
            yield failure

    def _failure(self, error: Exception) -> Failure:
        """An error of the system is to blame even where a ValueError puts it into words."""
        systems = (e for e in (error, error.__cause__) if isinstance(e, OSError) and e.errno)
        system = next(systems, None)
        if system and system.errno in FULL:
            said = f"the disk of {self._output} is full ({system.strerror}): free space, and start it again"
            return Failure(Cause.DISK, str(error) if isinstance(error, ValueError) else said)
        itself = isinstance(error, ValueError) and not system
        return Failure(Cause.RECORDING if itself else Cause.PLACE, str(error))

    def _replay(self, job: Job, folder: Path) -> Iterator[Progress | Record]:
        preview = Preview()
        with Warnings() as warnings:
            with opened(job.recording, self._reading, folder, self._config, self._new_stream) as replay:
                began = told = time.monotonic()
                for answer in replay.answers(Event()):
                    if isinstance(answer.result, Placed):
                        preview.add(answer.result.frame)
                    if time.monotonic() - told > TELL_S:
                        told = time.monotonic()
                        yield Progress(replay.files.frames, replay.length)
            record = self._record(job, replay, time.monotonic() - began, warnings.texts)
            (folder / PREVIEW).write_bytes(preview.jpeg())
            record.write(folder)
            _publish(folder, self._output / job.name)
        yield record

    def _new_stream(self, config: StreamConfig) -> SegmentedStream:
        try:
            self._model = self._model or load_model(config)
            return SegmentedStream(config, self._model)
        except (ValueError, OSError) as error:
            raise NoStream(str(error)) from error

    def _record(self, job: Job, replay: Replay, seconds: float, warnings: list[str]) -> Record:
        return Record(
            recording=str(job.recording),
            settings=settings_of(self._config, self._reading, self._threads),
            frames=replay.files.frames,
            skipped=len(replay.skipped),
            worlds=replay.status.images.resets + 1,
            seconds=seconds,
            cache_bytes=replay.status.step.cache_bytes,
            threads=torch.get_num_threads(),
            warnings=warnings,
            damage=replay.damage,
        )


def _publish(folder: Path, name: Path) -> None:
    """Renames a folder whose contents the disk has. Raises OSError, too, if there is something of that name."""
    for path in [*folder.rglob("*"), folder]:
        _sync(path)
    folder.rename(name)
    _sync(name.parent)


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


class Preview:
    """Image and depth of a frame near the middle of a recording whose length shows at its end."""

    def __init__(self) -> None:
        self._kept: list[tuple[NDArray[np.uint8], NDArray[np.float32]]] = []
        self._every = 1  # frames from one that is kept to the next
        self._count = 0

    def add(self, frame: Frame) -> None:
        """The next frame."""
        if self._count % self._every == 0:
            self._kept.append((frame.image, frame.depth))
        self._count += 1
        if len(self._kept) > KEPT:
            self._kept = self._kept[::2]
            self._every *= 2

    def jpeg(self) -> bytes:
        """Side by side; near depth is blue, far depth red."""
        image, depth = self._kept[self._count // 2 // self._every]
        colours = false_colour(depth, *shown_range(depth), DEPTH_COLOURS)[..., :3]
        both = np.hstack([image, colours])
        size = 2 * WIDTH, round(2 * WIDTH * both.shape[0] / both.shape[1])
        shown = cv2.cvtColor(cv2.resize(both, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
        return cv2.imencode(".jpg", shown, (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1].tobytes()


class Warnings(logging.Handler):
    """What the package warns of while it is entered, each once, and not without end."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.texts and len(self.texts) < MOST_WARNINGS:
            self.texts.append(text)

    def __enter__(self) -> Warnings:
        logging.getLogger("xsvggt_ros").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("xsvggt_ros").removeHandler(self)
