# SPDX-License-Identifier: Apache-2.0
"""One camera's messages to placed frames: decoded, rectified, stepped, placed, counted. Node and replay share it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, RLock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.continuity import Late
from xsvggt_ros.frame import Frame, InputImage
from xsvggt_ros.memory import MIB, OutOfMemory
from xsvggt_ros.messages.decode import CameraDecoder, camera_of, decode_depth, decode_pose, name_of, stamp_ns
from xsvggt_ros.messages.topics import CAMERA_INFO, DEPTH, POINTS_TO_TRACK, TF, TF_STATIC
from xsvggt_ros.placement.placement import NotPlaced, Placed, Placement
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.status import Status, StepStatus
from xsvggt_ros.stream import NotFinite

GONE = 100  # images of others in a row, after which the camera that was followed is taken to be gone
BUILDING = 0.6  # of target_latency_ms: what may be over by the end of the work on a segment to come
THROTTLE_S = 5.0  # between two warnings of a kind
MOST_KINDS = 100  # that are remembered: they may hold what a stranger sent


class Logger(Protocol):
    """rclpy's logger, or Python's."""

    def info(self, message: str) -> Any: ...
    def warning(self, message: str) -> Any: ...
    def error(self, message: str) -> Any: ...


class Throttle:
    """Lets each kind of warning pass at most once in THROTTLE_S."""

    def __init__(self) -> None:
        self._passed_at: dict[str, float] = {}

    def passes(self, kind: str) -> bool:
        """Whether it is time for one of that kind, which counts as given then."""
        now = time.monotonic()
        if now - self._passed_at.get(kind, -THROTTLE_S) < THROTTLE_S:
            return False
        if len(self._passed_at) >= MOST_KINDS:
            self._passed_at.clear()
        self._passed_at[kind] = now
        return True


@dataclass(frozen=True)
class Unplaced:
    """An image that the stream took in, though its frame cannot be placed: `reason` says what is missing."""

    stamp_ns: int
    camera: str  # frame_id of the image
    frame: Frame
    reason: str


@dataclass(frozen=True)
class Rejected:
    """An image that the stream did not take in."""

    reason: str
    cause: str  # the one of status.ImageCounts that counts it


@dataclass(frozen=True)
class Arrival:
    """An image on its way."""

    name: str  # what tells it from the others: its file's name or its stamp
    time: float  # when it arrived, as given to `process`
    stamp_ns: int = 0
    camera: str = ""  # its frame_id
    image: NDArray[np.uint8] | None = None  # [H, W, 3], rectified, where outputs have its resolution


@dataclass(frozen=True)
class Answer:
    """What became of an image."""

    image: Arrival
    result: Placed | Unplaced | Rejected
    status: Status  # after it


class Pipeline:
    """Serves the messages of one stream, in order.

    `process` and `flush` belong to one thread; the other methods may be called from another. `status` is that after
    the newest image.
    """

    def __init__(self, stream: SegmentedStream, config: NodeConfig, log: Logger) -> None:
        self._stream = stream
        self._log = log
        self._camera = CameraDecoder(warn=log.warning)
        self._placement = Placement(config)
        stream.motion = self._placement.motion
        self._config = config  # in force for the newest image
        self._waiting: list[Arrival] = []  # in the stream, until their chunk is full
        self._reset_asked = Event()
        self._why_reset = ""
        self._between_images = RLock()  # held in a step: for the little that another thread does with the stream
        # Topics of POINTS_TO_TRACK and their messages: without images they wait, but no more than can be followed.
        self._points_asked: deque[tuple[str, Any]] = deque(maxlen=max(1, config.stream.track_groups))
        self._resize: Resize | None = None  # of the newest image
        self._followed = ""  # frame_id of the camera whose images are taken
        self._others = 0  # images of other cameras since its last
        self._told_cropping = False
        self._told_cache: tuple = ()
        self._worlds = 0
        self._throttle = Throttle()
        self.status = Status(scale=self._placement.scale)

    def receive(self, topic: str, message: Any) -> None:
        """Takes a message of camera_info, of points to follow or of one of the topics.REFERENCES.

        One that cannot be used is said.
        """
        try:
            if topic == CAMERA_INFO:
                self._camera.receive(message)
            elif topic in POINTS_TO_TRACK:
                self._ask(topic, message)
            else:
                hand_over(self._placement, topic, message)
        except ValueError as error:
            if self._throttle.passes(topic):
                self._log.warning(f"{topic} ignored: {error}")

    def reset(self) -> None:
        """The next image starts a new world."""
        self._reset_asked.set()

    def time_restarted(self) -> None:
        """The transforms to come are of another time. (The images' own stamps reset the stream.)"""
        self._placement.transforms.clear()

    def limit(self, fraction: float) -> None:
        """Holds the cache to a fraction of its budget; the thread of `process` calls it, between two images."""
        try:
            self._stream.limit(fraction)
        except OutOfMemory as error:
            self._log.error(f"cache budget not changed: {error}")

    def process(
        self, message: Any, config: NodeConfig, arrived: float | None = None, dense: bool = True
    ) -> list[Answer]:
        """Takes the next image, a sensor_msgs Image or CompressedImage, under the settings now in force.

        Returns an answer for each image that has become something by now: with `cache.chunk` above 1 none for most,
        and all of them when their chunk is full. arrived: when, of `time.monotonic`, if not now; it comes back in the
        answer. dense: whether depth is asked for; else it is computed only where something here goes by it.
        """
        with self._between_images:
            self._stream.dense = dense or self._placement.goes_by_depth
            return self._process(message, config, time.monotonic() if arrived is None else arrived)

    def _process(self, message: Any, config: NodeConfig, arrived: float) -> list[Answer]:
        self._count("frames_received")
        answers = self._apply(config)
        target = config.target_latency_ms / 1000
        self._stream.until = arrived + BUILDING * target if target else math.inf
        arrival = Arrival(name_of(message), arrived)
        try:
            if left := self._left_camera(camera_of(message), config.camera_frame):
                answers += self._new_world(left)
            image = self._camera.decode(message, config.rectify)
        except ValueError as error:
            return [*answers, self._rejected(arrival, str(error), "frames_rejected")]
        kept = image.image if config.size.resolution == "input" else None
        arrival = replace(arrival, stamp_ns=image.stamp_ns, camera=image.frame_id, image=kept)
        return answers + self._take(image, arrival)

    def flush(self) -> list[Answer]:
        """Takes in the images that wait for the rest of their chunk."""
        with self._between_images:
            return self._answers(self._stream.flush)

    def save_map(self, folder: str) -> str:
        """Writes the keyframes into a folder; returns what was done. Waits for the step at hand.

        Raises ValueError or OSError, with the reason and the remedy.
        """
        with self._between_images:
            return self._stream.save_map(_map_folder(folder))

    def load_map(self, folder: str) -> str:
        """The next image starts a new world, in the map of a folder; as `save_map`."""
        with self._between_images:
            done = self._stream.load_map(_map_folder(folder))
            self._why_reset = "a map was loaded"
            self.reset()
        return done

    def _take(self, image: InputImage, arrival: Arrival) -> list[Answer]:
        self._waiting.append(arrival)
        try:
            answers = self._answers(lambda: self._stream.take(image.image, image.intrinsics, image.stamp_ns))
        except ValueError as error:
            del self._waiting[-1]
            return [
                self._rejected(arrival, str(error), "frames_late" if isinstance(error, Late) else "frames_rejected")
            ]
        self._followed = image.frame_id
        self._tell_cropping(image)
        return answers

    def _answers(self, take: Callable[[], list[Frame]]) -> list[Answer]:
        """What became of the images that wait, once `take` has had the stream take in some of them, in order.

        Raises ValueError for an image that the stream refuses.
        """
        try:
            frames = take()
        except (NotFinite, OutOfMemory) as error:
            cause = "frames_abandoned" if isinstance(error, NotFinite) else "frames_failed"
            return [self._rejected(arrival, str(error), cause) for arrival in self._done()]
        return [self._placed(frame, arrival) for frame, arrival in zip(frames, self._done(), strict=True)]

    def _done(self) -> list[Arrival]:
        """The images that do not wait in the stream any more."""
        count = len(self._waiting) - self._stream.waiting
        done, self._waiting = self._waiting[:count], self._waiting[count:]
        self.status = replace(self.status, images=replace(self.status.images, frames_waiting=len(self._waiting)))
        return done

    def _new_world(self, reason: str) -> list[Answer]:
        """Ends the stream's world after what waits."""
        answers = self.flush()
        self._stream.reset(reason)
        self._followed = ""
        return answers

    def _apply(self, config: NodeConfig) -> list[Answer]:
        """What users asked for since the last image."""
        answers = []
        if self._reset_asked.is_set():
            self._reset_asked.clear()
            answers = self._new_world(self._why_reset or "asked for by ~/reset")
            self._why_reset = ""
        while self._points_asked:
            self._follow(*self._points_asked.popleft())
        before, now = self._config.stream, config.stream
        if now.cache.chunk != before.cache.chunk:
            answers += self.flush()
        self._config, self._stream.refine = config, now.refine
        try:
            if (now.segment, now.loop) != (before.segment, before.loop):
                self._stream.reconfigure_all(now.cache, now.segment, now.loop)
            elif now.cache != before.cache:
                self._stream.reconfigure(now.cache)
        except (ValueError, OutOfMemory) as error:
            self._log.error(f"cache settings not applied: {error}")
        return answers

    def _ask(self, topic: str, message: Any) -> None:
        waiting = len(self._points_asked)
        if waiting == self._points_asked.maxlen:
            raise ValueError(f"points were given {waiting} times since the last image: raise track_groups")
        self._points_asked.append((topic, message))

    def _follow(self, topic: str, message: Any) -> None:
        """Points of the newest image, in its pixels."""
        points = getattr(message, "points", [message])  # of a Polygon, or a Point
        pixels = np.array([(point.x, point.y) for point in points], np.float32).reshape(-1, 2)
        try:
            ids = self._stream.track(self._resize.to_input(pixels) if self._resize else pixels)
        except ValueError as error:
            self._log.warning(f"{topic} ignored: {error}")
        else:
            self._log.info(f"following {len(ids)} points, from id {ids[0]}")

    def _left_camera(self, camera: str, wanted: str) -> str:
        """One camera makes a world: the wanted one, or else the first that came. Raises ValueError at others.

        Returns why a new world starts, as another is followed now; empty: it does not.
        """
        followed = wanted or self._followed or camera
        self._others = 0 if camera == followed else self._others + 1
        if self._others == GONE and not wanted:
            followed = camera
        if camera != followed:
            raise ValueError(
                f"it is of camera {camera}, and {followed} is followed: give each camera a topic of its own, set "
                "camera_frame to the one to follow, or call ~/reset to follow the next"
            )
        if self._followed in ("", followed):
            return ""
        return f"camera {followed} is followed instead of {self._followed}"

    def _rejected(self, arrival: Arrival, reason: str, cause: str) -> Answer:
        self._count(cause)
        self.status = replace(self.status, unused=self.status.unused | {cause: reason})
        return Answer(arrival, Rejected(reason, cause), self.status)

    def _placed(self, frame: Frame, image: Arrival) -> Answer:
        self._worlds += frame.index == 0
        self._resize = frame.resize
        self._tell(frame.status)
        result: Placed | Unplaced
        try:
            placed = self._placement.place(frame, image.stamp_ns, image.camera, self._config)
            result = replace(placed, image=image.image)
            self._count(step=frame.status)
        except NotPlaced as error:
            result = Unplaced(image.stamp_ns, image.camera, frame, error.args[0])
            self._count("frames_unplaced", step=frame.status, missing=result.reason)
        return Answer(image, result, self.status)

    def _count(self, cause: str = "", step: StepStatus | None = None, missing: str = "") -> None:
        """Takes an image into the status; cause: the count it goes into. step: that of its frame, if it has one."""
        counts, before = self.status.images, self.status
        more = {cause: getattr(counts, cause) + 1} if cause else {}
        images = replace(counts, **more, resets=max(0, self._worlds - 1))
        status = replace(before, images=images, shortage=self._stream.shortage)
        if step is not None:
            calibration = self._camera.calibration
            status = replace(status, step=step, scale=self._placement.scale, missing=missing, calibration=calibration)
        self.status = status

    def _tell(self, step: StepStatus) -> None:
        """Says what the cache is whenever that may be news."""
        first = step.frame == 0
        cache = step.policy, step.budget_tokens, step.key_bits, step.value_bits
        if step.event:
            self._log.warning(f"a new world starts: {step.event}" if first else step.event)
        if (first or step.event) and step.budget_raised:
            least = f"{step.floor_tokens} tokens"
            if self._config.stream.cache.budget_mib:
                least += f" per layer, {self._stream.most_nbytes() / MIB:.2f} MiB"
            self._log.warning(f"the budget is below what the policy works with: raised to {least}")
        if first or cache != self._told_cache:
            self._told_cache = cache
            self._log.info(
                f"cache: {step.policy}, {step.budget_tokens or 'unlimited'} tokens per layer, "
                f"{step.key_bits} bit keys, {step.value_bits} bit values, {step.cache_bytes / MIB:.2f} MiB"
            )

    def _tell_cropping(self, image: InputImage) -> None:
        """Says once how much of high images is not seen: the network's input is at most a square."""
        unseen = self._stream.resize(image.image).unseen
        if unseen and not self._told_cropping:
            self._told_cropping = True
            height, width = image.image.shape[:2]
            self._log.warning(
                f"images of {width}x{height} are higher than wide, and of their rows {unseen:.0%}, at top and bottom, "
                "are not used: turn the camera, or its images, by 90 degrees"
            )


def _map_folder(folder: str) -> Path:
    if not folder:
        raise ValueError("no folder is set for maps: set loop.folder")
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:  # ~NAME of nobody
        raise ValueError(f"loop.folder {folder!r}: {error}; give a path without ~") from error


def hand_over(placement: Placement, topic: str, message: Any) -> None:
    """Gives the placement a message of one of topics.REFERENCES. Raises ValueError for one that cannot be used."""
    if topic in (TF, TF_STATIC):
        placement.receive_transforms(message.transforms, static=topic == TF_STATIC)
    elif topic == DEPTH:
        placement.receive_depth(stamp_ns(message.header), decode_depth(message))
    else:
        placement.receive_pose(stamp_ns(message.header), decode_pose(message))
