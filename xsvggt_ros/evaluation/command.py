# SPDX-License-Identifier: Apache-2.0
"""`xsvggt eval`: errors of the stream on a data set, or of every way to bound its cache on synthetic rooms."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from xsvggt_ros.config import StreamConfig
from xsvggt_ros.evaluation.datasets import DATASETS, EvaluationSequence, readable, room_sequences
from xsvggt_ros.evaluation.enlarging import losses
from xsvggt_ros.evaluation.enlarging import table as enlarging_table
from xsvggt_ros.evaluation.evaluate import UNALIGNED, SequenceErrors, mean_errors, sequence_errors, standing_still
from xsvggt_ros.evaluation.long import KINDS, Long, check_length, false_closures, run_long, table
from xsvggt_ros.evaluation.metrics import ALIGNMENTS, TrackErrors
from xsvggt_ros.evaluation.obstacles import obstacle_shares
from xsvggt_ros.evaluation.obstacles import table as obstacle_table
from xsvggt_ros.evaluation.plots import draw_accuracy, draw_long, draw_sequence
from xsvggt_ros.evaluation.sweep import IMAGE_SIZE, ROWS, Sweep, rows_like, run_sweep
from xsvggt_ros.evaluation.table import Estimate, Table, write_table
from xsvggt_ros.evaluation.trace import Clouds, Gallery, Incomparable, Observer, Trace, follow
from xsvggt_ros.evaluation.tracking import QUERIES, compare
from xsvggt_ros.flags import add_settings, given_settings
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.rate import check_rate
from xsvggt_ros.rooms.motion import MOTIONS
from xsvggt_ros.rooms.room import SHAPES
from xsvggt_ros.rooms.sequence import FIELD_OF_VIEW
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.settings import changed, settings, values

log = logging.getLogger(__name__)

SETTINGS = settings(StreamConfig)
ROOMS = "rooms"
ROOM_FRAMES = 48
PICTURES = 5  # of a sequence
NAME_WIDTH, COLUMN_WIDTH = 26, 9

FEWEST = 2  # frames; poses are compared from one to the next
MOST_SEEDS = 1_000_000  # where those of training begin
# Why an error is undefined: the truth is such that any prediction would score well.
UNDEFINED = {
    "abs_rel": "depth errors: true depth is flat or of too few pixels for the alignment",
    "ate": "ATE and RPE t: the true camera stands still, or there are only 2 poses",
    "centre": "centre: the true camera stands still",
    "accuracy": "point errors: true points are fewer than 3 or in one place",
}

Columns = dict[str, tuple[str, str]]  # name of an error -> heading, format
DEPTH: Columns = {
    "abs_rel": ("AbsRel", ".4f"),
    "sq_rel": ("SqRel", ".4f"),
    "rmse": ("RMSE", ".4f"),
    "log_rmse": ("logRMSE", ".4f"),
    "delta_125": ("d<1.25", ".4f"),
}
POSE: Columns = {"ate": ("ATE", ".4f"), "rpe_translation": ("RPE t", ".4f"), "rpe_rotation": ("RPE r", ".3f")}
UNALIGNED_POSE: Columns = {
    "rotation": ("rot deg", ".2f"),
    "centre": ("centre", ".3f"),
    "adjacent_rotation": ("adj deg", ".2f"),
    "adjacent_turn": ("adj true", ".2f"),
}
POINTS: Columns = {
    "accuracy": ("Acc", ".4f"),
    "completeness": ("Comp", ".4f"),
    "normal_consistency": ("NC", ".4f"),
}
# What a kind of evaluation does not go by: a flag that would be ignored is refused.
NOT_OF_OWN_ROOMS = ("dataset", "root", "stride", "points", "fov", "align")
NOT_OF = {
    "tracks": ("points", "output", "align"),
    "obstacles": ("points", "output", "align"),
    "enlarge": (*NOT_OF_OWN_ROOMS, "output"),
    "sweep": NOT_OF_OWN_ROOMS,
    "long": NOT_OF_OWN_ROOMS,
}
TRACKS = {"error": "error [px]", "delta_average": "delta average", "occlusion_accuracy": "occlusion accuracy"}
COST: Columns = {"cache_mib": ("MiB", ".2f"), "step_ms": ("ms", ".1f")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command, and one for every setting of the stream."""
    parser.add_argument("dataset", nargs="?", choices=DATASETS, default=ROOMS, metavar="DATASET", help=_dataset_help())
    parser.add_argument("root", nargs="?", type=Path, metavar="ROOT", help="folder of the data set")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for errors.{csv,json} and pictures")
    parser.add_argument(
        "--align",
        choices=ALIGNMENTS,
        default=ALIGNMENTS[0],
        help="depth, one fit per sequence, with poses aligned by Sim(3); none: nothing is fitted, depth and poses are "
        "compared in the scale and pose of the first frame (default: %(default)s)",
    )
    parser.add_argument("--points", action="store_true", help="errors of the point cloud too, which takes a while")
    parser.add_argument(
        "--frames", type=int, metavar="N", help=f"most of a sequence (default: all; of synthetic rooms {ROOM_FRAMES})"
    )
    parser.add_argument("--stride", type=int, default=1, metavar="K", help="use every K-th frame (default: 1)")
    _add_kinds(parser)
    _add_room_arguments(parser)
    add_settings(parser, SETTINGS)


