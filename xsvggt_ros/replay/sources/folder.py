# SPDX-License-Identifier: Apache-2.0
"""A folder of images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natsort import natsorted

from xsvggt_ros.messages.topics import IMAGE
from xsvggt_ros.replay.sources.source import Source, header

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
FOLDER_RATE = 30.0  # images per second


@dataclass(frozen=True)
class ImageFile:
    """The bytes of an image file as the CompressedImage that a camera would have sent of it."""

    header: Any
    format: str
    data: bytes
    name: str


@contextmanager
def open_folder(path: Path, rate: float | None, stride: int) -> Iterator[Source]:
    files = natsorted((f for f in path.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES), key=lambda file: file.name)
    files = [file for file in files if ".color." in file.name] or files
    if not files:
        raise ValueError(f"{path} has no images ({' '.join(IMAGE_SUFFIXES)}) and is no rosbag2")
    step = 1e9 / (rate or FOLDER_RATE)
    images = ((IMAGE, _image_file(files[i], round(i * step))) for i in range(0, len(files), stride))
    yield Source(images, len(files), stride)


def _image_file(path: Path, stamp: int) -> ImageFile:
    return ImageFile(header(stamp), path.suffix[1:], path.read_bytes(), path.name)
