# SPDX-License-Identifier: Apache-2.0
"""What a run learns from: rooms or recordings, what is true of them, and what a teacher says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context

from torch import Tensor

from xsvggt_ros.processes import end_with_parent
from xsvggt_ros.training.batches import Batch
from xsvggt_ros.training.recordings import Recordings, read_recordings
from xsvggt_ros.training.rendering import Drawing, Request, draw, held_out_batch, shoot
from xsvggt_ros.training.run import Run
from xsvggt_ros.training.teacher import Teacher

HELD_OUT_SEEDS, HELD_OUT_INTERVAL = range(900_000, 900_012), 0.25
HELD_OUT_FRAMES = 24
DRAWERS = {"cuda": 4}  # processes that draw rooms while such a device is busy with those before


class Lessons:
    """Batches of a run: of the same images one for the truth, where it is known and wanted, and one for the teacher."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._teacher = run.teacher and Teacher(run.teacher, run.teacher_model, run.device)
        self._recordings = None
        if run.data:
            self._recordings = Recordings(read_recordings(run.data, run.folder, run.width), run.device)
        drawers = 0 if run.data else DRAWERS.get(run.device.type, 0)
        self._pool = None
        if drawers:
            self._pool = ProcessPoolExecutor(drawers, get_context("spawn"), _beside)
        self._drawn: dict[Request, Future[Drawing]] = {}

    def training(self, request: Request, mirrored: bool, later: Sequence[Request] = ()) -> list[Batch]:
        """What is asked for, as it is or mirrored and backwards; later: what will be asked for next."""
        if self._recordings is not None:
            number, sequences, frames, *_ = request
            return self._taught(self._recordings.training(number, sequences, frames, mirrored))
        truth = shoot(self._drawing(request, later), self._run.device, mirrored)
        return [truth] * self._run.truth + self._taught(truth.images)

    def close(self) -> None:
        """Nothing more will be asked for."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def held_out(self) -> list[Batch]:
        """Never trained on; of rooms the truth, else what the teacher says."""
        r = self._run
        if self._recordings is None:
            room = (HELD_OUT_FRAMES, HELD_OUT_INTERVAL, r.width, r.height, r.device)
            return [held_out_batch(HELD_OUT_SEEDS, *room)]
        return [lesson for images in self._recordings.held_out(HELD_OUT_FRAMES) for lesson in self._taught(images)]

    def _drawing(self, request: Request, later: Sequence[Request]) -> Drawing:
        if self._pool is None:
            return draw(request)
        wanted = dict.fromkeys((request, *later))
        self._drawn = {wish: self._drawn.get(wish) or self._pool.submit(draw, wish) for wish in wanted}
        return self._drawn[request].result()

    def _taught(self, images: Tensor) -> list[Batch]:
        return [self._teacher.lesson(images)] if self._teacher else []


def _beside() -> None:
    """A drawer begins: signals are for the run, which stops its drawers; where it is killed they end too."""
    os.setpgrp()
    end_with_parent()