def _add_kinds(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_argument_group("instead of these errors, one of").add_mutually_exclusive_group()
    kinds.add_argument(
        "--tracks",
        action="store_true",
        help="how well points are followed, beside optical flow; needs track_groups above 0",
    )
    kinds.add_argument(
        "--obstacles",
        action="store_true",
        help="how right the node's obstacles for a costmap are in rooms, with and without what filters them",
    )
    kinds.add_argument(
        "--enlarge",
        action="store_true",
        help="what depth of the network's resolution loses on its way to that of images of 640x480, by the way of "
        "output.resolution and by others, in synthetic rooms",
    )
    kinds.add_argument(
        "--sweep",
        action="store_true",
        help="every policy, budget and number of bits on synthetic rooms, unaligned, into DIR; streams that are done "
        "there are not made again",
    )
    kinds.add_argument(
        "--long",
        choices=KINDS,
        help="streams of segments and one cache of the same bytes in synthetic rooms, into DIR: drift over many "
        "frames; a lap that comes back to its start; a second room that looks like the first; endless: segments alone",
    )


def _add_room_arguments(parser: argparse.ArgumentParser) -> None:
    rooms = parser.add_argument_group("synthetic rooms")
    rooms.add_argument(
        "--seeds",
        type=_seeds,
        default=range(100, 148),
        metavar="A:B",
        help="rooms A to B - 1; training uses those from 1,000,000 on (default: 100:148)",
    )
    rooms.add_argument("--rate", type=float, default=4.0, metavar="HZ", help="images per second (default: %(default)s)")
    rooms.add_argument(
        "--fov",
        type=float,
        default=FIELD_OF_VIEW,
        metavar="DEG",
        help="horizontal field of view (default: %(default)s)",
    )
    rooms.add_argument("--motion", choices=MOTIONS, default="robot", help="of the camera (default: %(default)s)")
    rooms.add_argument(
        "--rows",
        metavar="REGEX",
        help="of a sweep, only rows whose name, budget and bits it is found in (default: all)",
    )
    rooms.add_argument("--shape", choices=SHAPES, help="with --long: of the rooms (default: room)")
    rooms.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core; GPU: 1)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0. Raises ValueError or OSError, with the fix, for what cannot be evaluated."""
    if args.long and args.frames is not None:
        check_length(args.frames)
    if any(number is not None and number < 1 for number in (args.frames, args.stride, args.workers)):
        raise ValueError("frames, stride and workers must be at least 1")
    if args.frames is not None and args.frames < FEWEST:
        raise ValueError(f"--frames {args.frames} leaves no motion between frames to compare; give at least {FEWEST}")
    check_rate(args.rate)
    if not 10 <= args.fov <= 150:
        raise ValueError(f"--fov must be from 10 to 150 degrees, got {args.fov:g}")
    given = given_settings(args, SETTINGS)
    config = changed(StreamConfig(), given)
    if args.rows and not args.sweep:
        raise ValueError("--rows chooses rows of a sweep: add --sweep")
    if args.shape and not args.long:
        raise ValueError("--shape is for long streams: add --long")
    _check_kind(args)
    if args.long:
        frames = args.frames or KINDS[args.long]
        _long(Long(config, args.long, frames, args.rate, args.motion, args.shape or "room"), args)
    elif args.tracks:
        _evaluate_tracks(args, config)
    elif args.obstacles:
        _evaluate_obstacles(args, config)
    elif args.enlarge:
        _enlarge(args, config)
    elif args.sweep:
        _check_sweep(args, given)
        rows = rows_like(args.rows) if args.rows else ROWS
        _sweep(Sweep(config, args.frames or ROOM_FRAMES, args.rate, args.motion, rows), args)
    else:
        _evaluate(args, config)
    return 0


def _dataset_help() -> str:
    return f"{', '.join(DATASETS)}; without ROOT synthetic rooms, rendered as they are needed (default: {ROOMS})"


def _seeds(text: str) -> range:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    seeds = range(*map(int, match.groups())) if match else range(0)
    if not seeds or seeds.stop - seeds.start > MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B with A below B, as in 100:148")
    return seeds


def _check_kind(args: argparse.Namespace) -> None:
    """Raises ValueError for a flag that the kind of evaluation does not go by."""
    for kind, foreign in NOT_OF.items():
        if getattr(args, kind) and any(getattr(args, name) != args.parser.get_default(name) for name in foreign):
            flags = (name.upper() if name in ("dataset", "root") else f"--{name}" for name in foreign)
            raise ValueError(f"--{kind} does not go by all that is given: leave {', '.join(flags)} out")


def _check_sweep(args: argparse.Namespace, given: dict[str, Any]) -> None:
    if args.output is None:
        raise ValueError("a sweep needs a folder to write into: add --output DIR")
    if set_by_sweep := [name for name in given if name.startswith("cache.")]:
        raise ValueError(f"a sweep tries the cache's settings itself: leave {', '.join(set_by_sweep)} out")


def _sweep(sweep: Sweep, args: argparse.Namespace) -> None:
    table = Table(run_sweep(sweep, args.seeds, args.output, args.workers), sweep.rows)
    write_table(table, args.output, _command(), json.loads((args.output / "settings.json").read_text()))
    draw_accuracy(args.output / "accuracy_vs_bytes.png", table)
    print((args.output / "table.md").read_text())


def _long(long: Long, args: argparse.Namespace) -> None:
    if args.output is None:
        raise ValueError("long streams need a folder to write into: add --output DIR")
    found = run_long(long, args.seeds, args.output, args.workers)
    text = f"`{_command()}`: {len(found)} streams of {long.frames} frames.\n\n"
    suffix = _of_length(args.output / "table.md", long.frames)
    if long.kind == "alike":
        text += f"{false_closures(found, long.frames)} of them took the second room for the first.\n"
    else:
        text += table(found)
        draw_long(args.output / f"errors{suffix}.png", found)
    (args.output / f"table{suffix}.md").write_text(text)
    print(text)


def _of_length(table_: Path, frames: int) -> str:
    """What is added to the names of a run's files where those of another length are there."""
    there = re.search(r" streams of (\d+) frames", table_.read_text()) if table_.exists() else None
    return f"_{frames}" if there and int(there[1]) != frames else ""


