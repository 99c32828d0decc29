# SPDX-License-Identifier: Apache-2.0
"""A video file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2

from xsvggt_ros.messages.decode import Damaged
from xsvggt_ros.messages.topics import IMAGE
from xsvggt_ros.replay.sources.source import Messages, Source, header


@contextmanager
def open_video(path: Path, rate: float | None, stride: int) -> Iterator[Source]:
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise ValueError(f"{path} is neither a video that OpenCV can read, nor a folder of images, nor a rosbag2")
        rate = rate or capture.get(cv2.CAP_PROP_FPS)
        if not rate > 0:
            raise ValueError(f"{path} does not say how many images a second it has: give the rate")
        length = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        yield Source(_video_images(capture, 1e9 / rate, stride), length if length > 0 else None, stride)
    finally:
        capture.release()


def _video_images(capture: cv2.VideoCapture, step: float, stride: int) -> Messages:
    for index in count():
        if not capture.grab():
            return
        if index % stride == 0:
            yield IMAGE, _video_image(capture, index, round(index * step))


def _video_image(capture: cv2.VideoCapture, index: int, stamp: int) -> Any:
    """As the Image that a camera would have sent of it."""
    decoded, bgr = capture.retrieve()
    if not decoded:
        return Damaged(f"image {index} of the video cannot be decoded")
    height, width = bgr.shape[:2]
    return SimpleNamespace(
        header=header(stamp),
        height=height,
        width=width,
        encoding="bgr8",
        is_bigendian=0,
        step=3 * width,
        data=bgr.reshape(-1),
    )
