# SPDX-License-Identifier: Apache-2.0
"""What every recording becomes: the messages that a node would have received, and the images among them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.frame import InputImage
from xsvggt_ros.messages.bag import DamagedBag
from xsvggt_ros.messages.decode import FRAME_ID, CameraDecoder, Damaged, decode_image, name_of
from xsvggt_ros.messages.topics import CAMERA_INFO, IMAGE

log = logging.getLogger(__name__)

Messages = Iterator[tuple[str, Any]]  # topic, as messages.topics names it, and message


class Source:
    """Iterates once over a recording's messages, in order; of the images, over every `stride`-th.

    /tf_static and the first camera_info come before all else: they hold for the whole recording. Where the recording
    breaks off, the messages end and `damage` says why.
    """

    def __init__(self, messages: Messages, length: int | None, stride: int) -> None:
        self.length = None if length is None else -(-length // stride)  # images, where known beforehand
        self.damage = ""
        self._messages = messages

    def __iter__(self) -> Messages:
        try:
            yield from self._messages
        except DamagedBag as error:
            self.damage = str(error)


class Images:
    """Iterates once over the images of a source that can be used; `skipped` says why others cannot.

    rectify: undo the distortion that the source's camera_info states.
    """

    def __init__(self, source: Source, rectify: bool = True) -> None:
        self.skipped: list[str] = []
        self._source = source
        self._rectify = rectify

    def __iter__(self) -> Iterator[InputImage]:
        camera = CameraDecoder(warn=log.warning)
        for topic, message in self._source:
            if topic == CAMERA_INFO:
                camera.receive(message)
            if topic != IMAGE:
                continue
            try:
                yield camera.decode(message, self._rectify)
            except ValueError as error:
                self.skipped.append(complaint(name_of(message), str(error)))


def complaint(name: str, reason: str) -> str:
    """Why the image of that name is not used."""
    return f"{name}: {reason}" if name else reason


def usable(source: Source, path: Path) -> Iterator[tuple[str, Any]]:
    """The messages of a source that has at least one image that can be decoded. Raises ValueError if it has none."""
    messages, reason = iter(source), ""
    read: list[tuple[str, Any]] = []
    for topic, message in messages:
        if topic == IMAGE:
            try:
                decode_image(message)
                return chain([*read, (topic, message)], messages)
            except ValueError as error:
                message = Damaged(complaint(name_of(message), str(error)))  # its data are not kept
                reason = reason or message.reason
        read.append((topic, message))
    raise ValueError(f"{path} has no image that can be used: {reason or source.damage or 'it is empty'}")


def image_message(image: NDArray[np.uint8], encoding: str, stamp: int, name: str = "") -> Any:
    """An image [H, W, 3] as the Image that a camera would have sent of it. name: what tells it from the others."""
    height, width = image.shape[:2]
    return SimpleNamespace(
        header=_header(stamp),
        name=name,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=3 * width,
        data=image.reshape(-1),
    )


def _header(stamp: int) -> Any:
    sec, nanosec = divmod(stamp, 1_000_000_000)
    return SimpleNamespace(stamp=SimpleNamespace(sec=sec, nanosec=nanosec), frame_id=FRAME_ID)
