# SPDX-License-Identifier: Apache-2.0
"""What it costs to bound and to quantise the cache: every way of doing it on the same streams of synthetic rooms."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from xsvggt_ros.cache import KVCache
from xsvggt_ros.config import BITS, CacheConfig, StreamConfig
from xsvggt_ros.evaluation.caches import ComparedStream, CurrentFrameOnly, PublishedQuantiser
from xsvggt_ros.evaluation.datasets import room_sequences
from xsvggt_ros.evaluation.evaluate import UNALIGNED, depth_of, unaligned_pose_of
from xsvggt_ros.evaluation.trace import Trace
from xsvggt_ros.model import StreamVGGT, load_model
from xsvggt_ros.model.loading import open_device
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.rate import check_rate
from xsvggt_ros.settings import values

IMAGE_SIZE = (112, 84)  # of the rooms, width and height
BUDGETS = (4, 8, 16)  # frames of tokens, beside the first and newest frame alone
PRUNING = ("xstream", "random", "sliding_window")
FLOOR = "first + newest"
FEW = 4  # frames of tokens; the budget at which single questions are asked


@dataclass(frozen=True)
class Row:
    """One way to keep the past."""

    name: str
    policy: str
    frames: int | None = None  # the budget in frames of tokens; None: no limit
    key_bits: int = 16
    value_bits: int = 16
    pin_first_frame: bool = True
    kind: type[KVCache] = KVCache

    @property
    def key(self) -> str:
        """What tells it from all other rows."""
        return f"{self.name}, {self.budget} frames, {self.key_bits}/{self.value_bits} bits"

    @property
    def budget(self) -> str:
        """In frames of tokens."""
        return "all" if self.frames is None else str(self.frames)

    def cache(self, tokens_per_frame: int, seed: int) -> CacheConfig:
        """Its settings. The camera head's cache holds all frames, so that only the global layers' differ."""
        return CacheConfig(
            policy=self.policy,
            budget_tokens=(self.frames or 0) * tokens_per_frame,
            key_bits=self.key_bits,
            value_bits=self.value_bits,
            pin_first_frame=self.pin_first_frame,
            seed=seed,
            camera_window=0,
        )


def _rows() -> Iterator[Row]:
    for bits in sorted(BITS, reverse=True):
        yield Row("full", "full", None, bits, bits)
        # First and newest frame: all that 2 frames of budget hold, whichever policy, and what 1 is raised to.
        yield Row(FLOOR, "xstream", 2, bits, bits)
        for policy, frames in product(PRUNING, BUDGETS):
            yield Row(policy, policy, frames, bits, bits)
    for frames in (1, FEW):
        yield Row("sliding_window without the first", "sliding_window", frames, pin_first_frame=False)
    yield Row("current frame only", "full", 0, kind=CurrentFrameOnly)
    for key_bits, value_bits in ((16, 4), (4, 16), (8, 4), (4, 2), (2, 4)):
        yield Row("xstream", "xstream", FEW, key_bits, value_bits)
    for key_bits, value_bits in ((16, 4), (4, 16)):
        yield Row("full", "full", None, key_bits, value_bits)
    yield Row("full, published 4-bit scheme", "full", kind=PublishedQuantiser)
    yield Row("xstream, published 4-bit scheme", "xstream", FEW, kind=PublishedQuantiser)


FULL, *_ = ROWS = tuple(_rows())  # the first is what all others are compared with


@dataclass(frozen=True)
class Score:
    """Of one row on the second half of one stream; nothing is aligned, lengths are in the first frame's scale."""

    abs_rel: float
    delta_125: float
    ate: float  # root mean square distance of the camera centres
    rotation: float  # degrees, mean
    rpe_translation: float  # from frame to frame, root mean square
    rpe_rotation: float  # from frame to frame, degrees, root mean square
    global_bytes: float  # of the global layers' cache, after the last frame
    cache_bytes: float  # with the camera head's, which is the same in every row
    step_ms: float  # median


Scores = dict[int, dict[str, Score]]  # seed -> Row.key -> score


@dataclass(frozen=True)
class Sweep:
    """What is the same for all streams."""

    config: StreamConfig
    frames: int = 48
    rate: float = 4.0  # images per second
    motion: str = "robot"

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def facts(self, weights: str) -> dict[str, Any]:
        """All that must not change between two runs that share their results, the digest of the weights among it."""
        stream = {name: value for name, value in values(self.config).items() if not name.startswith("cache.")}
        sequence = {"frames": self.frames, "rate": self.rate, "motion": self.motion, "image_size": list(IMAGE_SIZE)}
        return stream | sequence | {"weights": weights}


