# SPDX-License-Identifier: Apache-2.0
"""`xsvggt replay`: the node's stream on recorded images, frame by frame, without ROS and in no hurry."""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.flags import add_settings, given_settings
from xsvggt_ros.messages.decode import decode_image
from xsvggt_ros.messages.topics import IMAGE, references
from xsvggt_ros.pipeline import Pipeline, Rejected
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.replay.files import ReplayFiles, check_folder, explained, written_files
from xsvggt_ros.replay.sources import Source, complaint, open_source
from xsvggt_ros.settings import changed, settings
from xsvggt_ros.stream import GeometryStream

# Settings of the node that mean nothing without topics to receive from and send to.
LIVE_ONLY = ("autostart", "image_transport", "queue", "queue_size", "target_latency_ms", "publish_tf", "invert_tf")
SETTINGS = [setting for setting in settings(NodeConfig) if setting.name not in LIVE_ONLY]
MIB = 2**20
INTERRUPTED = 130  # exit code, as after Ctrl-C in a shell

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command, and one for every setting."""
    parser.add_argument(
        "input", type=Path, help="folder of images, video file, or rosbag2 (folder, .mcap or .db3), whole or cut off"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder for trajectory.txt (TUM), cloud.ply, depth/*.png (16 bit, 1/1000 of the model's unit, "
        "0: no depth) and bag/ (rosbag2 of the node's topics)",
    )
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop after N images (default: all)")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="use every N-th image (default: 1)")
    parser.add_argument(
        "--rate", type=float, metavar="HZ", help="images per second (default: the video's own, 30 for a folder)"
    )
    parser.add_argument("--topic", default="", help="image topic of a bag (default: the first)")
    parser.add_argument(
        "--reference", default="", metavar="TOPIC", help="odometry or depth topic of a bag that scale.source names"
    )
    add_settings(parser, SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Exit code: 0 if frames were written, even of a damaged input; 130 after SIGINT or SIGTERM.

    Raises ValueError or OSError with the reason; before the model is loaded wherever that can be known.
    """
    config = changed(NodeConfig(), given_settings(args, SETTINGS))
    if args.max_frames is not None and args.max_frames < 1:
        raise ValueError(f"max-frames must be at least 1, got {args.max_frames}")
    topics = _bag_topics(config, args.reference)
    check_folder(args.output)
    with open_source(args.input, rate=args.rate, topic=args.topic, stride=args.stride, references=topics) as source:
        messages = _usable(source, args.input)
        pipeline = Pipeline(GeometryStream(config.stream), config, log)
        if not config.stream.weights:
            log.warning("the model of the package knows synthetic rooms only: give weights for real images")
        length = min((n for n in (source.length, args.max_frames) if n is not None), default=None)
        with explained(args.output), closing(ReplayFiles(args.output, config)) as files, stop_signals() as stop:
            replay = Replay(pipeline, config, files)
            replay.run(messages, length, args.max_frames, stop)
    if stop.is_set():
        log.warning("interrupted; what was done is written")
    if source.damage:
        log.warning("%s; what could be read is written", source.damage)
    replay.report(args.input, args.output)
    return INTERRUPTED if stop.is_set() else 0


class Replay:
    """One pass of a recording through a pipeline, into files."""

    def __init__(self, pipeline: Pipeline, config: NodeConfig, files: ReplayFiles) -> None:
        self._pipeline = pipeline
        self._config = config
        self._files = files
        self._frames = 0
        self._seconds = 0.0  # in the stream's steps
        self._skipped: list[str] = []

    def run(self, messages: Iterable[tuple[str, Any]], length: int | None, most: int | None, stop: Event) -> None:
        """Serves the messages until they end, there were `most` images, or `stop` is set. length: of images."""
        with logging_redirect_tqdm(), tqdm(total=length, unit="frame") as progress:
            for topic, message in messages:
                if topic != IMAGE:
                    self._pipeline.receive(topic, message)
                    continue
                progress.update(self._serve(message))
                if stop.is_set() or progress.n == most:
                    break

    def _serve(self, message: Any) -> bool:
        """Whether the stream took the image in."""
        result = self._pipeline.process(message, self._config)
        if isinstance(result, Placed):
            self._frames += 1
            self._seconds += result.frame.status.seconds["step"]
            self._files.write(result, self._pipeline.status)
        else:
            self._skipped.append(complaint(message, result.reason))
        return not isinstance(result, Rejected)

    def report(self, source: Path, output: Path) -> None:
        """Prints the totals and the files. Raises ValueError if no image could be used."""
        if self._skipped:
            log.warning("%d images skipped, the first: %s", len(self._skipped), self._skipped[0])
        if not self._frames:
            raise ValueError(f"no image of {source} could be used")
        print(f"{self._frames} frames, {len(self._skipped)} images skipped")
        cache = self._pipeline.status.step.cache_bytes / MIB
        print(f"{self._seconds / self._frames:.3f} s per frame, {cache:.1f} MiB of cache")
        for path in written_files(output):
            print(path)


def _bag_topics(config: NodeConfig, reference: str) -> dict[str, str]:
    """What the placement needs -> topic of the bag; `reference` is that of the robot's odometry or depth."""
    wanted = references(config)
    if reference and not any(name.startswith("reference/") for name in wanted):
        raise ValueError(f"scale.source {config.scale.source} does not use a reference topic: leave it out")
    topics = {name: reference if name.startswith("reference/") else name for name in wanted}
    if not all(topics.values()):
        raise ValueError(f"scale.source {config.scale.source}: name the topic of the bag with --reference")
    return topics


def _usable(source: Source, path: Path) -> Iterator[tuple[str, Any]]:
    """The messages of a source that has at least one image that can be decoded."""
    messages, read, reason = iter(source), [], ""
    for topic, message in messages:
        read.append((topic, message))
        if topic == IMAGE:
            try:
                decode_image(message)
                return chain(read, messages)
            except ValueError as error:
                reason = reason or complaint(message, str(error))
    raise ValueError(f"{path} has no image that can be used: {reason or source.damage or 'it is empty'}")


@contextmanager
def stop_signals() -> Iterator[Event]:
    """An event that SIGINT and SIGTERM set, so that what is at hand gets finished; a second signal kills."""
    stop = Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, _: FrameType | None) -> None:
        stop.set()
        restore()

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
