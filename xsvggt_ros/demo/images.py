# SPDX-License-Identifier: Apache-2.0
"""The images that the demo plays: a synthetic room with its ground truth, or recorded ones."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from xsvggt_ros.frame import InputImage
from xsvggt_ros.messages.decode import FRAME_ID
from xsvggt_ros.replay.sources import Images, open_source
from xsvggt_ros.rooms import RoomFrame, stream

FEWEST_IMAGES = 20
# Of the room. None that was trained on; colourful and wide, and one in which the model does well.
SEED, MOTION = 1, "robot"
MOTION_RATE = 8.0  # images per second of motion, as in training; they are played faster

log = logging.getLogger(__name__)


def demo_sequence(source: Path | None, frames: int) -> tuple[list[InputImage], list[RoomFrame]]:
    """At most `frames` images, and the truth about each; of recorded images nothing is known.

    source: folder of images, video or rosbag2; None: the synthetic room.
    Raises ValueError or FileNotFoundError, with the reason, if there are too few images.
    """
    if frames < FEWEST_IMAGES:
        raise ValueError(f"the demo needs at least {FEWEST_IMAGES} images, got max-frames {frames}")
    return _synthetic_room(frames) if source is None else (_recorded(source, frames), [])


def _recorded(source: Path, frames: int) -> list[InputImage]:
    with open_source(source) as recording:
        usable = Images(recording)
        images = _of_one_size(list(tqdm(islice(usable, frames), "reading", unit="image")))
    if usable.skipped:
        log.warning("%d images skipped, the first: %s", len(usable.skipped), usable.skipped[0])
    if recording.damage:
        log.warning("%s; what could be read is played", recording.damage)
    if len(images) < FEWEST_IMAGES:
        raise ValueError(f"{source} has {len(images)} usable images; the demo needs at least {FEWEST_IMAGES}")
    return images


def _of_one_size(images: list[InputImage]) -> list[InputImage]:
    """Those of the first one's size: the node takes others for strays."""
    same = [image for image in images if image.image.shape == images[0].image.shape]
    if len(same) < len(images):
        log.warning("%d images are left out, as their size is another than that of the first", len(images) - len(same))
    return same


def _synthetic_room(frames: int) -> tuple[list[InputImage], list[RoomFrame]]:
    truth = list(tqdm(stream(SEED, frames, kind=MOTION, rate=MOTION_RATE), "rendering", frames, unit="image"))
    return [InputImage(t.stamp_ns, t.rgb, t.intrinsics, FRAME_ID) for t in truth], truth
