# SPDX-License-Identifier: Apache-2.0
"""`xsvggt replay`: the node's stream on recorded images, frame by frame, without ROS and in no hurry."""

from __future__ import annotations

import argparse
import logging
import signal
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import Event
from types import FrameType

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from xsvggt_ros.config import NodeConfig, changed, settings
from xsvggt_ros.flags import add_settings, given_settings
from xsvggt_ros.messages.conversions import InputCounts, hand_over
from xsvggt_ros.placement.placement import REFERENCES, NotPlaced, Placement, references
from xsvggt_ros.replay.files import ReplayFiles, check_folder, explained, written_files
from xsvggt_ros.replay.sources import ImageSequence, InputImage, Listener, open_sequence
from xsvggt_ros.stream import GeometryStream, OutOfMemory, Status

# Settings of the node that mean nothing without topics to receive from and send to.
LIVE_ONLY = ("autostart", "image_transport", "queue", "queue_size", "target_latency_ms", "publish_tf", "invert_tf")
SETTINGS = [setting for setting in settings(NodeConfig) if setting.name not in LIVE_ONLY]
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
    placement = Placement(config)
    others = _others(placement, config, args.reference)
    check_folder(args.output)
    with open_sequence(
        args.input, rate=args.rate, topic=args.topic, stride=args.stride, rectify=config.rectify, others=others
    ) as sequence:
        images = islice(_usable(sequence, args.input), args.max_frames)
        stream = GeometryStream(config.stream)
        if not config.stream.weights:
            log.warning("the model of the package knows synthetic rooms only: give weights for real images")
        with explained(args.output), closing(ReplayFiles(args.output, config)) as files, stop_signals() as stop:
            replay = Replay(config, stream, placement, sequence, files)
            replay.run(_progress(images, sequence.length, args.max_frames), stop)
    if stop.is_set():
        log.warning("interrupted; what was done is written")
    replay.report(args.input, args.output)
    return INTERRUPTED if stop.is_set() else 0


class Replay:
    """One pass of a stream over a sequence, into files."""

    def __init__(
        self,
        config: NodeConfig,
        stream: GeometryStream,
        placement: Placement,
        sequence: ImageSequence,
        files: ReplayFiles,
    ) -> None:
        self.frames = 0
        self.seconds = 0.0  # in the stream's steps
        self._config = config
        self._stream = stream
        self._placement = placement
        self._sequence = sequence
        self._files = files
        self._worlds = 0

    def run(self, images: Iterable[InputImage], stop: Event) -> None:
        """Serves the images, which are the sequence's, until they end or `stop` is set."""
        with logging_redirect_tqdm():
            for image in images:
                self._serve(image)
                if stop.is_set():
                    break

    def _serve(self, image: InputImage) -> None:
        stamp = image.stamp_ns
        try:
            if self._stream.advance(stamp):
                self._placement.transforms.clear()
            frame = self._stream.step(image.image, image.intrinsics)
            self._tell(stamp, frame.status)
            placed = self._placement.place(frame, stamp, image.frame_id, self._config)
        except (ValueError, OutOfMemory, NotPlaced) as error:
            self._sequence.skipped.append(f"image of {stamp} ns: {error.args[0]}")
            return
        self.frames += 1
        self.seconds += frame.status.seconds["step"]
        self._files.write(image, placed, self._counts())

    def _tell(self, stamp: int, status: Status) -> None:
        self._worlds += status.frame == 0
        if status.frame == 0 and status.budget_raised:
            log.warning("the budget is below what the policy works with: raised to %d tokens", status.floor_tokens)
        if status.event:
            log.warning("image of %d ns: %s", stamp, status.event)

    def _counts(self) -> InputCounts:
        rejected = len(self._sequence.skipped)
        return InputCounts(frames_received=self.frames + rejected, frames_rejected=rejected, resets=self._worlds - 1)

    def report(self, source: Path, output: Path) -> None:
        """Prints the totals and the files. Raises ValueError if no image could be used."""
        skipped = self._sequence.skipped
        if skipped:
            log.warning("%d images skipped, the first: %s", len(skipped), skipped[0])
        if self._sequence.damage:
            log.warning("%s; what could be read is written", self._sequence.damage)
        if not self.frames:
            raise ValueError(f"no image of {source} could be used")
        cache = self._stream.status.cache_bytes / 2**20
        print(f"{self.frames} frames, {len(skipped)} images skipped")
        print(f"{self.seconds / self.frames:.3f} s per frame, {cache:.1f} MiB of cache")
        for path in written_files(output):
            print(path)


def _others(placement: Placement, config: NodeConfig, reference: str) -> dict[str, Listener]:
    """Topics of the bag that the placement needs, with what takes their messages."""
    others: dict[str, Listener] = {}
    wanted = references(config)
    if reference and not any(name.startswith("reference/") for name in wanted):
        raise ValueError(f"scale.source {config.scale.source} does not use a reference topic: leave it out")
    for name in wanted:
        if name.startswith("reference/") and not reference:
            raise ValueError(f"scale.source {config.scale.source}: name the topic of the bag with --reference")
        topic = reference if name.startswith("reference/") else name
        others[topic] = Listener(REFERENCES[name], partial(hand_over, placement, name))
    return others


def _usable(sequence: ImageSequence, source: Path) -> Iterator[InputImage]:
    """The images of a sequence that has at least one."""
    images = iter(sequence)
    first = next(images, None)
    if first is None:
        reason = " ".join([*sequence.skipped[:1], sequence.damage]) or "it is empty"
        raise ValueError(f"{source} has no image that can be used: {reason}")
    return chain([first], images)


def _progress(images: Iterable[InputImage], length: int | None, max_frames: int | None) -> Iterable[InputImage]:
    limits = [limit for limit in (length, max_frames) if limit is not None]
    return tqdm(images, total=min(limits, default=None), unit="frame")


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
