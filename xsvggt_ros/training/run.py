# SPDX-License-Identifier: Apache-2.0
"""What a training run is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch

FREE = ("folder", "steps", "device", "batch", "rank", "workers")  # what may be different when a run goes on


@dataclass(frozen=True)
class Run:
    """What is to be trained, on what, and where it is kept."""

    folder: Path
    model: str
    steps: int
    width: int
    height: int
    device: torch.device
    batch: int = 1  # times as many sequences at once as a small CPU can bear
    rate: float = 1.0  # times the usual learning rates
    seed: int = 0  # of the random weights and of what they learn from
    init: Path | None = None  # weights to start from
    data: tuple[Path, ...] = ()  # recordings to learn from; none: synthetic rooms
    teacher: Path | None = None  # weights of a network to learn from
    teacher_model: str = "streamvggt"
    truth: bool = True  # learn from the truth too, where it is known
    bidirectional: bool = False  # frames see those that come after them, as a teacher may
    tracks: bool = False  # train the track head, and nothing else
    rank: int = 0  # of this worker; the first one keeps the books
    workers: int = 1  # processes that share every batch; on a CPU, one per core beats one with many threads

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def settings(self) -> dict[str, str]:
        """What stays as it is when the run goes on: not how long it is, nor where it runs."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in FREE}
        return {name: str(value.resolve() if isinstance(value, Path) else value) for name, value in values.items()}
