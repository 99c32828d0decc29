# SPDX-License-Identifier: Apache-2.0
"""A video file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from xsvggt_ros.messages.bag import DamagedBag
from xsvggt_ros.messages.decode import Damaged
from xsvggt_ros.messages.topics import IMAGE
from xsvggt_ros.replay.sources.source import Messages, Source, image_message

SECOND = 1_000_000_000  # ns
MP4_STARTS = (b"ftyp", b"mdat", b"wide")  # the first box of an MP4 or MOV


@contextmanager
def open_video(path: Path, rate: float | None, stride: int) -> Iterator[Source]:
    with _container(path) as container:
        stream = _video_stream(path, container)
        images = _video_images(_frames(path, container, stream), _Clock(path, stream, rate), _is_avi(container), stride)
        yield Source(images, stream.frames or None, stride)


def _container(path: Path) -> InputContainer:
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty: give a folder of images, a video file or a rosbag2")
    try:  # a file, whatever its name looks like, that sends us to no network
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except av.FFmpegError as error:
        raise _no_video(path, error.strerror or "it cannot be read") from error
    sound_or_picture = container.streams.video or container.streams.audio
    if not sound_or_picture or container.format.name == "tty":  # plain text, as a terminal would show it
        container.close()
        raise _no_video(path, "it has no video stream")
    return container


def _no_video(path: Path, reason: str) -> ValueError:
    with path.open("rb") as file:
        start = file.read(8)
    if start[4:] in MP4_STARTS:
        return ValueError(
            f"{path} is an MP4 or MOV whose index (moov) is missing or damaged, as where a recording was cut off: "
            "restore it with a tool such as untrunc"
        )
    return ValueError(f"{path} is neither a video, nor a folder of images, nor a rosbag2: {reason}")


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The first one that is no cover picture. Raises ValueError if there is none, or no decoder for it."""
    for stream in container.streams.video:
        if Disposition.attached_pic not in stream.disposition:
            if stream.codec_context is None:
                raise _no_decoder(path, _codec_name(container, stream))
            return stream
    kinds = ", ".join(sorted({stream.type for stream in container.streams} - {"video"})) or "a cover picture"
    raise ValueError(f"{path} has no video in it, only {kinds}: give a folder of images, a video file or a rosbag2")


def _no_decoder(path: Path, codec: str) -> ValueError:
    return ValueError(
        f"{path} is coded as {codec}, which PyAV cannot decode here: "
        f"convert it with ffmpeg -i {path.name} -c:v libx264 converted.mp4"
    )


