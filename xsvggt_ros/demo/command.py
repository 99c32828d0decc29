# SPDX-License-Identifier: Apache-2.0
"""`xsvggt demo`: the real node, images at camera rate over DDS, a change of memory half way, and a report."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Event
from types import ModuleType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from xsvggt_ros.config import NodeConfig, StreamConfig
from xsvggt_ros.demo.images import demo_sequence
from xsvggt_ros.demo.recording import Recording, as_json, check
from xsvggt_ros.demo.report import headline, html
from xsvggt_ros.flags import add_settings, given_settings
from xsvggt_ros.frame import Frame, InputImage
from xsvggt_ros.installation import package_file
from xsvggt_ros.messages.topics import outputs
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.model.loading import has_track_head
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.rate import check_rate
from xsvggt_ros.replay.signals import stop_signals
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.settings import changed, settings, values

PASSED_ON = ("weights", "model", "device", "dtype", "attention", "image_width", "queue")
SETTINGS = [setting for setting in settings(NodeConfig) if setting.name in PASSED_ON]
START = {"frames": 32, "bits": 16}
LATER = {"frames": 8, "bits": 4}
STOP_S = 20.0  # from SIGINT to the node's end
TRACKS = {"track_groups": 1, "track_grid": 4}  # where the model has a track head
LOG_LINES = 15  # of the node, shown when it fails


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command, and those of the node's settings that are not the demo's own."""
    parser.add_argument(
        "--input", type=Path, help="folder of images, video file, or rosbag2 (default: a synthetic room)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("demo_output"),
        help="folder for report.html, record.json and node.log (default: %(default)s)",
    )
    parser.add_argument(
        "--rate", type=float, default=10.0, metavar="HZ", help="images sent per second (default: %(default)s)"
    )
    parser.add_argument(
        "--max-frames", type=int, default=60, metavar="N", help="images to send at most (default: %(default)s)"
    )
    add_settings(parser, SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Exit code: 0 if all that the report checks holds, else 1.

    Raises ValueError or OSError, before the node is started, for input or output that cannot work.
    """
    config = changed(NodeConfig(), given_settings(args, SETTINGS))
    if _can_track(config.stream):
        config = changed(config, TRACKS)
    check_rate(args.rate)
    ros = _ros_side()
    args.output.mkdir(parents=True, exist_ok=True)
    log = args.output / "node.log"
    log.write_text("")
    images, truth = demo_sequence(args.input, args.max_frames)
    start, later = (changed(config, _memory(config, images[0].image, **memory)) for memory in (START, LATER))
    try:
        with (
            stop_signals() as stop,  # an exception amid rclpy's callbacks might be lost
            _stream_node(start, log) as node,
            ros.stream_client(lambda: _check_alive(node, stop), outputs(start)) as client,
        ):
            client.wait_until_ready(images[0])
            print(f"playing {len(images)} images at {args.rate:g} Hz ...", flush=True)
            played = ros.play(client, images, args.rate, _changes(start, later), change_after=len(images) // 2)
    except (ChildProcessError, TimeoutError) as error:
        tail = "\n".join(log.read_text().splitlines()[-LOG_LINES:])
        print(f"xsvggt demo: {error}; the end of {log}:\n{tail}", file=sys.stderr)
        return 1
    unchanged = _without_change(start.stream, [images[a.image] for a in played.answers]) if truth else []
    source = str(args.input or "a synthetic room that was not trained on")
    return _report(Recording(source, images, truth, start, later, played, unchanged, node.returncode), args.output)


def _can_track(config: StreamConfig) -> bool:
    try:
        return has_track_head(config)
    except (ValueError, OSError):
        return False  # what is wrong with the weights is for the node to say


def _ros_side() -> ModuleType:
    try:
        return import_module("xsvggt_ros.demo.client")  # late: this folder works without ROS
    except ModuleNotFoundError as error:
        raise ValueError(f"the demo needs ROS 2, and {error.name} is missing: `make .venv` installs it") from error


def _without_change(config: StreamConfig, images: list[InputImage]) -> list[Frame]:
    """What the stream says of the images if its settings stay: what the change cost shows only beside this."""
    torch.set_num_threads(_threads())  # the node's: the same sums, and no threads that compete on a busy machine
    stream = SegmentedStream(config)
    return [stream.step(image.image, image.intrinsics) for image in tqdm(images, "without the change", unit="image")]


def _report(recording: Recording, output: Path) -> int:
    checks = check(recording)
    (output / "record.json").write_text(json.dumps(as_json(recording, checks), indent=1))
    (output / "report.html").write_text(html(recording, checks), encoding="utf-8")
    for label, value in headline(recording):
        print(f"{label:<24}{value}")
    failed = [c for c in checks if c.problem]
    print(f"{'checks':<24}{len(checks) - len(failed)} of {len(checks)} hold")
    for c in failed:
        print(f"FAILED: {c.claim}: {c.problem}", file=sys.stderr)
    print(f"{'report':<24}{output / 'report.html'}")
    return 1 if failed else 0


def _memory(config: NodeConfig, image: np.ndarray, frames: int, bits: int) -> dict[str, Any]:
    """Cache settings with room for this many frames of such images."""
    model = MODELS[config.stream.model]
    width = config.stream.image_width or model.image_size
    resize = Resize.of(image.shape[0], image.shape[1], width, model.patch_size)
    tokens = model.tokens_per_frame(resize.height, resize.width)
    return {"cache.budget_tokens": frames * tokens, "cache.key_bits": bits, "cache.value_bits": bits}


@contextmanager
def _stream_node(config: NodeConfig, log: Path) -> Iterator[subprocess.Popen]:
    """The node as a process, started as a user would and stopped as by Ctrl-C; heard by no other ROS system."""
    os.environ |= {"ROS_DOMAIN_ID": str(random.randint(1, 100)), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    print(f"starting the node in ROS_DOMAIN_ID {os.environ['ROS_DOMAIN_ID']} ...", flush=True)
    parameters = _changes(NodeConfig(), config)
    flags = [part for name, value in parameters.items() for part in ("-p", f"{name}:={json.dumps(value)}")]
    program = package_file("scripts/stream_node", "lib/xsvggt_ros/stream_node")
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, program, "--ros-args", *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(_threads()), **os.environ},
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)  # does nothing if it has ended
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _threads() -> int:
    """For the node: all but one, which is for this process while it plays the camera."""
    return max(1, torch.get_num_threads() - 1)


def _changes(before: NodeConfig, after: NodeConfig) -> dict[str, Any]:
    """{name: value} of the settings that differ."""
    return {name: value for name, value in values(after).items() if value != values(before)[name]}


def _check_alive(node: subprocess.Popen, stop: Event) -> None:
    if stop.is_set():
        raise KeyboardInterrupt
    if node.poll() is not None:
        raise ChildProcessError(f"the node ended with exit code {node.returncode}")
