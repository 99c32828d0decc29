# SPDX-License-Identifier: Apache-2.0
"""`xsvggt replay`: the node's stream on recorded images, frame by frame, without ROS and in no hurry."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import takewhile
from pathlib import Path
from threading import Event

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from xsvggt_ros.config import NodeConfig, StreamConfig, ViewerConfig
from xsvggt_ros.flags import add_settings, given_settings
from xsvggt_ros.messages.topics import IMAGE
from xsvggt_ros.pipeline import Answer, Pipeline, Rejected, Unplaced
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.replay.files import ReplayFiles, explained, output_folder
from xsvggt_ros.replay.signals import INTERRUPTED, stop_signals
from xsvggt_ros.replay.sources import (
    Messages,
    Reading,
    add_source_arguments,
    bag_topics,
    complaint,
    open_source,
    reading_of,
    usable,
)
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.settings import changed, settings
from xsvggt_ros.status import Status

# Settings of the node that mean nothing without topics to receive from and send to.
LIVE_ONLY = (
    *("autostart", "image_transport", "queue", "queue_size", "target_latency_ms", "publish_tf", "publish_map"),
    "invert_tf",
    "dense",
    "loop.folder",
    *("viewer", *(setting.name for setting in settings(ViewerConfig, "viewer_"))),
)
SETTINGS = [setting for setting in settings(NodeConfig) if setting.name not in LIVE_ONLY]

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command, and one for every setting."""
    add_source_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder for trajectory.txt (TUM), cloud.ply, depth/*.png (16 bit, 1/1000 of the model's unit, "
        "0: no depth) and bag/ (rosbag2 of the node's topics); with segment.enabled also trajectory_corrected.txt and "
        "cloud_corrected.ply, in the map",
    )
    add_settings(parser, SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Exit code: 0 if frames were written, even of a damaged input; 130 after SIGINT or SIGTERM.

    Raises ValueError or OSError with the reason; before the model is loaded wherever that can be known.
    """
    config = changed(NodeConfig(), given_settings(args, SETTINGS))
    with opened(args.input, reading_of(args), args.output, config, SegmentedStream) as replay:
        say_what_the_model_knows(config)
        with stop_signals() as stop, logging_redirect_tqdm(), tqdm(total=replay.length, unit="frame") as progress:
            for answer in replay.answers(stop):
                progress.update(not isinstance(answer.result, Rejected))
    if stop.is_set():
        log.warning("interrupted; what was done is written")
    print(f"{replay.files.frames} frames, {len(replay.skipped)} images skipped", replay.files.summary(), sep="\n")
    return INTERRUPTED if stop.is_set() else 0


def say_what_the_model_knows(config: NodeConfig) -> None:
    """Warns of the demo model."""
    if not config.stream.weights:
        log.warning("the model of the package knows synthetic rooms only: give weights for real images")


@contextmanager
def opened(
    recording: Path,
    reading: Reading,
    output: Path,
    config: NodeConfig,
    new_stream: Callable[[StreamConfig], SegmentedStream],
) -> Iterator[Replay]:
    """A recording that is ready to be replayed into a folder; new_stream: makes the stream that it goes through.

    At the end it says what could not be used. Raises ValueError or OSError with the reason: before `new_stream` is
    called wherever that can be known, and at the end where no image could be used.
    """
    topics = bag_topics(config, reading.reference)
    with (
        output_folder(output),
        open_source(recording, reading, topics) as source,
    ):
        messages = usable(source, recording)
        pipeline = Pipeline(new_stream(config.stream), config, log)
        with explained(output), closing(ReplayFiles(output, config)) as files:
            replay = Replay(messages, pipeline, files, reading.length(source.length), reading.max_frames)
            yield replay
            replay.damage = source.damage
    if source.damage:
        log.warning("%s; what could be read is written", source.damage)
    if skipped := replay.skipped:
        causes = ", ".join(f"{n} {cause}" for cause, n in replay.status.images.not_used().items())
        log.warning("%d images skipped (%s), the first: %s", len(skipped), causes, skipped[0])
    if not files.frames:
        raise ValueError(f"no image of {recording} could be used: {skipped[0] if skipped else 'interrupted'}")


class Replay:
    """A recording on its way through the pipeline into files.

    length: images to come, where known beforehand; skipped: why images were not used; damage: why the
    recording breaks off, once it is read.
    """

    def __init__(
        self, messages: Messages, pipeline: Pipeline, files: ReplayFiles, length: int | None, most: int | None
    ) -> None:
        self.files = files
        self.length = length
        self.skipped: list[str] = []
        self.damage = ""
        self._messages = messages
        self._pipeline = pipeline
        self._most = most

    @property
    def status(self) -> Status:
        """After the newest image."""
        return self._pipeline.status

    def answers(self, stop: Event) -> Iterator[Answer]:
        """Serves the messages until they end, `max_frames` images were taken in, or `stop` is set.

        Each answer is written before it is given. Of the images that cannot be placed the first is said at once: all
        may be like it.
        """
        messages = takewhile(lambda _: not stop.is_set(), self._messages)
        for answer in answers(messages, self._pipeline, lambda: self.files.config, self._most):
            if isinstance(answer.result, Placed):
                self.files.write(answer.result, answer.status)
            else:
                self.skipped.append(complaint(answer.image.name, answer.result.reason))
                if isinstance(answer.result, Unplaced) and answer.status.images.frames_unplaced == 1:
                    log.warning("an image cannot be placed, nothing is written of it: %s", answer.result.reason)
            yield answer


def answers(
    messages: Messages, pipeline: Pipeline, config: Callable[[], NodeConfig], most: int | None
) -> Iterator[Answer]:
    """What becomes of the images among the messages, until these end or `most` images were taken in.

    config: in force for the next image.
    """
    taken = 0
    for topic, message in messages:
        if topic != IMAGE:
            pipeline.receive(topic, message)
            continue
        for answer in pipeline.process(message, config()):
            taken += not isinstance(answer.result, Rejected)
            yield answer
        if taken + pipeline.status.images.frames_waiting == most:
            break
    yield from pipeline.flush()
