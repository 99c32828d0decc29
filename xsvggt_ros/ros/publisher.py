# SPDX-License-Identifier: Apache-2.0
"""What became of images, as messages: made for those who listen, published, and how long it all took."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.topics import FrameMessages
from xsvggt_ros.pipeline import THROTTLE_S, Answer, Rejected, Throttle, Unplaced
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.ros.load_shedding import DENSE_TOPICS, Level, LoadShedding
from xsvggt_ros.ros.monitor import Monitor
from xsvggt_ros.status import Status


class Publisher:
    """Publishes answers of the pipeline, in order.

    send(topic, make): sends a message if someone listens. show(placed): is given each frame, and waits for nothing.
    complete(status, level): the status of the pipeline with what the node knows. `publish` is for one thread; `level`
    may be read by others.
    """

    def __init__(
        self,
        message_class: Callable[[str], Any],
        send: Callable[[str, Callable[[], Any]], None],
        monitor: Monitor,
        complete: Callable[[Status, Level], Status],
        log: Any,
        show: Callable[[Placed], None],
    ) -> None:
        self._messages = FrameMessages(message_class)
        self._send = send
        self._monitor = monitor
        self._complete = complete
        self._log = log
        self._show = show
        self._throttle = Throttle()
        self._load = LoadShedding()

    @property
    def level(self) -> Level:
        """Of load shedding, for the images to come."""
        return self._load.level

    def publish(self, answers: list[Answer], config: NodeConfig, level: Level) -> None:
        """What became of images that were taken in under these settings, at that level of load shedding."""
        for answer in answers:
            if isinstance(answer.result, Rejected):
                self._report(answer.result)
            else:
                self._publish_all(answer, answer.result, config, level)

    def _report(self, result: Rejected) -> None:
        """Logs each kind of reason, numbers apart, at most once in a while."""
        if not self._throttle.passes(re.sub(r"\d+", "", result.reason)):
            return
        if result.cause == "frames_failed":
            self._log.error(result.reason)
        else:
            self._log.warning(f"image not used: {result.reason}")

    def _publish_all(self, answer: Answer, result: Placed | Unplaced, config: NodeConfig, level: Level) -> None:
        """Publishes the frame, or only its status where it could not be placed."""
        if isinstance(result, Unplaced):
            self._log.warning(f"nothing published: {result.reason}", throttle_duration_sec=THROTTLE_S)
        else:
            self._publish_frame(result, config, level)
            self._show(result)
        age = time.monotonic() - answer.image.time
        self._monitor.published(answer.status.step.seconds["step"], age)
        status = self._complete(answer.status, level)
        if level == self.level:  # else it was on its way as that changed, and says nothing about the new one
            self._shed_load(age, config)
        self._send("~/status", lambda: self._messages.status(status, result.stamp_ns, result.camera))

    def _publish_frame(self, placed: Placed, config: NodeConfig, level: Level) -> None:
        for topic, make in self._messages.convert(placed, level.thinned(config)).items():
            if topic not in DENSE_TOPICS or placed.frame.index % level.publish_every == 0:
                self._send(topic, make)

    def _shed_load(self, age: float, config: NodeConfig) -> None:
        before = self._load.level
        level = self._load.update(age, config.target_latency_ms)
        if level != before:
            target = f"target_latency_ms {config.target_latency_ms:.0f}"
            self._log.warning(f"latency against {target}: now {level.description}")
