# SPDX-License-Identifier: Apache-2.0
"""A video file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xsvggt_ros.messages.bag import DamagedBag
from xsvggt_ros.messages.decode import Damaged
from xsvggt_ros.messages.topics import IMAGE
from xsvggt_ros.replay.sources.source import Messages, Source, image_message

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

LOCAL = {"protocol_whitelist": "file"}  # a playlist must not open the network
TEXT = "ansi"  # what FFmpeg takes any text for
PATIENCE = 2  # images that may be missing at the end without a word: durations are rounded


@contextmanager
def open_video(path: Path, rate: float | None, stride: int) -> Iterator[Source]:
    container, said = _open(path)
    with container:
        video = _video(path, container, said)
        images = _Images(path, container, video, rate)
        yield Source(images.messages(stride), video.frames or None, stride)


def _open(path: Path) -> tuple[InputContainer, str]:
    """The file, and what FFmpeg says of it. Raises ValueError if it is none."""
    import av  # late: others need not wait for it

    av.logging.set_level(av.logging.WARNING)
    with av.logging.Capture() as said:
        try:
            container = av.open(f"file:{path}", options=LOCAL, metadata_errors="replace")
        except av.FFmpegError as error:
            reason = "; ".join(dict.fromkeys([error.strerror or "", *(text.strip() for _, _, text in said)]))
            raise ValueError(
                f"{path} is neither a video that FFmpeg can read ({reason}), nor a folder of images, nor a rosbag2"
            ) from error
        finally:
            av.logging.set_level(None)
    return container, " ".join(text for _, _, text in said)


def _video(path: Path, container: InputContainer, said: str) -> VideoStream:
    """The first stream of pictures, but for a cover. Raises ValueError where there is none that can be decoded."""
    from av.stream import Disposition

    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams or (streams[0].codec_context and streams[0].codec_context.name == TEXT):
        kinds = ", ".join(sorted({stream.type for stream in container.streams} - {"video"}))
        raise ValueError(f"{path} has no video" + f", but only {kinds}" * bool(kinds))
    if streams[0].codec_context is None:
        codec = re.search(r"Video: (\w+ \([^)]*\))", said)
        raise _no_decoder(path, codec[1] if codec else "")
    return streams[0]


def _no_decoder(path: Path, codec: str) -> ValueError:
    return ValueError(
        f"the video codec of {path}{f', {codec},' if codec else ''} has no decoder here; convert it: "
        "ffmpeg -i VIDEO -c:v libx264 CONVERTED.mp4"
    )


class _Images:
    """The pictures of a video, stamped as its container says, from 0 on; upright."""

    def __init__(self, path: Path, container: InputContainer, video: VideoStream, rate: float | None) -> None:
        from av.video.reformatter import VideoReformatter

        self._path, self._container, self._video = path, container, video
        self._rate = rate
        self._period = 1 / (video.average_rate or video.guessed_rate or Fraction(30))  # seconds
        self._reformatter = VideoReformatter()
        self._longest = PATIENCE * self._period  # between two images
        self._counts_images = container.format.name == "avi"  # instead of saying when they are shown
        self._index = 0  # of the next image
        self._first: Fraction | None = None  # seconds, of the first image
        self._next = Fraction(0)  # when an image comes that does not say when
        self._end = Fraction(0)  # of what was there, in the container's time

    def messages(self, stride: int) -> Messages:
        for packet in self._packets():
            for message in self._decoded(packet, stride):
                if message is not None:
                    yield IMAGE, message
        self._check_end()

    def _packets(self) -> Iterator[Packet]:
        """Those of the pictures. Raises DamagedBag where the container breaks."""
        import av

        try:
            for packet in self._container.demux():
                if packet.pts is not None and packet.time_base:
                    self._end = max(self._end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.stream is self._video:
                    yield packet
        except av.FFmpegError as error:
            raise DamagedBag(f"{self._path} is damaged after {self._index} images: {error.strerror}") from error

    def _decoded(self, packet: Packet, stride: int) -> Iterator[Any]:
        """Images of a packet; None for one that the stride leaves out."""
        import av

        frames: list[VideoFrame | None] = []
        damage = ""
        try:
            frames += packet.decode()
        except (av.error.NotImplementedError, av.error.PatchWelcomeError) as error:  # of AV1 without its library
            raise _no_decoder(self._path, self._video.codec_context.name) from error
        except av.FFmpegError as error:
            frames, damage = [None], f": {error.strerror}"
        for frame in frames:
            index, self._index = self._index, self._index + 1
            stamp = self._stamp(index, frame)
            if index % stride:
                yield None
            elif frame is None or frame.is_corrupt:
                yield Damaged(f"image {index} of the video is damaged{damage}")
            else:
                yield image_message(self._picture(frame), "bgr8", stamp, f"image {index} of the video")

    def _stamp(self, index: int, frame: VideoFrame | None) -> int:
        """Nanoseconds from the first image on."""
        if self._rate:
            return round(index * 1e9 / self._rate)
        seconds = self._next
        time = None if frame is None else frame.dts if self._counts_images else frame.pts
        if time is not None and self._video.time_base:
            seconds = time * self._video.time_base
            self._first = seconds if self._first is None else self._first
            self._longest = max(self._longest, seconds - self._next + self._period)
        self._next = seconds + self._period
        return round((seconds - (self._first or 0)) * 1_000_000_000)

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """BGR."""
        image = self._reformatter.reformat(frame, format="bgr24", threads=1).to_ndarray()
        turns = 0 if frame.rotation % 90 else frame.rotation // 90
        return np.rot90(image, turns)

    def _check_end(self) -> None:
        """Raises DamagedBag where there is less than the container says."""
        stated = Fraction(self._container.duration or 0, 1_000_000)
        if self._counts_images:
            stated = self._video.frames * (self._video.time_base or stated)
        if stated - self._end > self._longest:
            raise DamagedBag(
                f"{self._path} ends early: {self._index} images in {float(self._end):.3f} of {float(stated):.3f} s"
            )