def _command() -> str:
    return shlex.join(["xsvggt", *sys.argv[1:]])


# --- a data set -----------------------------------------------------------------------------------


@dataclass
class Evaluation:
    """The errors of all sequences so far, and those of standing still where nothing is aligned."""

    errors: list[SequenceErrors] = field(default_factory=list)
    baseline: list[SequenceErrors] = field(default_factory=list)

    def means(self) -> list[SequenceErrors]:
        found = [mean_errors(self.errors)]
        return [*found, mean_errors(self.baseline, "constant depth, still")] if self.baseline else found

    def notes(self, points: bool) -> list[str]:
        """Sentences about what could not be scored, of which sequences, and that the mean is without them."""
        kinds = ["depth", "pose", *(["points"] if points else [])]
        unknown = {kind: [e.name for e in self.errors if getattr(e, kind) is None] for kind in kinds}
        undefined = {
            why: [e.name for e in self.errors if e.columns().get(name, 0) is None] for name, why in UNDEFINED.items()
        }
        return [
            *(f"no {kind} errors, as the truth is not known: {', '.join(w)}" for kind, w in unknown.items() if w),
            *(f"undefined, and not in the mean, {why}: {', '.join(w)}" for why, w in undefined.items() if w),
        ]


def _evaluate(args: argparse.Namespace, config: StreamConfig) -> None:
    if args.output and (args.output / "errors.json").exists():
        raise ValueError(f"{args.output} already has errors.json: choose another output folder, or remove it")
    sequences, count = _sequences(args)
    stream = SegmentedStream(config)
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
    evaluation = Evaluation()
    unaligned, points = UNALIGNED_POSE if args.align == UNALIGNED else {}, POINTS if args.points else {}
    columns = DEPTH | POSE | unaligned | points | COST
    print(f"{'':<{NAME_WIDTH}}" + "".join(f"{heading:>{COLUMN_WIDTH}}" for heading, _ in columns.values()))
    for sequence in tqdm(sequences, total=count, unit="sequence", leave=False):
        errors = _evaluate_sequence(args, stream, sequence, evaluation)
        if errors:
            tqdm.write(_line(errors, columns))
    if not evaluation.errors:
        source = args.root or f"the rooms of --seeds {args.seeds.start}:{args.seeds.stop}"
        raise ValueError(f"no sequence of {source} could be used; the warnings say why")
    for mean in evaluation.means():
        print(_line(mean, columns))
    for note in evaluation.notes(args.points):
        print(note)
    if args.output:
        _write(args, config, evaluation)


