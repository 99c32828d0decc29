# SPDX-License-Identifier: Apache-2.0
"""The console command `xsvggt` and its subcommands."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from xsvggt_ros.names import unknown_names
from xsvggt_ros.threads import wait_without_spinning

# Subcommand -> what it does, and the module with `add_arguments(parser)` and `run(args) -> exit code`.
# Only the module that is asked for gets imported: most of them load torch.
COMMANDS = {
    "replay": ("run the stream on a folder of images, a video or a rosbag2, without ROS", "xsvggt_ros.replay.command"),
    "batch": (
        "run replay on many recordings at a time, on this machine or on a Ray cluster",
        "xsvggt_ros.batch.command",
    ),
    "live": ("show the stream of a recording in the browser as it runs, without ROS", "xsvggt_ros.live.command"),
    "demo": ("play images to the node over ROS 2 and write a report of what comes back", "xsvggt_ros.demo.command"),
    "parameters": ("print every parameter with its default", "xsvggt_ros.parameters_file"),
    "rooms": ("render a synthetic room with exact depth and poses", "xsvggt_ros.rooms.command"),
    "train": ("train a small network on synthetic rooms", "xsvggt_ros.training.command"),
    "eval": ("measure errors on a data set, or what bounding the cache costs", "xsvggt_ros.evaluation.command"),
    "convert": ("write a checkpoint as one plain safetensors file", "xsvggt_ros.model.convert"),
    "bench": ("time the steps of a model", "xsvggt_ros.evaluation.bench"),
}
TRUTH = re.compile("true|false", re.IGNORECASE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command line: 0 done, 2 bad input (one sentence on stderr says what), 130 interrupted."""
    wait_without_spinning()
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    parser = _parser(arguments[:1])
    args, unknown = parser.parse_known_args(arguments)
    if args.command not in arguments[:1]:
        parser.error(f"unrecognized arguments: {arguments[0]} before {args.command}, whose flags follow it")
    if unknown:
        args.parser.error(f"unrecognized arguments: {_named(unknown, args.parser)}")
    try:
        return args.run(args)
    except (ValueError, OSError, MemoryError) as error:
        print(f"xsvggt {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser(wanted: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xsvggt", description="Streaming geometry from one camera.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (summary, module) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if name in wanted:
            subcommand = import_module(module)
            subcommand.add_arguments(command)
            command.set_defaults(run=subcommand.run, parser=command)
    return parser


def _named(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """The unknown flags with the nearest that there are; else the words that are too many."""
    flags = [word.partition("=")[0] for word in unknown if word.startswith("--")]
    if not flags:
        written = "; what is true or false is written --NAME and --no-NAME" * any(map(TRUTH.fullmatch, unknown))
        return ", ".join(unknown) + written
    return unknown_names(flags, re.findall(r"--[\w.-]+", parser.format_usage()))


if __name__ == "__main__":
    sys.exit(main())
