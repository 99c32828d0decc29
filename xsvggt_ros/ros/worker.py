# SPDX-License-Identifier: Apache-2.0
"""The thread that owns the pipeline: an image out of the mailbox, processed, its outputs published."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Event
from typing import Any

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.topics import IMAGE, NEED_DEPTH, FrameMessages
from xsvggt_ros.pipeline import THROTTLE_S, Answer, Pipeline, Rejected, Throttle, Unplaced
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.ros.load_shedding import DENSE_TOPICS, LoadShedding
from xsvggt_ros.ros.mailbox import Mailbox
from xsvggt_ros.ros.monitor import Monitor
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.status import Status


class Worker:
    """Serves the images of its mailbox with one stream until the mailbox closes.

    settings: its `config` is the configuration in force, read once per image. publish(topic, make): sends a
    message if someone listens(topic). `run` is for a thread of its own, all else for the node's.
    """

    def __init__(
        self,
        stream: SegmentedStream,
        settings: Any,
        message_class: Callable[[str], Any],
        publish: Callable[[str, Callable[[], Any]], None],
        listens: Callable[[str], bool],
        log: Any,
    ) -> None:
        self.lost = 0  # images, by the middleware
        self._pipeline = Pipeline(stream, settings.config, log)
        self._settings = settings
        self._messages = FrameMessages(message_class)
        self._publish = publish
        self._listens = listens
        self._log = log
        self._mailbox: Mailbox[tuple[float, Any]] = Mailbox()  # time of arrival (monotonic) and message
        self._monitor = Monitor()
        self._throttle = Throttle()
        self._load = LoadShedding()
        # What the node's thread may ask for.
        self.reset, self.time_restarted = self._pipeline.reset, self._pipeline.time_restarted
        self.save_map, self.load_map = self._pipeline.save_map, self._pipeline.load_map
        self.clear, self.close = self._mailbox.clear, self._mailbox.close
        self.listen = self._monitor.listen

    def receive(self, topic: str, message: Any) -> None:
        """Puts an image into the mailbox; any other message goes to the pipeline at once."""
        if topic != IMAGE:
            self._pipeline.receive(topic, message)
            return
        now, config = time.monotonic(), self._settings.config
        self._monitor.received(now)
        self._mailbox.put((now, message), limit=config.queue_size if config.queue == "all" else None)

    def status(self) -> Status:
        """All there is to say now."""
        return self._completed(self._pipeline.status)

    def _completed(self, status: Status) -> Status:
        """With what the pipeline does not know."""
        images = replace(status.images, frames_lost=self.lost, **self._mailbox.counts())
        performance = replace(self._monitor.performance(), shed_level=self._load.level.number)
        return replace(status, images=images, performance=performance, silent=self._monitor.silent())

    def finish(self) -> Event:
        """Has the images that wait for the rest of their chunk taken in; set once their outputs are out."""
        done = Event()
        self._mailbox.add((0.0, done))
        return done

    def run(self) -> None:
        """Serves images until the mailbox closes, those that wait for the rest of their chunk included."""
        while (item := self._mailbox.get()) is not None:
            arrived, message = item
            config = self._settings.config
            if isinstance(message, Event):
                self._answer(self._pipeline.flush(), config)
                message.set()
            else:
                self._answer(self._pipeline.process(message, config, arrived, self._dense(config)), config)
        self._answer(self._pipeline.flush(), self._settings.config)

    def _dense(self, config: NodeConfig) -> bool:
        """Whether depth is asked for."""
        return config.dense == "always" or any(self._listens(topic) for topic in NEED_DEPTH)

    def _answer(self, answers: list[Answer], config: NodeConfig) -> None:
        for answer in answers:
            if isinstance(answer.result, Rejected):
                self._report(answer.result)
            else:
                self._publish_all(answer, answer.result, config)

    def _report(self, result: Rejected) -> None:
        """Logs each kind of reason, numbers apart, at most once in a while."""
        if not self._throttle.passes(re.sub(r"\d+", "", result.reason)):
            return
        if result.cause == "frames_failed":
            self._log.error(result.reason)
        else:
            self._log.warning(f"image not used: {result.reason}")

    def _publish_all(self, answer: Answer, result: Placed | Unplaced, config: NodeConfig) -> None:
        """Publishes the frame, or only its status where it could not be placed."""
        if isinstance(result, Unplaced):
            self._log.warning(f"nothing published: {result.reason}", throttle_duration_sec=THROTTLE_S)
        else:
            self._publish_frame(result, config)
        age = time.monotonic() - answer.image.time
        self._monitor.published(answer.status.step.seconds["step"], age)
        status = self._completed(answer.status)
        self._publish("~/status", lambda: self._messages.status(status, result.stamp_ns, result.camera))
        self._shed_load(age, config)

    def _publish_frame(self, placed: Placed, config: NodeConfig) -> None:
        level = self._load.level
        for topic, make in self._messages.convert(placed, level.thinned(config)).items():
            if topic not in DENSE_TOPICS or placed.frame.index % level.publish_every == 0:
                self._publish(topic, make)

    def _shed_load(self, age: float, config: NodeConfig) -> None:
        before = self._load.level
        level = self._load.update(age, config.target_latency_ms)
        if level != before:
            target = f"target_latency_ms {config.target_latency_ms:.0f}"
            self._log.warning(f"latency against {target}: now {level.description}")
            self._pipeline.limit(level.budget)
