# SPDX-License-Identifier: Apache-2.0
"""The thread that owns the pipeline: an image out of the mailbox, processed, its outputs published."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.topics import IMAGE, FrameMessages
from xsvggt_ros.pipeline import THROTTLE_S, Pipeline, Rejected, Unplaced
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.ros.load_shedding import LEVELS, LoadShedding
from xsvggt_ros.ros.mailbox import Mailbox
from xsvggt_ros.ros.monitor import Monitor
from xsvggt_ros.status import Status
from xsvggt_ros.stream import GeometryStream

# What load shedding publishes less often: the outputs that are large.
DENSE_TOPICS = ("~/depth/image", "~/depth/camera_info", "~/confidence/image", "~/points")


class Worker:
    """Serves the images of its mailbox with one stream until the mailbox closes.

    settings: its `config` is the configuration in force, read once per image. publish(topic, make): sends a
    message if someone listens. All methods but `run` are for the node's thread.
    """

    def __init__(
        self,
        stream: GeometryStream,
        settings: Any,
        message_class: Callable[[str], Any],
        publish: Callable[[str, Callable[[], Any]], None],
        log: Any,
    ) -> None:
        self.lost = 0  # images, by the middleware
        self._pipeline = Pipeline(stream, settings.config, log)
        self._settings = settings
        self._messages = FrameMessages(message_class)
        self._publish = publish
        self._log = log
        self._mailbox: Mailbox[tuple[float, Any]] = Mailbox()  # time of arrival (monotonic) and message
        self._monitor = Monitor()
        self._load = LoadShedding()
        self._level = LEVELS[0]

    def receive(self, topic: str, message: Any) -> None:
        """Puts an image into the mailbox; any other message goes to the pipeline at once."""
        if topic != IMAGE:
            self._pipeline.receive(topic, message)
            return
        now, config = time.monotonic(), self._settings.config
        self._monitor.received(now)
        self._mailbox.put((now, message), limit=config.queue_size if config.queue == "all" else None)

    def reset(self) -> None:
        """The next image starts a new world."""
        self._pipeline.reset()

    def time_restarted(self) -> None:
        """The node's clock jumped back."""
        self._pipeline.time_restarted()

    def clear(self) -> None:
        """Forgets the images that wait."""
        self._mailbox.clear()

    def close(self) -> None:
        """Ends `run` after the step at hand."""
        self._mailbox.close()

    def status(self) -> Status:
        """All there is to say now."""
        status, mailbox = self._pipeline.status, self._mailbox
        images = replace(
            status.images,
            frames_received=mailbox.received,
            frames_replaced=mailbox.replaced,
            frames_refused=mailbox.refused,
            frames_lost=self.lost,
        )
        performance = replace(self._monitor.performance(), shed_level=self._level.number)
        return replace(status, images=images, performance=performance, silent=self._monitor.silent())

    def run(self) -> None:
        """Serves images until the mailbox closes."""
        while (item := self._mailbox.get()) is not None:
            arrived, message = item
            config = self._settings.config
            result = self._pipeline.process(message, config)
            if isinstance(result, Rejected):
                self._report(result)
            else:
                self._answer(result, config, arrived)

    def _report(self, result: Rejected) -> None:
        if result.failed:
            self._log.error(result.reason, throttle_duration_sec=THROTTLE_S)
        else:
            self._log.warning(f"image rejected: {result.reason}", throttle_duration_sec=THROTTLE_S)

    def _answer(self, result: Placed | Unplaced, config: NodeConfig, arrived: float) -> None:
        """Publishes the frame, or only its status where it could not be placed."""
        if isinstance(result, Unplaced):
            self._log.warning(f"nothing published: {result.reason}", throttle_duration_sec=THROTTLE_S)
        else:
            self._publish_frame(result, config)
        age = time.monotonic() - arrived
        self._monitor.published(result.frame.status.seconds["step"], age)
        self._publish("~/status", lambda: self._messages.status(self.status(), result.stamp_ns, result.camera))
        self._shed_load(age, config)

    def _publish_frame(self, placed: Placed, config: NodeConfig) -> None:
        dense = placed.frame.index % self._level.publish_every == 0
        for topic, make in self._messages.convert(placed, self._thinned(config)).items():
            if dense or topic not in DENSE_TOPICS:
                self._publish(topic, make)

    def _thinned(self, config: NodeConfig) -> NodeConfig:
        if self._level.point_stride == 1:  # a configuration is checked when it is made, which takes its time
            return config
        stride = config.output.point_stride * self._level.point_stride
        return replace(config, output=replace(config.output, point_stride=stride))

    def _shed_load(self, age: float, config: NodeConfig) -> None:
        level = self._load.update(age, config.target_latency_ms)
        if level != self._level:
            target = f"target_latency_ms {config.target_latency_ms:.0f}"
            self._log.warning(f"latency against {target}: now {level.description}")
            self._pipeline.limit(level.budget)
            self._level = level
