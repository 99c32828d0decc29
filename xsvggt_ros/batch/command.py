# SPDX-License-Identifier: Apache-2.0
"""`xsvggt batch`: many recordings through `xsvggt replay`, on all cores and GPUs of a machine or of a cluster."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from threading import Event

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from xsvggt_ros.batch.fleet import Again, check_installed, connected, employed
from xsvggt_ros.batch.recordings import (
    PAGE,
    TABLE,
    THREADS,
    Job,
    Record,
    asked_for,
    output_of_one_batch,
    plan,
    settings_of,
)
from xsvggt_ros.batch.summary import Outcome, readable, write_summary
from xsvggt_ros.batch.worker import Failure, Progress
from xsvggt_ros.config import NodeConfig
from xsvggt_ros.flags import add_settings, given_settings
from xsvggt_ros.model.hub import HUB
from xsvggt_ros.model.loading import RANDOM, weights_path
from xsvggt_ros.replay.command import SETTINGS, say_what_the_model_knows
from xsvggt_ros.replay.signals import INTERRUPTED, stop_signals
from xsvggt_ros.replay.sources import add_source_arguments, bag_topics, reading_of
from xsvggt_ros.settings import changed

# tqdm's own, but for the tenths of what is under way.
BAR = "{l_bar}{bar}| {n:.1f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command, and one for every setting."""
    add_source_arguments(parser, many=True)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder for a folder of each recording, as xsvggt replay makes it, and summary.csv and summary.html; what "
        "is done there already is left as it is",
    )
    parser.add_argument(
        "--address",
        metavar="RAY",
        help="HOST:PORT of a Ray cluster's head, or auto for that which this machine is part of; all its machines have "
        "recordings, weights and output under the same paths (default: this machine only)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes at a time, at most; more than there are GPUs share these (default: one for each GPU, or for "
        "every --threads cores where there is none, as far as there is memory)",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=THREADS,
        metavar="N",
        help=f"processor threads of each process (default: {THREADS})",
    )
    add_settings(parser, SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Exit code: 0 if all are done, 1 if some are not or there is no summary, 130 after SIGINT or SIGTERM.

    Raises ValueError or OSError with the reason where none can be done.
    """
    for name in ("workers", "threads"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    check_installed()
    config = _with_absolute_weights(changed(NodeConfig(), given_settings(args, SETTINGS)))
    reading = reading_of(args)
    bag_topics(config, reading.reference)
    output = args.output.absolute()
    with output_of_one_batch(output), stop_signals() as stop:
        jobs, done = plan(args.inputs, output, settings_of(config, reading, args.threads))
        outcome = Outcome(jobs, done)
        if jobs:
            say_what_the_model_knows(config)
            with connected(args.address) as ray:
                fleet, size = employed(ray, jobs, args.workers, args.threads, config, reading, output)
                _follow(fleet.run(size, stop), outcome)
        summarized = _summarized(output, outcome, len(asked_for(args.inputs)))
    return _end(outcome, summarized, stop)


def _with_absolute_weights(config: NodeConfig) -> NodeConfig:
    """Other processes may be in another folder."""
    weights = config.stream.weights
    if not weights or weights == RANDOM or weights.startswith(HUB):
        return config
    return changed(config, {"weights": str(weights_path(config.stream).absolute())})


def _follow(events: Iterator[tuple[Job, Progress | Again | Record | Failure]], outcome: Outcome) -> None:
    """Notes what becomes of each recording, and shows how far all are."""
    begun: dict[str, Progress] = {}
    count = len(outcome.jobs)
    with logging_redirect_tqdm(), tqdm(total=count, unit="recording", bar_format=BAR, miniters=0, disable=None) as bar:
        for job, event in events:
            begun.pop(job.name, None)
            if isinstance(event, Progress):
                begun[job.name] = event
            elif isinstance(event, Again):
                log.warning("%s: %s; it is tried again in another process", job.name, event.reason)
            elif isinstance(event, Failure):
                outcome.failed[job.name] = event.reason
                log.error("%s: %s", job.name, event.reason)
            else:
                outcome.done[job.name] = event
                begun[job.name] = Progress(event.frames, event.frames)
                settled = f"[{outcome.settled}/{count}]"
                bar.write(f"{settled} {job.name}: {event.frames} frames in {event.seconds:.1f} s", file=sys.stderr)
                if event.damage:
                    log.warning("%s: %s; what could be read is done", job.name, event.damage)
            bar.set_postfix_str(_frames(begun.values()), refresh=False)
            bar.update(len(outcome.failed) + sum(each.share for each in begun.values()) - bar.n)


def _frames(begun: Collection[Progress]) -> str:
    """Of all recordings that are begun, and of how many images, where that is known of all."""
    frames, images = sum(each.frames for each in begun), [each.images for each in begun if each.images is not None]
    return f"{frames} of {sum(images)} frames" if images and len(images) == len(begun) else f"{frames} frames"


def _summarized(output: Path, outcome: Outcome, asked: int) -> bool:
    """Says what was done of so many recordings, and where that can be read; returns whether it can."""
    now, before = len(outcome.done_now), asked - len(outcome.jobs)
    others = len(outcome.done) - now - before
    said = f"{now + before} of {asked} recordings done" + f", {before} before" * bool(before)
    print(said + f"; {others} more in the folder" * bool(others))
    try:
        write_summary(output, outcome)
    except OSError as error:
        unwritten = f"{TABLE} and {PAGE} could not be written ({error.strerror})"
        log.error("%s: mend that, and the same command writes them", unwritten)
        return False
    print(readable(str(output / PAGE)))
    return True


def _end(outcome: Outcome, summarized: bool, stop: Event) -> int:
    """The exit code."""
    if stop.is_set():
        log.warning("interrupted; the same command goes on with what is left")
        return INTERRUPTED
    return 0 if summarized and len(outcome.done_now) == len(outcome.jobs) else 1
