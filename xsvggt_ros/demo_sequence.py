# SPDX-License-Identifier: Apache-2.0
"""The images that the demo plays: a synthetic room with its ground truth, or recorded ones."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from xsvggt_ros.sequences import FRAME_ID, InputImage, open_sequence
from xsvggt_ros.world import WorldFrame, stream

FEWEST_IMAGES = 20
LONGEST_SIDE = 320  # pixels; of larger images DDS loses many, with its default 512 KiB of shared memory
SEED, MOTION = 6, "handheld"  # of the room

log = logging.getLogger(__name__)


def demo_sequence(source: Path | None, frames: int, rate: float) -> tuple[list[InputImage], list[WorldFrame]]:
    """At most `frames` images, and the truth about each; of recorded images nothing is known.

    source: folder of images, video or rosbag2; None: the synthetic room, at `rate` images per second.
    Raises ValueError or FileNotFoundError, with the reason, if there are too few images.
    """
    if frames < FEWEST_IMAGES:
        raise ValueError(f"the demo needs at least {FEWEST_IMAGES} images, got max-frames {frames}")
    return _synthetic_room(frames, rate) if source is None else (_recorded(source, frames), [])


def _recorded(source: Path, frames: int) -> list[InputImage]:
    with open_sequence(source) as sequence:
        images = [_shrunk(image) for image in tqdm(islice(sequence, frames), "reading", unit="image")]
    if sequence.skipped:
        log.warning("%d images skipped, the first: %s", len(sequence.skipped), sequence.skipped[0])
    if sequence.damage:
        log.warning("%s; what could be read is played", sequence.damage)
    if len(images) < FEWEST_IMAGES:
        raise ValueError(f"{source} has {len(images)} usable images; the demo needs at least {FEWEST_IMAGES}")
    return images


def _shrunk(image: InputImage) -> InputImage:
    size = np.array(image.image.shape[1::-1])  # width, height
    if max(size) <= LONGEST_SIDE:
        return image
    new_size = np.round(size * (LONGEST_SIDE / max(size))).astype(int)
    pixels = cv2.resize(image.image, new_size.tolist(), interpolation=cv2.INTER_AREA)
    if image.intrinsics is None:
        return replace(image, image=pixels)
    scale = new_size / size
    K = image.intrinsics.copy()
    K[:2] *= scale[:, None]
    K[:2, 2] += (scale - 1) / 2  # pixel centres lie at integers
    return replace(image, image=pixels, intrinsics=K)


def _synthetic_room(frames: int, rate: float) -> tuple[list[InputImage], list[WorldFrame]]:
    truth = list(tqdm(stream(SEED, frames, kind=MOTION, rate=rate), "rendering", frames, unit="image"))
    return [InputImage(t.stamp_ns, t.rgb, t.intrinsics, FRAME_ID) for t in truth], truth