def _evaluate_tracks(args: argparse.Namespace, config: StreamConfig) -> None:
    """Prints the mean over sequences and its standard error, of each way to follow points."""
    if not config.track_groups:
        raise ValueError("--tracks needs a stream that follows points: add --track_groups 1")
    sequences, count = _sequences(args)
    stream = SegmentedStream(config)
    found: dict[str, list[TrackErrors]] = {}
    for sequence in tqdm(sequences, total=count, unit="sequence", leave=False):
        for name, errors in compare(stream, sequence).items():
            found.setdefault(name, []).append(errors)
    print(f"{len(found['stream'])} sequences, {QUERIES} points each", *TRACKS.values(), sep="  ")
    for name, of_sequences in found.items():
        columns = (np.array([getattr(errors, column) for errors in of_sequences]) for column in TRACKS)
        print(f"{name:<8}", *(Estimate.of(x[~np.isnan(x)]).text(".3f") for x in columns), sep="  ")


def _evaluate_obstacles(args: argparse.Namespace, config: StreamConfig) -> None:
    """Prints how right and how complete obstacles are, by where the metres come from and what filters the points."""
    if args.dataset != ROOMS:
        raise ValueError("--obstacles is for rooms, whose floor is known: leave DATASET out, or give rooms and ROOT")
    sequences, count = _sequences(args)
    stream = SegmentedStream(config)
    progress = tqdm(sequences, total=count, unit="sequence", leave=False)
    found = [obstacle_shares(stream, each) for each in progress]
    print(f"`{_command()}`: {len(found)} rooms.\n\n{obstacle_table(found)}")


def _enlarge(args: argparse.Namespace, config: StreamConfig) -> None:
    """Prints a table."""
    width = config.image_width or MODELS[config.model].image_size
    found = losses(args.seeds, args.frames or ROOM_FRAMES, args.rate, args.motion, width)
    print(f"`{_command()}`\n\n{enlarging_table(found)}")


