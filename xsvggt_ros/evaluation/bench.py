# SPDX-License-Identifier: Apache-2.0
"""`xsvggt bench`: what a step takes on this machine, beside what its matrix multiplication is capable of."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from xsvggt_ros.config import StreamConfig
from xsvggt_ros.evaluation.work import Work, peak_bytes, work_of
from xsvggt_ros.flags import add_settings, given_settings
from xsvggt_ros.memory import MIB
from xsvggt_ros.model.loading import RANDOM
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.settings import changed, settings
from xsvggt_ros.stream import StageTimer

SETTINGS = settings(StreamConfig)
WORK = {*(field.name for field in fields(Work)), "step_of_gemm"}  # facts that have lines of their own
IMAGE_SIZE = (480, 640)  # rows, columns; 518x392 for the published model
Size = tuple[int, int, int]  # of a matrix product: rows, inner, columns
GEMM_SECONDS, GEMM_PATIENCE = 1.0, 5.0  # it is repeated for; after which it is not repeated for the median's sake
GEMM_REPEATS = 3  # at least


@dataclass(frozen=True)
class Timing:
    """Of one stage over the measured steps, seconds."""

    median: float
    minimum: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command, and one for every setting of the stream."""
    parser.add_argument("--frames", type=int, default=20, metavar="N", help="steps to measure (default: %(default)s)")
    parser.add_argument(
        "--warm-up",
        type=int,
        default=5,
        metavar="N",
        help="steps before; where they do not fill the cache that is said (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    add_settings(parser, SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Exit code 0. Raises ValueError or FileNotFoundError, with the fix, for settings that cannot work."""
    if args.frames < 1 or args.warm_up < 0:
        raise ValueError(f"frames must be at least 1 and warm-up at least 0, got {args.frames} and {args.warm_up}")
    usual = StreamConfig(weights=RANDOM, refine=False)  # time is the same, and noise shows no motion
    config = changed(usual, given_settings(args, SETTINGS))
    if config.cache.chunk > 1:
        raise ValueError("bench times steps of single images: leave --cache.chunk at 1")
    stream = SegmentedStream(config)
    stages = time_stages(stream, args.frames, args.warm_up)
    facts = _facts(stream)
    steps = args.warm_up + args.frames
    counted = _launched_singly(stream, steps)
    work = work_of(lambda: counted.step(np.zeros((*IMAGE_SIZE, 3), np.uint8)), stream.device)
    size = gemm_size(stream)
    rate = gemm_rate(stream.device, stream.dtype, size)
    facts |= asdict(work) | {"step_of_gemm": stages["step"].median * rate / work.flop}
    if args.json:
        print(json.dumps(facts | {"seconds": {s: vars(t) for s, t in stages.items()}, "gemm_flops": rate}))
    else:
        _print_table(facts, stages, steps)
        _print_work(stream, work, stages["step"].median, size, rate)
    return 0


def time_stages(stream: SegmentedStream, frames: int, warm_up: int) -> dict[str, Timing]:
    """{stage: timing} of `frames` steps on images of noise, after `warm_up` others; "step" is the whole."""
    rng = np.random.default_rng(0)
    seconds = []
    for _ in range(warm_up + frames):
        frame = stream.step(rng.integers(0, 256, (*IMAGE_SIZE, 3), dtype=np.uint8))
        seconds.append(frame.status.seconds)
    measured = {stage: [step.get(stage, 0.0) for step in seconds[warm_up:]] for stage in seconds[-1]}
    return {stage: Timing(float(np.median(times)), min(times)) for stage, times in measured.items()}


def _launched_singly(stream: SegmentedStream, steps: int) -> SegmentedStream:
    """One as far on, whose operators are launched one by one: on CUDA a graph would hide them."""
    if stream.device.type == "cuda":
        stream = SegmentedStream(replace(stream.config, compile="none"), stream.model)
        time_stages(stream, 1, steps - 1)
    return stream


def gemm_size(stream: SegmentedStream) -> Size:
    """Of the first layer of an MLP of the stream's model."""
    config = stream.model.config
    seen = Resize.of(*IMAGE_SIZE, stream.width, config.patch_size)
    return config.tokens_per_frame(seen.height, seen.width), config.width, int(config.width * config.mlp_ratio)


@torch.inference_mode()
def gemm_rate(device: torch.device, dtype: torch.dtype, size: Size) -> float:
    """Floating-point operations per second of a matrix product of that size; the median over about a second."""
    rows, inner, columns = size
    a = torch.ones(rows, inner, dtype=dtype, device=device)
    b = torch.ones(inner, columns, dtype=dtype, device=device)
    times: list[float] = []
    while sum(times) < GEMM_SECONDS or (len(times) < GEMM_REPEATS and sum(times) < GEMM_PATIENCE):
        timer = StageTimer(device)
        product = a @ b
        timer("gemm")
        float(product[0, 0])  # waits for the device
        times.append(timer.seconds()["gemm"])
    return 2 * rows * inner * columns / float(np.median(times))


def _facts(stream: SegmentedStream) -> dict[str, Any]:
    s = stream.status
    return {
        "model": stream.config.model,
        "device": str(stream.device),
        "dtype": _name(stream.dtype),
        "weight_bits": stream.config.weight_bits,
        "threads": torch.get_num_threads(),
        "width": stream.width,
        "policy": s.policy,
        "bits": [s.key_bits, s.value_bits],
        "frames_taken_in": s.frames_taken_in,
        "tokens": s.tokens,
        "budget_tokens": s.budget_tokens,
        "cache_bytes": s.cache_bytes,
        "scratch_bytes": s.scratch_bytes,
        "peak_bytes": peak_bytes(stream.device),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _print_table(facts: dict[str, Any], stages: dict[str, Timing], steps: int) -> None:
    for name, value in facts.items():
        if name in WORK:
            continue
        print(f"{name:<16}{value / MIB:.2f} MiB" if name.endswith("_bytes") else f"{name:<16}{value}")
    if facts["tokens"] < facts["budget_tokens"]:
        print(f"the cache is not full yet: {_remedy(facts, steps)}")
    print(f"\n{'stage':<16}{'median [ms]':>12}{'least [ms]':>12}")
    for stage, timing in stages.items():
        print(f"{stage:<16}{timing.median * 1000:>12.1f}{timing.minimum * 1000:>12.1f}")


def _remedy(facts: dict[str, Any], steps: int) -> str:
    if (taken := facts["frames_taken_in"]) < steps:
        return f"it took in {taken} of {steps} images; steps take longer with --cache.intake every"
    needed = math.ceil(steps * facts["budget_tokens"] / facts["tokens"])
    return f"steps take longer with --warm-up {needed}, which fills it"


def _print_work(stream: SegmentedStream, work: Work, step: float, size: Size, rate: float) -> None:
    """What a step does, beside a matrix product of the compute type."""
    gemm, ideal = f"GEMM {_name(stream.dtype)}", work.flop / rate
    kind = "kernels and copies" if stream.device.type == "cuda" else "operators"
    of_it = f"{ideal * 1000:.1f} ms at that rate; the step takes {step / ideal:.2f} of it"
    print(f"{gemm:<16}{rate / 1e9:>12.1f} GFLOP/s, {'x'.join(map(str, size))}")
    print(f"{'flop':<16}{work.flop / 1e9:>12.1f} GFLOP, {of_it}")
    print(f"{'launches':<16}{work.launches:>12} {kind}")
    moved = f"{work.bytes_moved / MIB:>12.1f} MiB, an estimate"
    print(f"{'bytes_moved':<16}{moved}: what operators read and write, if nothing stays in the processor's cache")