def _codec_name(container: Any, stream: VideoStream) -> str:
    """The name of a codec that has no decoder: only libav's own description of the file has it."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        found = re.search(rf"Stream #0:{stream.index}\b.*Video: ([^,]+)", container.dumps_format())
    finally:
        av.logging.set_level(level)
    return found[1].removeprefix("none ") if found and found[1] != "none" else "something unknown"


def _is_avi(container: InputContainer) -> bool:
    """AVI has neither presentation times nor a duration: one slot after the other, of which it states how many."""
    return container.format.name == "avi"


def _video_images(frames: Iterator[av.VideoFrame | Damaged], clock: _Clock, avi: bool, stride: int) -> Messages:
    for index, frame in enumerate(frames):
        name = f"image {index} of the video"
        if isinstance(frame, Damaged):
            image: Any = Damaged(f"{name} {frame.reason}")
        else:
            stamp = clock.stamp(index, frame.dts if avi else frame.pts)
            image = None if index % stride else _video_image(frame, name, stamp)  # the others are not even converted
        if index % stride == 0:
            yield IMAGE, image


def _video_image(frame: av.VideoFrame, name: str, stamp: int) -> Any:
    """As the Image that a camera would have sent of it, upright."""
    try:
        rgb = np.asarray(frame.to_ndarray(format="rgb24", threads=1), np.uint8)
    except (av.FFmpegError, ValueError) as error:
        return Damaged(f"{name} cannot be converted from {frame.format.name}: {error}")
    return image_message(np.rot90(rgb, round(frame.rotation / 90)), "rgb8", stamp, name)


def _frames(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame | Damaged]:
    """In order of presentation. Raises DamagedBag where the recording breaks off."""
    reach = _Reach(container, stream)
    for packet in _packets(path, container, reach.streams):
        reach.add(packet)
        if packet.stream.index != stream.index:
            continue
        try:
            for frame in packet.decode():
                broken = frame.is_corrupt or frame.pts in reach.broken
                yield Damaged("is damaged") if broken else frame
        except (av.error.NotImplementedError, av.error.PatchWelcomeError) as error:  # AV1 on foreign hardware only
            raise _no_decoder(path, stream.codec_context.name) from error
        except av.FFmpegError as error:
            yield Damaged(f"cannot be decoded: {error.strerror}")
    if reach.missing:
        raise DamagedBag(f"{path} breaks off {reach.missing}")


def _packets(path: Path, container: InputContainer, streams: list[Any]) -> Iterator[av.Packet]:
    try:
        yield from container.demux(streams)
    except av.FFmpegError as error:
        raise DamagedBag(f"{path} cannot be read any further: {error.strerror}") from error


class _Reach:
    """How far the packets of a file reach, against what it states: the times decide.

    A stated count alone does not: it includes what an edit list leaves out, and the slots that a recorder left empty.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self.broken: set[int] = set()  # presentation times of packets that are not whole
        self._stream = stream
        self._one_image_each = container.format.name != "mpeg"  # there a part that is not whole holds many
        self._count = 0
        self._end = self._hole = Fraction(0)  # the latest end; the longest time between one packet's and the next: s
        self._next: Fraction | None = None
        self._before_zero = Fraction(min(container.start_time or 0, 0), av.time_base)
        alone = stream.duration or _is_avi(container)
        self.streams = [stream] if alone else [*container.streams]  # those of which the longest has the stated duration
        if alone:
            slots = stream.frames if _is_avi(container) else stream.duration
            self._stated = (slots or 0) * (stream.time_base or Fraction(1))
        else:
            self._stated = Fraction(container.duration or 0, av.time_base)

    def add(self, packet: av.Packet) -> None:
        if packet.pts is None:
            return
        duration = (packet.duration or 0) * packet.time_base
        self._end = max(self._end, packet.pts * packet.time_base + duration)
        if packet.stream.index != self._stream.index:
            return
        self._count += 1
        if packet.is_corrupt and self._one_image_each:
            self.broken.add(packet.pts)
        if packet.dts is not None:
            start = packet.dts * packet.time_base
            self._hole = max(self._hole, start - (start if self._next is None else self._next))
            self._next = start + duration

    @property
    def missing(self) -> str:
        """Where the data end too early; empty if they do not."""
        reached = self._end - self._before_zero
        allowed = self._hole + reached / (2 * max(self._count, 1))  # half an image
        if 0 < self._stream.frames <= self._count or reached + allowed >= self._stated:
            return ""
        return f"at {float(reached):.2f} s of {float(self._stated):.2f} s, after {self._count} images"


class _Clock:
    """Stamps in ns from the first image on: the file's own times, or those of a rate in images per second.

    An image without a time, or whose time is not after the last one, follows at the file's average rate.
    """

    def __init__(self, path: Path, stream: VideoStream, rate: float | None) -> None:
        self._path = path
        self._rate = rate
        self._average = stream.guessed_rate or stream.average_rate
        self._unit = stream.time_base or Fraction(1)
        self._first: int | None = None
        self._last = (-1, -1)  # index, stamp

    def stamp(self, index: int, time: int | None) -> int:
        """time: of image `index`, in the file's units. Raises ValueError where neither it nor a rate is known."""
        if self._rate:
            return round(index * 1e9 / self._rate)
        stamp = -1
        if time is not None:
            self._first = time if self._first is None else self._first
            stamp = round((time - self._first) * self._unit * SECOND)
        if stamp <= self._last[1]:
            stamp = self._after_last(index)
        self._last = index, stamp
        return stamp

    def _after_last(self, index: int) -> int:
        if not self._average:
            raise ValueError(f"{self._path} does not say how many images a second it has: give the rate")
        last_index, last = self._last
        return 0 if last < 0 else last + round((index - last_index) * SECOND / self._average)