def _sequences(args: argparse.Namespace) -> tuple[Iterable[EvaluationSequence], int]:
    """With every `stride`-th of their frames, and how many sequences."""
    if args.root:
        found = DATASETS[args.dataset](args.root)
        cut = slice(0, args.frames and args.frames * args.stride, args.stride)
        long = _long_enough([replace(sequence, frames=sequence.frames[cut]) for sequence in found], args.stride)
        return long, len(long)
    if args.dataset != ROOMS:
        raise ValueError(f"{args.dataset} has to be read from somewhere: give its folder as ROOT")
    return _rooms(args), len(args.seeds)


def _long_enough(sequences: list[EvaluationSequence], stride: int) -> list[EvaluationSequence]:
    """Those whose motion can be compared; what is left out is said. Raises ValueError if none is left."""
    short = [sequence.name for sequence in sequences if len(sequence.frames) < FEWEST]
    text = f"fewer than {FEWEST} frames at --stride {stride}: {', '.join(short)}"
    if len(short) == len(sequences):
        raise ValueError(f"nothing to evaluate, as all have {text}; lower --stride or give longer sequences")
    if short:
        log.warning("left out, %s", text)
    return [sequence for sequence in sequences if len(sequence.frames) >= FEWEST]


def _rooms(args: argparse.Namespace) -> Iterator[EvaluationSequence]:
    frames = (args.frames or ROOM_FRAMES) * args.stride
    for sequence in room_sequences(args.seeds, frames, *IMAGE_SIZE, args.motion, args.rate, args.fov):
        yield replace(sequence, frames=sequence.frames[:: args.stride])


def _evaluate_sequence(
    args: argparse.Namespace, stream: SegmentedStream, sequence: EvaluationSequence, evaluation: Evaluation
) -> SequenceErrors | None:
    """Its errors, which go into the evaluation; None where too little of it can be used."""
    trace, clouds = Trace(sequence), Clouds(sequence)
    gallery = Gallery.of(len(sequence.frames), PICTURES)
    frames = tqdm(
        readable(sequence), sequence.name, len(sequence.frames), unit="frame", leave=False, disable=None
    )  # fmt: skip
    observers: list[Observer] = [trace, *([clouds] if args.points else []), *([gallery] if args.output else [])]
    try:
        follow(stream, sequence.name, frames, *observers)
    except Incomparable as error:
        log.warning("%s is left out: %s", sequence.name, error)
        return None
    if len(trace.seconds) < FEWEST:
        log.warning("%s is left out: %d of its frames can be used", sequence.name, len(trace.seconds))
        return None
    errors = sequence_errors(trace, clouds, args.align)
    evaluation.errors.append(errors)
    if args.align == UNALIGNED and trace.scale_true is not None:
        evaluation.baseline.append(sequence_errors(standing_still(trace), None, UNALIGNED))
    if args.output:
        name = re.sub(r"\W+", "_", sequence.name)
        draw_sequence(args.output / f"{name}.png", trace, gallery, args.align)
    return errors


def _line(errors: SequenceErrors, columns: Columns) -> str:
    found = errors.columns()
    numbers = ((found.get(name), form) for name, (_, form) in columns.items())
    cells = ["-" if number is None else format(number, form) for number, form in numbers]
    return f"{errors.name:<{NAME_WIDTH}}" + "".join(f"{cell:>{COLUMN_WIDTH}}" for cell in cells)


def _write(args: argparse.Namespace, config: StreamConfig, evaluation: Evaluation) -> None:
    """errors.csv, a line per sequence and mean; errors.json, the same with the command and all settings."""
    rows = [{"name": e.name} | e.columns() for e in [*evaluation.errors, *evaluation.means()]]
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (args.output / "errors.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    facts = {"command": _command(), "alignment": args.align, "settings": values(config), "errors": rows}
    notes = {"notes": evaluation.notes(args.points)}
    (args.output / "errors.json").write_text(json.dumps(facts | notes, indent=1, allow_nan=False) + "\n")
