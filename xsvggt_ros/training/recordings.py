# SPDX-License-Identifier: Apache-2.0
"""Sequences cut out of a user's own recordings, of which nothing but the images is known."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from xsvggt_ros.config import PATCH_SIZE
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.replay.sources import Images, open_source
from xsvggt_ros.training.rendering import INTERVALS

HELD_OUT = 0.1  # share of each recording, its end, that is for validation
FEWEST = 20  # images of a recording
FOLDER = "recordings"  # in a run's folder
CLOSEST = INTERVALS[0] / 3  # seconds between two images
UNEVEN = 0.5  # gaps between frames differ by that share of their mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """Resized images, on disk, and when they were taken."""

    images: NDArray[np.uint8]  # [N, H, W, 3]
    seconds: NDArray[np.float64]  # [N]

    def part(self, which: slice) -> Recording:
        return Recording(self.images[which], self.seconds[which])

    def cut(self, rng: np.random.Generator, frames: int) -> NDArray[np.uint8]:
        """[min(frames, N), H, W, 3] in order, at irregular times."""
        frames = min(frames, len(self.seconds))
        interval = np.exp(rng.uniform(*np.log(INTERVALS)))
        gaps = interval * rng.uniform(1 - UNEVEN, 1 + UNEVEN, frames)
        times = gaps.cumsum() - gaps[0]
        length = self.seconds[-1] - self.seconds[0]
        times *= min(1, length / max(times[-1], 1e-9))  # a short recording is seen in slow motion
        times += self.seconds[0] + rng.uniform(0, max(0.0, length - times[-1]))
        index = np.searchsorted(self.seconds, times).clip(0, len(self.seconds) - 1)
        # Each frame is another image: at least one later than the one before, and early enough for those to come.
        order = np.arange(frames)
        index = np.maximum.accumulate(index - order) + order
        return self.images[np.minimum(index, len(self.seconds) - frames + order)]


class Recordings:
    """Of several recordings; the images of a batch are of one of them."""

    def __init__(self, recordings: Sequence[Recording], device: torch.device) -> None:
        self._device = device
        self._train, self._held_out = zip(*(_split(recording) for recording in recordings), strict=True)
        lengths = np.array([len(recording.seconds) for recording in self._train], float)
        self._shares = lengths / lengths.sum()

    def training(self, number: int, sequences: int, frames: int, mirrored: bool) -> Tensor:
        """Images [B, S, 3, H, W] of batch `number`, as they are or mirrored and backwards.

        S may be less than `frames`, which a recording may not have.
        """
        rng = np.random.default_rng([number, 5])
        recording = self._train[rng.choice(len(self._train), p=self._shares)]
        images = self._batch([recording.cut(rng, frames) for _ in range(sequences)])
        return images.flip(1, -1) if mirrored else images

    def held_out(self, frames: int) -> list[Tensor]:
        """Images [1, S, 3, H, W] of the end of each recording."""
        rng = np.random.default_rng(0)
        return [self._batch([recording.cut(rng, frames)]) for recording in self._held_out]

    def _batch(self, sequences: list[NDArray[np.uint8]]) -> Tensor:
        return torch.from_numpy(np.stack(sequences)).to(self._device).movedim(-1, 2).float() / 255


def _split(recording: Recording) -> tuple[Recording, Recording]:
    start = round(len(recording.seconds) * (1 - HELD_OUT))
    return recording.part(slice(start)), recording.part(slice(start, None))


def read_recordings(paths: Sequence[Path], folder: Path, width: int) -> list[Recording]:
    """Those of folders, videos and bags, resized to a width; kept in `folder`, so that they are read once.

    Raises FileNotFoundError or ValueError, with the fix, for one that has too few images.
    """
    return [_read(path, folder / FOLDER / f"{number}", width) for number, path in enumerate(paths)]


def _read(path: Path, kept: Path, width: int) -> Recording:
    about, data = kept.with_suffix(".json"), kept.with_suffix(".raw")
    facts = {"path": str(path.resolve()), "width": width, "changed": _changed(path)}
    if not about.exists() or json.loads(about.read_text())["of"] != facts:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with data.open("wb") as file:
            shape, seconds = _decode(path, width, file)
        about.write_text(json.dumps({"of": facts, "shape": shape, "seconds": seconds}))
    told = json.loads(about.read_text())
    times = np.array(told["seconds"])
    return Recording(np.memmap(data, np.uint8, "r", shape=(len(times), *told["shape"])), times)


def _changed(path: Path) -> int:
    """When the newest of its files was written [ns]."""
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return max((file.stat().st_mtime_ns for file in files if file.exists()), default=0)


def _decode(path: Path, width: int, file: BinaryIO) -> tuple[list[int], list[float]]:
    """Writes the images of the size of the first, in the order of their stamps; their shape, and the stamps.

    Images closer than any cut uses are left out.
    """
    shape: list[int] = []
    seconds: list[float] = []
    unfit = 0
    with open_source(path) as source:
        usable = Images(source)
        for image in tqdm(usable, f"reading {path.name}", total=source.length, unit="image"):
            resize = Resize.of(image.image.shape[0], image.image.shape[1], width, PATCH_SIZE)
            small, second = resize.image(Image.fromarray(image.image)), image.stamp_ns * 1e-9
            shape = shape or list(small.shape)
            if list(small.shape) != shape or (seconds and second <= seconds[-1]):
                unfit += 1
            elif not seconds or second >= seconds[-1] + CLOSEST:
                file.write(small.tobytes())
                seconds.append(second)
    _say_what_is_missing(path, source.damage, usable.skipped, unfit)
    if len(seconds) < FEWEST:
        raise ValueError(f"{path} has {len(seconds)} usable images; a recording to learn from needs at least {FEWEST}")
    return shape, seconds


def _say_what_is_missing(path: Path, damage: str, skipped: Sequence[object], unfit: int) -> None:
    if skipped:
        log.warning("%s: %d images skipped, the first: %s", path, len(skipped), skipped[0])
    if unfit:
        log.warning("%s: %d images left out, of another size than the first or not later than the last", path, unfit)
    if damage:
        log.warning("%s; what could be read is learned from", damage)
