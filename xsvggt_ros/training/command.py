# SPDX-License-Identifier: Apache-2.0
"""`xsvggt train`: a network from rooms or a user's recordings, from a teacher too, resumable at any moment."""

from __future__ import annotations

import argparse
import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from tqdm import tqdm

from xsvggt_ros.config import StreamConfig
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.model.loading import open_device, weights_path
from xsvggt_ros.training.curves import draw_curves
from xsvggt_ros.training.recordings import read_recordings
from xsvggt_ros.training.run import Run
from xsvggt_ros.training.tracking import least_side
from xsvggt_ros.training.trainer import Trainer, export

SEEDS = 1000
MOST_BATCH, MOST_RATE = 40, 10.0
MOST_BATCH_OF_TRACKS = 24  # CUDA's attention takes at most 65535 short sequences at once
READING = timedelta(hours=12)  # at most, of recordings
LAUNCHED = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()  # by torchrun, as one of several processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder for checkpoint.pt, model.safetensors and the curves; a run whose checkpoint is there goes on",
    )
    parser.add_argument("--steps", type=int, default=10_000, metavar="N", help="in all (default: %(default)s)")
    parser.add_argument(
        "--init",
        metavar="FILE",
        help="weights to start a new run from (as the setting `weights`, hf:// too), or another run's checkpoint.pt "
        "(default: random)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        metavar="N",
        help="times as many sequences in every step: for GPUs, as far as their memory goes (default: %(default)s)",
    )
    parser.add_argument(
        "--rate",
        type=float,
        default=1.0,
        metavar="X",
        help="times the usual learning rates: less than 1 for weights that are good already (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another run (default: %(default)s)")
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="INPUT",
        help="recordings to learn from: folders of images, videos or rosbags; they need a --teacher (default: "
        "synthetic rooms)",
    )
    parser.add_argument(
        "--teacher", metavar="FILE", help="weights of a bidirectional network to learn from (as --init)"
    )
    parser.add_argument(
        "--teacher-model", choices=MODELS, default="streamvggt", help="configuration of it (default: %(default)s)"
    )
    parser.add_argument(
        "--truth",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="beside a teacher, learn from what is true of synthetic rooms (default: yes)",
    )
    parser.add_argument(
        "--bidirectional",
        action="store_true",
        help="frames see those that come after them: for a teacher, not for streams",
    )
    parser.add_argument("--tracks", action="store_true", help="train the track head of --init, and nothing else")
    _add_sizes(parser)


def _add_sizes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=MODELS, default="demo", help="named configuration (default: %(default)s)")
    parser.add_argument("--width", type=int, default=112, help="of the images, pixels (default: %(default)s)")
    parser.add_argument(
        "--height",
        type=int,
        default=84,
        help="of rooms' images, pixels; recordings have theirs (default: %(default)s)",
    )
    parser.add_argument("--device", default="auto", help="torch device; auto: cuda if there is one, else cpu")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that share a batch, each with a teacher of its own (default: one per core on a CPU, else 1)",
    )


def run(args: argparse.Namespace) -> int:
    """Trains until done or interrupted (Ctrl-C, SIGTERM), then writes the weights and curves; returns the exit code.

    Raises ValueError or OSError with the reason.
    """
    run = _run_of(args)
    run.folder.mkdir(parents=True, exist_ok=True)
    trainer = _train(run)
    if run.rank == 0:
        export(trainer.averaged, run.folder / "model.safetensors")
        draw_curves(run.folder)
        hours = trainer.seconds / 3600
        print(f"step {trainer.step} of {run.steps} after {hours:.2f} h: {run.folder / 'model.safetensors'}")
        if trainer.step < run.steps:
            print("interrupted; the same command goes on from here")
    return 0


