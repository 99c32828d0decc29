# SPDX-License-Identifier: Apache-2.0
"""`xsvggt rooms`: a synthetic sequence with its truth, as files or as a rosbag2."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from tqdm import tqdm

from xsvggt_ros.rooms.bag import write_bag
from xsvggt_ros.rooms.motion import MOTIONS
from xsvggt_ros.rooms.room import SHAPES
from xsvggt_ros.rooms.sequence import stream, write_folder

FORMATS = {"folder": write_folder, "bag": write_bag}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, help="new folder to write into")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="folder",
        help="folder: rgb/, depth/, poses, intrinsics; bag: rosbag2 of the camera's topics, true depth and TF "
        "(default: folder)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the room (default: 0)")
    parser.add_argument("--frames", type=int, default=300, metavar="N", help="images to render (default: 300)")
    parser.add_argument("--width", type=int, default=320, help="pixels (default: 320)")
    parser.add_argument("--height", type=int, default=240, help="pixels (default: 240)")
    parser.add_argument("--shape", choices=SHAPES, default="room", help="of the room (default: %(default)s)")
    parser.add_argument("--motion", choices=MOTIONS, default="robot", help="of the camera (default: robot)")
    parser.add_argument("--rate", type=float, default=30.0, metavar="HZ", help="images per second (default: 30)")


def run(args: argparse.Namespace) -> int:
    """Writes the sequence; returns the exit code. Raises ValueError or OSError with the reason."""
    if min(args.frames, args.width, args.height) < 1 or args.seed < 0:
        raise ValueError("frames, width and height must be at least 1, seed at least 0")
    frames = stream(args.seed, args.frames, args.width, args.height, args.motion, args.rate, shape=args.shape)
    FORMATS[args.format](tqdm(frames, total=args.frames, unit="frame"), args.output)
    source = (
        quote(str(args.output)) if args.format == "bag" else f"{quote(str(args.output / 'rgb'))} --rate {args.rate:g}"
    )
    print(f"{args.frames} images; their stamps are those of: xsvggt replay {source} --output DIR")
    return 0
