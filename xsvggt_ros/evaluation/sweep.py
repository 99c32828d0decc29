# SPDX-License-Identifier: Apache-2.0
"""What it costs to bound and to quantise the cache: every way of doing it on the same streams of synthetic rooms."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from xsvggt_ros.cache import CacheShape, KVCache
from xsvggt_ros.cache.budget import global_nbytes, tokens_in
from xsvggt_ros.cache.policies import make_policy
from xsvggt_ros.config import POLICIES, CacheConfig, StreamConfig
from xsvggt_ros.evaluation.caches import ComparedStream, CurrentFrameOnly, PublishedQuantiser
from xsvggt_ros.evaluation.datasets import room_sequences
from xsvggt_ros.evaluation.evaluate import UNALIGNED, depth_of, unaligned_pose_of
from xsvggt_ros.evaluation.trace import Trace
from xsvggt_ros.evaluation.workers import in_processes
from xsvggt_ros.frame import Frame
from xsvggt_ros.model import StreamVGGT, load_model
from xsvggt_ros.model.camera_head import ITERATIONS
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.rate import check_rate
from xsvggt_ros.settings import values
from xsvggt_ros.stream import cache_shape

log = logging.getLogger(__name__)

IMAGE_SIZE = (112, 84)  # of the rooms, width and height
PRUNING = tuple(policy for policy in POLICIES if policy != "full")
REFERENCE = 48  # frames, of which the full cache at 16 bits is what byte budgets are counted from
FEW = (2, 1)  # bits of keys and values, at which byte budgets are spent
CHANNEL = (("quantizer", "channel"),)
WITHOUT_FIRST = (("pin_first_frame", False),)
VARIANTS: dict[str, tuple[str, Any]] = {
    "per head": ("per_head", True),
    "adaptive layers": ("layer_budgets", "adaptive"),
    "all queries": ("probes", 0),
    "chunks of 4": ("chunk", 4),
    "adaptive budget": ("adaptive", True),
}


@dataclass(frozen=True)
class Row:
    """One way to keep the past."""

    name: str
    policy: str
    frames: int | None = None  # the budget in frames of tokens
    fewer: int | None = None  # the budget in bytes: so many times fewer than REFERENCE frames take in full at 16 bits
    bits: tuple[int, int] = (16, 16)  # of keys, of values
    settings: tuple[tuple[str, Any], ...] = ()  # of the cache, beyond those
    iterations: int = ITERATIONS  # of the camera head
    kind: type[KVCache] = KVCache

    @property
    def key(self) -> str:
        """What tells it from all other rows."""
        return f"{self.name}, {self.budget}, {self.bits[0]}/{self.bits[1]} bits"

    @property
    def budget(self) -> str:
        """In words."""
        if self.fewer:
            return f"bytes / {self.fewer}"
        return "all" if self.frames is None else f"{self.frames} frames"

    def cache(self, shape: CacheShape, seed: int) -> CacheConfig:
        """Its settings. The camera head's cache holds all frames, so that only the global layers' differ."""
        fixed: dict[str, Any] = {"policy": self.policy, "seed": seed, "camera_window": 0}
        fixed |= {"key_bits": self.bits[0], "value_bits": self.bits[1]}
        tokens = (self.frames or 1) * shape.tokens_per_frame
        config = CacheConfig(budget_tokens=tokens, **fixed, **dict(self.settings))
        if not self.fewer:
            return config
        limit = full_nbytes(shape, REFERENCE) / self.fewer
        tokens = tokens_in(limit, shape, config, make_policy(config, shape))
        return replace(config, budget_tokens=max(1, tokens))


def full_nbytes(shape: CacheShape, frames: int) -> int:
    """Of so many frames at 16 bits, without the camera head's."""
    config = CacheConfig(policy="full", key_bits=16, value_bits=16)
    tokens = [frames * shape.tokens_per_frame] * shape.layers
    return global_nbytes(shape, config, make_policy(config, shape), tokens)


def _rows() -> Iterator[Row]:
    yield Row("full", "full")
    yield from _bits()
    yield from _byte_budgets()
    yield from _controls()
    yield from _variants()


def _bits() -> Iterator[Row]:
    """What few bits cost where nothing is left out."""
    for bits in ((4, 4), (3, 3), (2, 2), (2, 1), (1, 1)):
        yield Row("full", "full", bits=bits)
    for bits in ((4, 4), (2, 2)):
        yield Row("full, channel", "full", bits=bits, settings=CHANNEL)
    yield Row("full, published 4-bit scheme", "full", kind=PublishedQuantiser)


def _byte_budgets() -> Iterator[Row]:
    """Tokens and bits against each other at equal bytes, by policy."""
    for policy in PRUNING:
        yield Row(policy, policy, fewer=20, bits=FEW)
    for fewer, policy in product((10, 40), ("coreset", "stac", "frame_bank", "xstream", "random")):
        yield Row(policy, policy, fewer=fewer, bits=FEW)
    for bits in ((4, 4), (2, 2), (1, 1)):
        yield Row("coreset", "coreset", fewer=20, bits=bits)
    for fewer in (10, 20):
        yield Row("xstream, channel", "xstream", fewer=fewer, bits=(4, 4), settings=CHANNEL)


def _controls() -> Iterator[Row]:
    """What a policy must beat, beside the random choice."""
    yield Row("sliding_window without the first", "sliding_window", fewer=20, bits=FEW, settings=WITHOUT_FIRST)
    yield Row("first + newest", "xstream", 2)
    yield Row("current frame only", "full", 0, kind=CurrentFrameOnly)


