# SPDX-License-Identifier: Apache-2.0
"""The thread that owns the stream: an image out of the mailbox, a step, its outputs published."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from xsvggt_ros.camera import Rectifier
from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.conversions import FrameMessages, InputCounts, decode_image, stamp_ns
from xsvggt_ros.placement.placement import NotPlaced, Placement
from xsvggt_ros.ros.load import LoadShedding, Rung
from xsvggt_ros.ros.mailbox import Mailbox
from xsvggt_ros.ros.monitor import Monitor
from xsvggt_ros.stream import Frame, GeometryStream, OutOfMemory, Status

THROTTLE_S = 5.0  # between two warnings of the same kind
# What load shedding publishes less often: the outputs that are large.
DENSE_TOPICS = ("~/depth/image", "~/depth/camera_info", "~/confidence/image", "~/points")


class Worker:
    """Serves the images of `mailbox` with one stream until the mailbox closes.

    settings: its `config` is the configuration in force, read once per image. publish(topic, make): sends a
    message if someone listens. Attributes are written by one thread each: those named so by the node's.
    """

    def __init__(
        self,
        stream: GeometryStream,
        settings: Any,
        message_class: Callable[[str], Any],
        publish: Callable[[str, Callable[[], Any]], None],
        logger: Any,
    ) -> None:
        self.mailbox: Mailbox[tuple[float, Any]] = Mailbox()  # time of arrival (monotonic) and message
        self.placement = Placement(settings.config)
        self.monitor = Monitor()
        self.camera_info: Any = None  # written by the node
        self.lost = 0  # written by the node
        self.status = Status()  # of the newest frame
        self.rung = Rung()
        self.missing = ""  # why the newest frame could not be placed
        self._stream = stream
        self._settings = settings
        self._messages = FrameMessages(message_class)
        self._publish = publish
        self._logger = logger
        self._load = LoadShedding()
        self._rectifier = Rectifier()
        self._reset_asked = threading.Event()
        self._cache = settings.config.stream.cache
        self._worlds = self._rejected = self._unplaced = self._failed = 0

    @property
    def shortage(self) -> str:
        """Why the cache is smaller than configured, since memory ran out; empty: it is not."""
        return self._stream.shortage

    # The node's thread

    def ask_reset(self) -> None:
        """The next image starts a new world."""
        self._reset_asked.set()

    def receive_image(self, msg: Any, config: NodeConfig) -> None:
        """Puts an image into the mailbox."""
        now = time.monotonic()
        self.monitor.received(now)
        self.mailbox.put((now, msg), limit=config.queue_size if config.queue == "all" else None)

    def counts(self) -> InputCounts:
        """What became of the images so far."""
        return InputCounts(
            frames_received=self.mailbox.received,
            frames_replaced=self.mailbox.replaced,
            frames_refused=self.mailbox.refused,
            frames_lost=self.lost,
            frames_rejected=self._rejected,
            frames_unplaced=self._unplaced,
            frames_failed=self._failed,
            resets=max(0, self._worlds - 1),
        )

    # The worker's thread

    def run(self) -> None:
        """Serves images until the mailbox closes."""
        while (item := self.mailbox.get()) is not None:
            arrived, msg = item
            config = self._settings.config
            frame = self._step(msg, config)
            if frame is not None:
                self._report(frame.status)
                self._give_out(frame, msg.header, config, arrived)

    def _step(self, msg: Any, config: NodeConfig) -> Frame | None:
        try:
            image, K = self._image(msg, config)
            if self._stream.advance(stamp_ns(msg.header)):
                self.placement.transforms.clear()
            self._apply(config)
            return self._stream.step(image, K)
        except ValueError as error:
            self._rejected += 1
            self._logger.warning(f"image rejected: {error}", throttle_duration_sec=THROTTLE_S)
        except OutOfMemory as error:
            self._failed += 1
            self._logger.error(str(error), throttle_duration_sec=THROTTLE_S)
        return None

    def _image(self, msg: Any, config: NodeConfig) -> tuple[np.ndarray, np.ndarray | None]:
        """Rectified, with its K; as it is, without K, where no usable camera_info came."""
        image = decode_image(msg)
        if self.camera_info is None:
            return image, None
        try:
            return self._rectifier(image, self.camera_info, config.rectify)
        except ValueError as error:
            self._logger.warning(f"camera_info ignored: {error}", throttle_duration_sec=THROTTLE_S)
            return image, None

    def _apply(self, config: NodeConfig) -> None:
        """What users asked for since the last image."""
        if self._reset_asked.is_set():
            self._reset_asked.clear()
            self._stream.reset("asked for by ~/reset")
        if config.stream.cache != self._cache:
            self._cache = config.stream.cache
            try:
                self._stream.reconfigure(self._cache)
            except (ValueError, OutOfMemory) as error:
                self._logger.error(f"cache settings not applied: {error}")

    def _report(self, status: Status) -> None:
        """Says what the cache is whenever that may be news."""
        first = status.frame == 0
        self._worlds += first
        if first and status.event:
            self._logger.warning(f"a new world starts: {status.event}")
        if (first or status.event) and status.budget_raised:
            self._logger.warning(
                f"the budget asked for is below what {status.policy} works with: raised to {status.floor_tokens} tokens"
            )
        if first or status.event:
            self._logger.info(
                f"cache: {status.policy}, {status.budget_tokens or 'unlimited'} tokens per layer, "
                f"{status.key_bits} bit keys, {status.value_bits} bit values, "
                f"{status.cache_bytes / 2**20:.2f} MiB"
            )

    def _give_out(self, frame: Frame, header: Any, config: NodeConfig, arrived: float) -> None:
        """Publishes the frame, or only its status where it cannot be placed."""
        stamp, camera = stamp_ns(header), header.frame_id or "camera"  # an empty frame_id is no frame
        try:
            placed = self.placement.place(frame, stamp, camera, config)
        except NotPlaced as error:
            self._unplaced += 1
            self.missing = error.args[0]
            self._logger.warning(f"nothing published: {self.missing}", throttle_duration_sec=THROTTLE_S)
        else:
            self.missing = ""
            for topic, make in self._messages.convert(placed, stamp, camera, self._thinned(config)).items():
                if topic not in DENSE_TOPICS or frame.index % self.rung.publish_every == 0:
                    self._publish(topic, make)
        self.status = frame.status
        age = time.monotonic() - arrived
        self.monitor.published(frame.status.seconds["step"], age)
        self._publish("~/status", lambda: self._status(frame.status, stamp, camera))
        self._shed_load(age, config)

    def _status(self, status: Status, stamp: int, camera: str) -> Any:
        return self._messages.status(
            status,
            stamp,
            camera,
            scale=self.placement.scale,
            counts=self.counts(),
            performance=replace(self.monitor.performance(), rung=self.rung.number),
        )

    def _thinned(self, config: NodeConfig) -> NodeConfig:
        if self.rung.point_stride == 1:  # a configuration is checked when it is made, which takes its time
            return config
        stride = config.output.point_stride * self.rung.point_stride
        return replace(config, output=replace(config.output, point_stride=stride))

    def _shed_load(self, age: float, config: NodeConfig) -> None:
        rung = self._load.update(age, config.target_latency_ms)
        if rung == self.rung:
            return
        self._logger.warning(
            f"latency against target_latency_ms {config.target_latency_ms:.0f}: now {rung.description}"
        )
        try:
            self._stream.limit(rung.budget)
        except (ValueError, OutOfMemory) as error:
            self._logger.error(f"cache budget not changed: {error}")
        self.rung = rung