def run_sweep(sweep: Sweep, seeds: range, folder: Path, workers: int | None) -> Scores:
    """The scores of all rows on the streams of these seeds; those that `folder` already has are not made again.

    Each stream's are in streams.csv as soon as it is done. Raises ValueError for fewer than 4 frames, or a folder
    whose streams were made with other settings.
    """
    if sweep.frames < 4:
        raise ValueError(f"the second half of each stream is scored: frames must be at least 4, got {sweep.frames}")
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder / "settings.json", sweep.facts(weights_digest(load_model(sweep.config))))
    scores = read_scores(folder / "streams.csv")
    left = [seed for seed in seeds if scores.get(seed, {}).keys() != {row.key for row in ROWS}]
    with tqdm(total=len(seeds), initial=len(seeds) - len(left), unit="stream") as progress:
        for seed, score in _score_streams(sweep, left, workers or _default_workers(sweep.config)):
            scores[seed] = score
            write_scores(folder / "streams.csv", scores)
            progress.update()
    return {seed: scores[seed] for seed in seeds}


def weights_digest(model: StreamVGGT) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_settings(path: Path, facts: dict[str, Any]) -> None:
    if not path.exists():
        path.write_text(json.dumps(facts, indent=1) + "\n")
        return
    there = json.loads(path.read_text())
    if different := [name for name in facts | there if facts.get(name) != there.get(name)]:
        raise ValueError(
            f"{path.parent} holds streams made with another {', '.join(different)}: choose another --output, "
            f"or give the settings of {path}"
        )


# --- results on disk ------------------------------------------------------------------------------


def read_scores(path: Path) -> Scores:
    """None if there is no such file."""
    scores: Scores = {}
    if path.exists():
        with path.open(newline="") as file:
            for line in csv.DictReader(file):
                numbers = {field.name: float(line[field.name]) for field in fields(Score)}
                scores.setdefault(int(line["seed"]), {})[line["row"]] = Score(**numbers)
    return scores


def write_scores(path: Path, scores: Scores) -> None:
    """Replaces the file in one go: an interruption leaves the old one or the new one."""
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["seed", "row", *(field.name for field in fields(Score))])
        writer.writeheader()
        for seed, rows in sorted(scores.items()):
            writer.writerows({"seed": seed, "row": key} | asdict(score) for key, score in rows.items())
    part.replace(path)


# --- worker processes -----------------------------------------------------------------------------


def _default_workers(config: StreamConfig) -> int:
    return torch.get_num_threads() if open_device(config.device).type == "cpu" else 1


def _score_streams(sweep: Sweep, seeds: list[int], workers: int) -> Iterator[tuple[int, dict[str, Score]]]:
    """(seed, scores) as they get done by processes with a thread each."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (sweep.config,))
    try:
        futures = {pool.submit(_score_stream, sweep, seed): seed for seed in seeds}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():  # one may be in the middle of a stream
            worker.terminate()


_model: StreamVGGT  # of this worker


def _start_worker(config: StreamConfig) -> None:
    global _model
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    torch.set_num_threads(1)
    _model = load_model(config)


def _score_stream(sweep: Sweep, seed: int) -> dict[str, Score]:
    return score_rows(sweep, seed, _model)


def score_rows(sweep: Sweep, seed: int, model: StreamVGGT) -> dict[str, Score]:
    """Scores of all rows on one stream. They take turns frame by frame, so that their times can be compared."""
    (sequence,) = room_sequences(range(seed, seed + 1), sweep.frames, *IMAGE_SIZE, sweep.motion, sweep.rate)
    streams = [_stream(sweep.config, row, seed, model) for row in ROWS]
    traces = [Trace(sequence) for _ in ROWS]
    for truth in sequence.frames:
        for stream, trace in zip(streams, traces, strict=True):
            trace.add(stream.step(truth.image), truth)
    first = sweep.frames // 2
    return {row.key: _score(s, t, first) for row, s, t in zip(ROWS, streams, traces, strict=True)}


def _stream(config: StreamConfig, row: Row, seed: int, model: StreamVGGT) -> ComparedStream:
    width, height = IMAGE_SIZE
    sizes = model.config
    seen = Resize.of(height, width, config.image_width or sizes.image_size, sizes.patch_size)
    tokens_per_frame = sizes.tokens_per_frame(seen.height, seen.width)
    return ComparedStream(replace(config, cache=row.cache(tokens_per_frame, seed)), model, row.kind)


def _score(stream: ComparedStream, trace: Trace, first: int) -> Score:
    depth, pose = depth_of(trace, UNALIGNED, first), unaligned_pose_of(trace, first)
    assert depth and pose  # a room's truth is whole
    return Score(
        abs_rel=depth.abs_rel,
        delta_125=depth.delta_125,
        ate=pose.ate,
        rotation=pose.rotation,
        rpe_translation=pose.rpe_translation,
        rpe_rotation=pose.rpe_rotation,
        global_bytes=stream.global_bytes,
        cache_bytes=trace.cache_bytes,
        step_ms=float(np.median(trace.seconds[first:])) * 1000,
    )
