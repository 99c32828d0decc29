# SPDX-License-Identifier: Apache-2.0
"""What a folder, a video or a rosbag2 holds of one camera, as the messages that a node would have received."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.bag import is_bag
from xsvggt_ros.messages.topics import references
from xsvggt_ros.rate import check_rate
from xsvggt_ros.replay.sources.bag import open_recording
from xsvggt_ros.replay.sources.folder import check_alone, open_folder
from xsvggt_ros.replay.sources.source import Images, Messages, Source, complaint, usable

__all__ = [
    "Images",
    "Messages",
    "Reading",
    "Source",
    "add_source_arguments",
    "bag_topics",
    "check_alone",
    "complaint",
    "open_source",
    "reading_of",
    "usable",
]


@dataclass(frozen=True)
class Reading:
    """What is read of a recording: the flags of `add_source_arguments`. ValueError for what makes no sense."""

    stride: int = 1
    rate: float | None = None
    topic: str = ""
    reference: str = ""
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}")
        if self.rate is not None:
            check_rate(self.rate)
        if self.max_frames is not None and self.max_frames < 1:
            raise ValueError(f"max-frames must be at least 1, got {self.max_frames}")

    def length(self, images: int | None) -> int | None:
        """How many are taken in of a source of so many images, or of an unknown number; None: unknown."""
        return min((n for n in (images, self.max_frames) if n is not None), default=None)


def add_source_arguments(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """The recording, or recordings, and what is read of each."""
    parser.add_argument(
        "inputs" if many else "input",
        type=Path,
        nargs="+" if many else None,
        help="folder of images, video file, or rosbag2 (folder, .mcap, .db3, .zstd), whole or cut off",
    )
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="use every N-th image (default: 1)")
    parser.add_argument(
        "--rate", type=float, metavar="HZ", help="images per second (default: the video's own, 30 for a folder)"
    )
    parser.add_argument(
        "--topic", default="", help="image topic of a bag (default: that with the most colour or mono images)"
    )
    parser.add_argument(
        "--reference", default="", metavar="TOPIC", help="odometry or depth topic of a bag that scale.source names"
    )
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop after N images (default: all)")


def reading_of(args: argparse.Namespace) -> Reading:
    """What the flags of `add_source_arguments` say."""
    return Reading(**{field.name: getattr(args, field.name) for field in fields(Reading)})


def open_source(
    path: Path, reading: Reading | None = None, references: Mapping[str, str] | None = None
) -> AbstractContextManager[Source]:
    """What a folder, a video file, or a rosbag2 (folder, .mcap or .db3) holds.

    A folder is read in natural order of its file names; of one that has `*.color.*` files, as RGB-D
    recordings do, only those. Image i is stamped i / rate seconds; a video's own rate is the default,
    and 30 a second in a folder. A bag's images keep their stamps, frame and CameraInfo.
    reading: what is read of it; how many images, and of which reference, is the caller's.
    references: topic of messages.topics.REFERENCES -> topic of the bag that is read along under that name; one of its
    messages that cannot be decoded is ignored, with a warning.

    Raises FileNotFoundError or ValueError, with the fix, where there are no images to be read,
    or those of several recordings.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a folder of images, a video file or a rosbag2")
    reading = reading or Reading()
    if is_bag(path):
        check_alone(path)
        if reading.rate is not None:
            raise ValueError(f"{path} is a bag, whose images have stamps: leave the rate out")
        return open_recording(path, reading.topic, reading.stride, references or {})
    if reading.topic:
        raise ValueError(f"{path} is not a bag: leave the topic out")
    if references:
        raise ValueError(
            f"{path} is not a bag, which alone has {', '.join(references.values())}: "
            "leave out the settings that need it"
        )
    if path.is_dir():
        return open_folder(path, reading.rate, reading.stride)
    from xsvggt_ros.replay.sources.video import open_video  # its libraries are large: loaded where there is a video

    return open_video(path, reading.rate, reading.stride)


def bag_topics(config: NodeConfig, reference: str) -> dict[str, str]:
    """What the placement needs -> topic of the bag; `reference` is that of the robot's odometry or depth.

    Raises ValueError, with the fix, where `reference` is missing or needless.
    """
    wanted = references(config)
    if reference and not any(name.startswith("reference/") for name in wanted):
        raise ValueError(f"scale.source {config.scale.source} does not use a reference topic: leave it out")
    topics = {name: reference if name.startswith("reference/") else name for name in wanted}
    if not all(topics.values()):
        raise ValueError(f"scale.source {config.scale.source}: name the topic of the bag with --reference")
    return topics
