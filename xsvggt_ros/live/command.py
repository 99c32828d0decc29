# SPDX-License-Identifier: Apache-2.0
"""`xsvggt live`: a recording as if it came from a camera now, with its live page, without ROS."""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, nullcontext
from pathlib import Path
from queue import Empty, Queue
from threading import Event
from typing import Any

from xsvggt_ros.config import NodeConfig, StreamConfig, ViewerConfig
from xsvggt_ros.flags import add_settings, given_settings
from xsvggt_ros.live.owner import CONTINUE, PAUSE, Owner, done, for_page
from xsvggt_ros.live.server import check_page
from xsvggt_ros.live.viewer import Viewer, new_file
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.topics import IMAGE
from xsvggt_ros.pipeline import Pipeline, Rejected
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.replay.command import SETTINGS as OF_REPLAY
from xsvggt_ros.replay.command import answers, say_what_the_model_knows
from xsvggt_ros.replay.signals import stop_signals
from xsvggt_ros.replay.sources import (
    Messages,
    add_source_arguments,
    bag_topics,
    complaint,
    open_source,
    reading_of,
    usable,
)
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.settings import changed, settings

PAGE = settings(ViewerConfig)
OF_MESSAGES = ("obstacles.", "point_stride", "depth_encoding", "compressed_depth")
SHOWN = [setting for setting in OF_REPLAY if not setting.name.startswith(OF_MESSAGES)]  # it makes none
SETTINGS = [*SHOWN, *(setting for setting in settings(NodeConfig) if setting.name == "loop.folder")]
LONGEST_WAIT_S = 5.0  # between two images, whatever their stamps say
POLL_S = 0.05  # between two looks at what the page asks for

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the command, one for every setting, and those of the page without `viewer_`."""
    add_source_arguments(parser)
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="HTML file to write the scene to as it grew, for any browser"
    )
    add_settings(parser, PAGE)
    add_settings(parser, SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Exit code: 0 once SIGINT or SIGTERM has ended the page. Raises ValueError or OSError with the reason."""
    given = {f"viewer_{name}": value for name, value in given_settings(args, PAGE).items()}
    config = changed(NodeConfig(), given_settings(args, SETTINGS) | given)
    reading = reading_of(args)
    topics = bag_topics(config, reading.reference)
    check_page(config.page)
    with (
        open_source(args.input, reading, topics) as source,
        new_file(args.record) if args.record else nullcontext() as record,
        stop_signals() as stop,
    ):
        messages = usable(source, args.input)
        stream = SegmentedStream(config.stream)
        length = reading.length(source.length)
        show = Show(Pipeline(stream, config, log), config, stop, stream.check_all, length)
        say_what_the_model_knows(config)
        with closing(Viewer(show.owner(), log, record)) as viewer:
            print(viewer.where, flush=True)
            show.play(messages, viewer, reading.max_frames)
            if not stop.is_set():
                print(f"{source.damage or 'no more images'}; the page stays until Ctrl-C", flush=True)
            show.wait(math.inf)
    if args.record:
        print(f"{args.record}: {args.record.stat().st_size / 1e6:.1f} MB")
    return 0


class Show:
    """Plays messages to a page, at their own pace where the machine keeps up, and does what the page asks for.

    All of it in one thread, the page's wishes between two images. check: raises ValueError for what the stream could
    not change to; length: images to come, where known beforehand.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        config: NodeConfig,
        stop: Event,
        check: Callable[[StreamConfig], None],
        length: int | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._check = check
        self._config = config
        self._stop = stop
        self._length = length
        self._taken = 0  # images
        self._paused = self._ended = False
        # No SimpleQueue: once a signal has held its `get` up until after the time limit, that knows none any more.
        self._wishes: Queue[tuple[Callable[[], str], Future[str]]] = Queue()

    def owner(self) -> Owner:
        """As the page knows it."""
        live = for_page((*SETTINGS, *settings(ViewerConfig, "viewer_")))
        actions = {"Reset": self._reset, PAUSE: self._pause, CONTINUE: self._continue, "Save map": self._save_map}
        return Owner(
            lambda: self._pipeline.status,
            lambda: self._config,
            live,
            self._change,
            actions,
            self._wish,
            lambda: "images wait" if self._paused else "",
            self._so_far,
        )

    def _so_far(self) -> str:
        of = "" if self._length is None else f" of {self._length}"
        return f"{'ended, ' if self._ended else ''}{self._taken}{of} images"

    def play(self, messages: Messages, viewer: Viewer, most: int | None) -> None:
        """Until they end, `most` images were taken in, or `stop` is set."""
        for answer in answers(self._paced(messages), self._pipeline, lambda: self._config, most):
            self._taken += not isinstance(answer.result, Rejected)
            if isinstance(answer.result, Placed):
                viewer.show(answer.result)
            elif isinstance(answer.result, Rejected):
                log.warning(complaint(answer.image.name, answer.result.reason))
        self._ended, self._paused = True, False

    def _paced(self, messages: Messages) -> Messages:
        """Each image when it is due; what the page asks for is done meanwhile."""
        lag = -math.inf  # from the images' stamps to now
        for topic, message in messages:
            if topic == IMAGE:
                stamp = stamp_ns(message.header) / 1e9
                self._wait_for_image(stamp + lag - time.monotonic())
                while self._paused and not self._stop.is_set():
                    self.wait(POLL_S)
                if self._stop.is_set():
                    return
                lag = time.monotonic() - stamp
            yield topic, message

    def _wait_for_image(self, seconds: float) -> None:
        if seconds > LONGEST_WAIT_S:
            log.warning(f"the next image comes {seconds:.0f} s after the last: it is shown in {LONGEST_WAIT_S:.0f} s")
        self.wait(min(seconds, LONGEST_WAIT_S))

    def wait(self, seconds: float) -> None:
        """Does what the page asks for until that much time is over, at least what it has asked for by now."""
        end = time.monotonic() + seconds
        while not self._stop.is_set():
            try:
                done(*self._wishes.get(timeout=min(POLL_S, max(0.0, end - time.monotonic()))))
            except Empty:
                if time.monotonic() >= end:
                    return

    def _wish(self, action: Callable[[], str]) -> Future[str]:
        future: Future[str] = Future()
        self._wishes.put((action, future))
        return future

    def _check_goes_on(self) -> None:
        """Raises ValueError where no image comes that what is asked for could have to do with."""
        if self._ended:
            raise ValueError("the recording has ended")

    def _change(self, changes: dict[str, Any]) -> str:
        self._check_goes_on()
        new = changed(self._config, changes)
        self._check(new.stream)
        self._config = new
        return "from the next image on"

    def _reset(self) -> str:
        self._check_goes_on()
        self._pipeline.reset()
        return "the next image starts a new world"

    def _pause(self) -> str:
        self._check_goes_on()
        self._paused = True
        return f"images wait until {CONTINUE} is pressed"

    def _continue(self) -> str:
        self._check_goes_on()
        self._paused = False
        return "images go on"

    def _save_map(self) -> str:
        return self._pipeline.save_map(self._config.stream.loop.folder)
