# SPDX-License-Identifier: Apache-2.0
"""How the node is doing: its rates and times, and the verdict on /diagnostics."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from threading import Lock
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from xsvggt_ros.ros.load_shedding import LEVELS
from xsvggt_ros.status import NO_CAMERA_INFO, ImageCounts, Performance, Status

WINDOW_S = 5.0  # over which images are counted; a silence as long is none any more
STEPS = 100  # of which median and worst are taken
# What may become of an image instead of outputs. To replace images is what the queue `latest` is for.
UNUSED = {
    "frames_refused": (DiagnosticStatus.WARN, "refused: the queue is full"),
    "frames_lost": (DiagnosticStatus.WARN, "lost by the middleware"),
    "frames_late": (DiagnosticStatus.WARN, "late: {}"),
    "frames_rejected": (DiagnosticStatus.WARN, "unusable: {}"),
    "frames_abandoned": (DiagnosticStatus.WARN, "left out: {}"),
    "frames_replaced": (DiagnosticStatus.OK, "replaced by newer ones"),
}


class Monitor:
    """Counts what comes and goes. Every method may be called from every thread.

    clock: seconds, never going back; that of the times given to `received`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._arrivals: deque[float] = deque()  # of the images of the last WINDOW_S
        self._listening_since = -math.inf
        self._since = 0.0  # when they began to come without such a pause
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._age = 0.0

    def listen(self) -> None:
        """Images are wanted from now on: that none came before is no silence."""
        with self._lock:
            self._listening_since = self._clock()

    def received(self, now: float) -> None:
        """An image has come."""
        with self._lock:
            self._forget(now)
            if not self._arrivals:
                self._since = now
            self._arrivals.append(now)

    def published(self, step_seconds: float, age_seconds: float) -> None:
        """A frame's outputs are out: what its step took, and how long ago its image came."""
        with self._lock:
            self._steps.append(step_seconds)
            self._age = age_seconds

    def performance(self) -> Performance:
        """Of the last seconds and steps; zeros where there were none. The level of load shedding is not known here."""
        with self._lock:
            return Performance(
                input_rate=self._input_rate(self._clock()),
                step_median_seconds=median(self._steps or [0.0]),
                step_worst_seconds=max(self._steps, default=0.0),
                age_seconds=self._age,
            )

    def silent(self) -> bool:
        """Whether no image has come for WINDOW_S in which they were wanted."""
        with self._lock:
            now = self._clock()
            self._forget(now)
            return not self._arrivals and now - self._listening_since >= WINDOW_S

    def _forget(self, now: float) -> None:
        while self._arrivals and self._arrivals[0] <= now - WINDOW_S:
            self._arrivals.popleft()

    def _input_rate(self, now: float) -> float:
        self._forget(now)
        span = min(WINDOW_S, now - self._since)
        if not self._arrivals or span <= 0:
            return 0.0
        # Until the window is full its first image opens it, and only those after that are counted.
        return (len(self._arrivals) - (span < WINDOW_S)) / span


def diagnostic(
    name: str, status: Status | None, before: ImageCounts, idle: str = "", calibrations: str = ""
) -> DiagnosticStatus:
    """The node's entry in /diagnostics: its level, a sentence, and all it knows as values.

    STALE without images, ERROR while the cache is smaller than configured for want of memory, WARN if images
    were lost since `before` was counted, outputs are missing or thinned, or a camera_info cannot be used.
    idle: why it does not work on images, if so. calibrations: where else there may be one.
    """
    if status is None:
        return DiagnosticStatus(level=DiagnosticStatus.STALE, name=name, message=idle)
    verdicts = [(DiagnosticStatus.STALE, idle)] if idle else _verdicts(status, before, calibrations)
    level = max((level for level, _ in verdicts), default=DiagnosticStatus.OK)
    return DiagnosticStatus(
        level=level,
        name=name,
        message="; ".join(sentence for _, sentence in verdicts) or "every image is used",
        values=[KeyValue(key=key, value=_text(value)) for key, value in status.figures().items()],
    )


def _verdicts(status: Status, before: ImageCounts, calibrations: str) -> list[tuple[bytes, str]]:
    """(level, sentence) of all there is to say, the worst first."""
    found = []
    if status.silent:
        found.append((DiagnosticStatus.STALE, f"no image for {WINDOW_S:.0f} s"))
    if status.shortage:
        found.append((DiagnosticStatus.ERROR, status.shortage))
    if status.missing:
        found.append((DiagnosticStatus.WARN, f"nothing published: {status.missing}"))
    if status.step.segments.join_uncertain:
        found.append((DiagnosticStatus.WARN, "the newest join of segments is uncertain: odometry may be off there"))
    if not status.step.segments.located:
        found.append((DiagnosticStatus.OK, "the map does not say where the camera is: a place seen before must come"))
    if not status.step.dense:
        found.append((DiagnosticStatus.OK, "depth: not computed, nobody subscribes"))
    if shed_level := status.performance.shed_level:
        found.append((DiagnosticStatus.WARN, f"too slow for target_latency_ms: {LEVELS[shed_level].description}"))
    if status.calibration:  # to have none is a way of use, to have one that is of no use is not
        level = DiagnosticStatus.OK if status.calibration == NO_CAMERA_INFO else DiagnosticStatus.WARN
        found.append((level, "; ".join(filter(None, [status.calibration, calibrations]))))
    now, then = asdict(status.images), asdict(before)
    news = {cause: now[cause] - then[cause] for cause in UNUSED}
    found += [
        (level, f"{news[cause]} images {why.format(status.unused.get(cause, ''))}")
        for cause, (level, why) in UNUSED.items()
        if news[cause]
    ]
    return sorted(found, key=lambda verdict: verdict[0], reverse=True)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
