# SPDX-License-Identifier: Apache-2.0
"""The thread that owns the pipeline: an image out of the mailbox, processed, its outputs given to the publisher."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.topics import IMAGE, NEED_DEPTH, outputs
from xsvggt_ros.pipeline import Answer, Pipeline
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.ros.load_shedding import Level
from xsvggt_ros.ros.mailbox import Mailbox
from xsvggt_ros.ros.monitor import Monitor
from xsvggt_ros.ros.publisher import Publisher
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.status import Status


class Worker:
    """Serves the images of its mailbox with one stream until the mailbox closes.

    settings: its `config` is the configuration in force, read once per image. publish(topic, make): sends a
    message if someone listens(topic). show(placed): is given each frame, and waits for nothing. `run` is for a thread
    of its own, all else for the node's. What comes of an image is published in a third thread, while the next is at
    work; that one waits until all of the last is out.
    """

    def __init__(
        self,
        stream: SegmentedStream,
        settings: Any,
        message_class: Callable[[str], Any],
        publish: Callable[[str, Callable[[], Any]], None],
        listens: Callable[[str], bool],
        log: Any,
        show: Callable[[Placed], None] = lambda placed: None,
    ) -> None:
        self.lost = 0  # images, by the middleware
        self._pipeline = Pipeline(stream, settings.config, log)
        self._settings = settings
        self._listens = listens
        self._mailbox: Mailbox[tuple[float, Any]] = Mailbox()  # time of arrival (monotonic) and message
        self._monitor = Monitor()
        self._publisher = Publisher(message_class, publish, self._monitor, self._completed, log, show)
        self._publishing: Future[None] = Future()  # what came of the image before
        self._publishing.set_result(None)
        self._level = self._publisher.level  # that the pipeline works at
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
        return self._completed(self._pipeline.status, self._publisher.level)

    def _completed(self, status: Status, level: Level) -> Status:
        """With what the pipeline does not know."""
        images = replace(status.images, frames_lost=self.lost, **self._mailbox.counts())
        performance = replace(self._monitor.performance(), shed_level=level.number)
        return replace(status, images=images, performance=performance, silent=self._monitor.silent())

    def finish(self) -> Event:
        """Has the images that wait for the rest of their chunk taken in; set once their outputs are out."""
        done = Event()
        self._mailbox.add((0.0, done))
        return done

    def run(self) -> None:
        """Serves images until the mailbox closes, those that wait for the rest of their chunk included.

        Raises what processing raised, or publishing.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="publisher") as thread:
            while (item := self._mailbox.get()) is not None:
                self._obey_load()
                arrived, message = item
                config = self._settings.config
                if isinstance(message, Event):
                    self._hand_over(thread, self._pipeline.flush(), config)
                    self._publishing.result()
                    message.set()
                else:
                    self._hand_over(
                        thread, self._pipeline.process(message, config, arrived, self._dense(config)), config
                    )
            self._hand_over(thread, self._pipeline.flush(), self._settings.config)
            self._publishing.result()

    def _dense(self, config: NodeConfig) -> bool:
        """Whether depth is asked for: always, or by who listens where something is published."""
        return config.dense == "always" or any(map(self._listens, outputs(config).keys() & NEED_DEPTH))

    def _obey_load(self) -> None:
        """Brings the level of load shedding into the pipeline."""
        if (level := self._publisher.level) != self._level:
            self._level = level
            self._pipeline.limit(level.budget)

    def _hand_over(self, thread: ThreadPoolExecutor, answers: list[Answer], config: NodeConfig) -> None:
        """Has them published in that thread, once all that came before is out. Raises what that raised."""
        self._publishing.result()
        if answers:
            self._publishing = thread.submit(self._publisher.publish, answers, config, self._level)
            self._publishing.add_done_callback(self._end_if_failed)

    def _end_if_failed(self, publishing: Future[None]) -> None:
        """`run` may wait for an image meanwhile."""
        if publishing.exception():
            self._mailbox.close()
