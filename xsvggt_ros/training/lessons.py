# SPDX-License-Identifier: Apache-2.0
"""What a run learns from: rooms or recordings, what is true of them, and what a teacher says."""

from __future__ import annotations

from torch import Tensor

from xsvggt_ros.training.batches import Batch
from xsvggt_ros.training.recordings import Recordings, read_recordings
from xsvggt_ros.training.rendering import held_out_batch, training_batch
from xsvggt_ros.training.run import Run
from xsvggt_ros.training.teacher import Teacher

HELD_OUT_SEEDS, HELD_OUT_INTERVAL = range(900_000, 900_012), 0.25
HELD_OUT_FRAMES = 24


class Lessons:
    """Batches of a run: of the same images one for the truth, where it is known and wanted, and one for the teacher."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._teacher = run.teacher and Teacher(run.teacher, run.teacher_model, run.device)
        self._recordings = None
        if run.data:
            self._recordings = Recordings(read_recordings(run.data, run.folder, run.width), run.device)

    def training(self, number: int, sequences: int, frames: int, mirrored: bool) -> list[Batch]:
        """As rendering.training_batch and Recordings.training."""
        if self._recordings is not None:
            return self._taught(self._recordings.training(number, sequences, frames, mirrored))
        r = self._run
        truth = training_batch(number, sequences, frames, r.width, r.height, r.device, mirrored)
        return [truth] * r.truth + self._taught(truth.images)

    def held_out(self) -> list[Batch]:
        """Never trained on; of rooms the truth, else what the teacher says."""
        r = self._run
        if self._recordings is None:
            room = (HELD_OUT_FRAMES, HELD_OUT_INTERVAL, r.width, r.height, r.device)
            return [held_out_batch(HELD_OUT_SEEDS, *room)]
        return [lesson for images in self._recordings.held_out(HELD_OUT_FRAMES) for lesson in self._taught(images)]

    def _taught(self, images: Tensor) -> list[Batch]:
        return [self._teacher.lesson(images)] if self._teacher else []
