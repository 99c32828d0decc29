# SPDX-License-Identifier: Apache-2.0
"""`xsvggt replay`: the node's stream on recorded images, frame by frame, without ROS and in no hurry."""

from __future__ import annotations

import argparse
import logging
from contextlib import closing
from pathlib import Path
from threading import Event

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from xsvggt_ros.config import NodeConfig, ViewerConfig
from xsvggt_ros.flags import add_settings, given_settings
from xsvggt_ros.messages.topics import IMAGE
from xsvggt_ros.pipeline import Answer, Pipeline, Rejected
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.replay.files import ReplayFiles, explained, output_folder
from xsvggt_ros.replay.signals import INTERRUPTED, stop_signals
from xsvggt_ros.replay.sources import Messages, add_source_arguments, bag_topics, complaint, open_source, usable
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.settings import changed, settings

# Settings of the node that mean nothing without topics to receive from and send to.
LIVE_ONLY = (
    *("autostart", "image_transport", "queue", "queue_size", "target_latency_ms", "publish_tf", "invert_tf"),
    "dense",
    "loop.folder",
    *("viewer", *(setting.name for setting in settings(ViewerConfig, "viewer."))),
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
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop after N images (default: all)")
    add_settings(parser, SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Exit code: 0 if frames were written, even of a damaged input; 130 after SIGINT or SIGTERM.

    Raises ValueError or OSError with the reason; before the model is loaded wherever that can be known.
    """
    config = changed(NodeConfig(), given_settings(args, SETTINGS))
    if args.max_frames is not None and args.max_frames < 1:
        raise ValueError(f"max-frames must be at least 1, got {args.max_frames}")
    topics = bag_topics(config, args.reference)
    with (
        output_folder(args.output),
        open_source(args.input, rate=args.rate, topic=args.topic, stride=args.stride, references=topics) as source,
    ):
        messages = usable(source, args.input)
        pipeline = new_pipeline(config)
        length = min((n for n in (source.length, args.max_frames) if n is not None), default=None)
        with (
            explained(args.output),
            closing(ReplayFiles(args.output, config)) as files,
            stop_signals() as stop,
            logging_redirect_tqdm(),
            tqdm(total=length, unit="frame") as progress,
        ):
            skipped = _replay(messages, pipeline, files, progress, args.max_frames, stop)
    if stop.is_set():
        log.warning("interrupted; what was done is written")
    if source.damage:
        log.warning("%s; what could be read is written", source.damage)
    if skipped:
        causes = ", ".join(f"{n} {cause}" for cause, n in pipeline.status.images.not_used().items())
        log.warning("%d images skipped (%s), the first: %s", len(skipped), causes, skipped[0])
    if not files.frames:
        raise ValueError(f"no image of {args.input} could be used: {skipped[0] if skipped else 'interrupted'}")
    print(f"{files.frames} frames, {len(skipped)} images skipped", files.summary(), sep="\n")
    return INTERRUPTED if stop.is_set() else 0


def new_pipeline(config: NodeConfig) -> Pipeline:
    """For a recording; says of the package's own model what it is for. Raises ValueError or OSError with the reason."""
    pipeline = Pipeline(SegmentedStream(config.stream), config, log)
    if not config.stream.weights:
        log.warning("the model of the package knows synthetic rooms only: give weights for real images")
    return pipeline


def _replay(
    messages: Messages, pipeline: Pipeline, files: ReplayFiles, progress: tqdm, most: int | None, stop: Event
) -> list[str]:
    """Serves the messages until they end, `most` images were taken in, or `stop` is set; why others were not used."""
    skipped: list[str] = []

    def write(answers: list[Answer]) -> None:
        for answer in answers:
            if isinstance(answer.result, Placed):
                files.write(answer.result, answer.status)
            else:
                skipped.append(complaint(answer.image.name, answer.result.reason))
            progress.update(not isinstance(answer.result, Rejected))

    for topic, message in messages:
        if topic != IMAGE:
            pipeline.receive(topic, message)
            continue
        write(pipeline.process(message, files.config))
        if stop.is_set() or progress.n + pipeline.status.images.frames_waiting == most:
            break
    write(pipeline.flush())
    return skipped