def _run_of(args: argparse.Namespace) -> Run:
    """Raises ValueError for settings that do not go together."""
    device = _device(args.device)
    workers = args.workers
    if workers is None:
        workers = torch.get_num_threads() if device.type == "cpu" else 1
    if LAUNCHED:
        workers = int(os.environ["WORLD_SIZE"])
    elif workers > 1 and device.type != "cpu":
        raise ValueError("workers are for CPUs: for several GPUs start `torchrun --nproc-per-node N -m xsvggt_ros.cli`")
    if not 0 <= args.seed < SEEDS:
        raise ValueError(f"the seed must be from 0 to {SEEDS - 1}, got {args.seed}")
    if min(args.steps, workers, args.batch) < 1:
        raise ValueError("steps, batch and workers must be at least 1")
    if not 0 < args.rate <= MOST_RATE:
        raise ValueError(f"rate must be above 0 and at most {MOST_RATE:g}, got {args.rate:g}")
    most = MOST_BATCH_OF_TRACKS if args.tracks else MOST_BATCH  # more would meet the rooms of the next batch
    if args.batch > most:
        raise ValueError(f"batch must be at most {most}, got {args.batch}")
    patch = MODELS[args.model].patch_size
    if min(args.width, args.height) < patch or args.width % patch or args.height % patch:
        raise ValueError(f"width and height must be multiples of {patch}, got {args.width}x{args.height}")
    if args.teacher is None and (args.data or not args.truth):
        raise ValueError("nothing says what is right: give a --teacher, or learn from the truth of synthetic rooms")
    if args.tracks and (args.init is None or MODELS[args.model].track is None):
        raise ValueError("--tracks needs a model that has a track head, and --init with the rest of its weights")
    if args.tracks and min(args.width, args.height // 2) < (least := least_side(MODELS[args.model])):
        raise ValueError(f"to follow points, this model needs images at least {least} wide and {2 * least} high")
    if args.tracks and (args.teacher or args.bidirectional):
        raise ValueError("tracks are learned from synthetic rooms alone: leave --teacher and --bidirectional out")
    return Run(
        folder=args.output,
        model=args.model,
        steps=args.steps,
        width=args.width,
        height=args.height,
        device=device,
        batch=args.batch,
        rate=args.rate,
        seed=args.seed,
        init=_checkpoint(args.init),
        data=tuple(args.data),
        teacher=_checkpoint(args.teacher),
        teacher_model=args.teacher_model,
        truth=args.truth,
        bidirectional=args.bidirectional,
        tracks=args.tracks,
        rank=int(os.environ["RANK"]) if LAUNCHED else 0,
        workers=workers,
    )


def _checkpoint(weights: str | None) -> Path | None:
    """The file that is meant, downloaded if it is to be."""
    return None if weights is None else weights_path(StreamConfig(weights=weights))


def _device(name: str) -> torch.device:
    device = open_device(name)
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if LAUNCHED and device.type == "cuda" else device


def _train(run: Run) -> Trainer:
    """This process is the first worker, whose children the others are, or one of those that torchrun has started."""
    if LAUNCHED:
        _meet(run)
    if run.data and run.rank == 0:
        read_recordings(run.data, run.folder, run.width)  # the other workers find them read
    if LAUNCHED:
        dist.barrier()
        trainer = _work(run)
        dist.destroy_process_group()
        return trainer
    if run.workers == 1:
        return _work(run)
    meeting = run.folder / ".workers"
    meeting.unlink(missing_ok=True)
    others = multiprocessing.spawn(_other_worker, (run, meeting), run.workers - 1, join=False)
    _join(run, meeting)
    trainer = _work(run)
    while not others.join():  # it returns as each of them ends
        pass
    dist.destroy_process_group()
    meeting.unlink(missing_ok=True)
    return trainer


def _meet(run: Run) -> None:
    """The processes that torchrun has started, which wait for the first while it reads recordings."""
    cuda = run.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(run.device)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=READING, device_id=run.device if cuda else None)


def _work(run: Run) -> Trainer:
    trainer = Trainer(run)

    def stop(*_: object) -> None:
        trainer.stop = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    with tqdm(trainer.train(), initial=trainer.step, total=run.steps, unit="step", disable=run.rank > 0) as steps:
        for _ in steps:
            pass
    return trainer


def _other_worker(index: int, run: Run, meeting: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the first worker tells when to stop
    run = replace(run, rank=index + 1)
    _join(run, meeting)
    for _ in Trainer(run).train():
        pass
    dist.destroy_process_group()


def _join(run: Run, meeting: Path) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all on this machine
    store = dist.FileStore(str(meeting), run.workers)
    dist.init_process_group("gloo", store=store, rank=run.rank, world_size=run.workers)