def _variants() -> Iterator[Row]:
    """Single settings, each beside the row without it."""
    usual = CacheConfig()
    bits = usual.key_bits, usual.value_bits
    yield Row("default settings", usual.policy, int(usual.budget_frames), bits=bits)
    for name, setting in VARIANTS.items():
        yield Row(f"{usual.policy}, {name}", usual.policy, fewer=20, bits=FEW, settings=(setting,))
    yield Row("full, camera passes apart", "full", settings=(("camera_passes", "apart"),))
    for iterations in range(1, ITERATIONS):
        yield Row(f"full, {iterations} camera iterations", "full", iterations=iterations)
    for degrees in (usual.intake_degrees, 2 * usual.intake_degrees):
        moved = (("intake", "moved"), ("intake_degrees", degrees))
        name = f"default settings, intake moved {degrees:g}°"
        yield Row(name, usual.policy, int(usual.budget_frames), bits=bits, settings=moved)


FULL, *_ = ROWS = tuple(_rows())  # the first is what all others are compared with


def rows_like(pattern: str) -> tuple[Row, ...]:
    """Those whose key the regular expression is found in, and FULL. Raises ValueError if it is none, or finds none."""
    try:
        found = tuple(row for row in ROWS if row is not FULL and re.search(pattern, row.key))
    except re.error as error:
        raise ValueError(f"--rows {pattern!r} is no regular expression: {error}") from None
    if not found:
        raise ValueError(f"--rows {pattern!r} is in no row's name; they are: {'; '.join(row.key for row in ROWS)}")
    return (FULL, *found)


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
    frames: int = REFERENCE
    rate: float = 4.0  # images per second
    motion: str = "robot"
    rows: tuple[Row, ...] = ROWS

    def __post_init__(self) -> None:
        check_rate(self.rate)

    def facts(self, weights: str) -> dict[str, Any]:
        """All that must not change between two runs that share their results, the digest of the weights among it."""
        stream = {name: value for name, value in values(self.config).items() if not name.startswith("cache.")}
        sequence = {"frames": self.frames, "rate": self.rate, "motion": self.motion, "image_size": list(IMAGE_SIZE)}
        return stream | sequence | {"weights": weights}


def run_sweep(sweep: Sweep, seeds: range, folder: Path, workers: int | None) -> Scores:
    """The scores of the rows on the streams of these seeds; those that `folder` already has are not made again.

    Each stream's are in streams.csv as soon as it is done. Raises ValueError for fewer than 4 frames, or a folder
    whose streams were made with other settings.
    """
    if sweep.frames < 4:
        raise ValueError(f"the second half of each stream is scored: frames must be at least 4, got {sweep.frames}")
    folder.mkdir(parents=True, exist_ok=True)
    check_settings(folder / "settings.json", sweep.facts(weights_digest(load_model(sweep.config))))
    scores = read_scores(folder / "streams.csv")
    left = [seed for seed in seeds if not {row.key for row in sweep.rows} <= scores.get(seed, {}).keys()]
    with tqdm(total=len(seeds), initial=len(seeds) - len(left), unit="stream") as progress:
        try:
            for seed, score in in_processes(partial(score_rows, sweep), left, sweep.config, workers):
                scores[seed] = scores.get(seed, {}) | score
                write_scores(folder / "streams.csv", scores)
                progress.update()
        except KeyboardInterrupt:
            log.warning("%d of %d streams are done and kept; the same command goes on", progress.n, len(seeds))
            raise
    return {seed: scores[seed] for seed in seeds}


def weights_digest(model: StreamVGGT) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_settings(path: Path, facts: dict[str, Any]) -> None:
    """Writes them, or compares them with those that are there. Raises ValueError where these are others."""
    if not path.exists():
        path.write_text(json.dumps(facts, indent=1) + "\n")
        return
    there = json.loads(path.read_text())
    if different := [name for name in facts | there if facts.get(name) != there.get(name)]:
        raise ValueError(
            f"{path.parent} holds streams made with other settings ({', '.join(different)}): choose another --output, "
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


# --- streams ---------------------------------------------------------------------------------------


def score_rows(sweep: Sweep, seed: int, model: StreamVGGT) -> dict[str, Score]:
    """Scores of the rows on one stream. They take turns frame by frame, so that their times can be compared."""
    (sequence,) = room_sequences(range(seed, seed + 1), sweep.frames, *IMAGE_SIZE, sweep.motion, sweep.rate)
    streams = [_stream(sweep.config, row, seed, model) for row in sweep.rows]
    traces = [Trace(sequence) for _ in sweep.rows]
    for truth in sequence.frames:
        for stream, trace in zip(streams, traces, strict=True):
            _add(trace, stream.take(truth.image))
    for stream, trace in zip(streams, traces, strict=True):
        _add(trace, stream.flush())
    first = sweep.frames // 2
    return {row.key: _score(s, t, first) for row, s, t in zip(sweep.rows, streams, traces, strict=True)}


def _add(trace: Trace, frames: list[Frame]) -> None:
    for frame in frames:
        trace.add(frame, trace.sequence.frames[frame.index])


def _stream(config: StreamConfig, row: Row, seed: int, model: StreamVGGT) -> ComparedStream:
    width, height = IMAGE_SIZE
    seen = Resize.of(height, width, config.image_width or model.config.image_size, model.config.patch_size)
    types = (model.aggregator.camera_token.dtype, model.camera_head.empty_pose_tokens.dtype)
    shape = cache_shape(model.config, seen.height, seen.width, *types)
    config = replace(config, cache=row.cache(shape, seed), camera_iterations=row.iterations)
    return ComparedStream(config, model, row.kind)


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
