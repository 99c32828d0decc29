# SPDX-License-Identifier: Apache-2.0
"""Which of its outputs the node gives up, level by level, to stay within a latency."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from statistics import median

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.messages.topics import COMPRESSED

# What is published less often: the outputs that are large.
DENSE_TOPICS = (
    *("~/depth/image", "~/depth/camera_info", "~/confidence/image", "~/points"),
    *("~/rgb/image", "~/rgb/camera_info", *COMPRESSED),
)
RECENT = 7  # frames whose median latency counts: fewer than half of them being late changes nothing
EASE = 0.7  # of the target: below that there is room for more
PATIENCE = 20  # frames with that much room before a level down; twice as many after each relapse
MOST_PATIENCE = 64 * PATIENCE  # also how long a level must have held for the next one up not to be a relapse


@dataclass(frozen=True)
class Level:
    """What is given up: on each level what is on the one before, and something more."""

    number: int = 0
    description: str = "nothing is given up"
    point_stride: int = 1  # times the stride that is set
    publish_every: int = 1  # n-th frame's depth, confidence and points
    budget: float = 1.0  # fraction of the cache's budget

    def thinned(self, config: NodeConfig) -> NodeConfig:
        """The settings with this level's stride of the points."""
        if self.point_stride == 1:  # a configuration is checked when it is made, which takes its time
            return config
        stride = config.output.point_stride * self.point_stride
        return replace(config, output=replace(config.output, point_stride=stride))


LEVELS = (
    Level(),
    Level(1, "points at half the resolution", point_stride=2),
    Level(2, "points at a quarter of the resolution", point_stride=4),
    Level(3, "few points; images and points of every 2nd frame", point_stride=4, publish_every=2),
    Level(4, "few points; images and points of every 4th frame", point_stride=4, publish_every=4),
    Level(5, "few points, every 4th frame; half the cache budget", point_stride=4, publish_every=4, budget=0.5),
    Level(
        6, "few points, every 4th frame; a quarter of the cache budget", point_stride=4, publish_every=4, budget=0.25
    ),
)


class LoadShedding:
    """Chooses the level from the latencies of the frames so far.

    Up while the median of the latest frames is above the target. Down once it has been below EASE of the target
    for PATIENCE frames; where that proves wrong, the wait for the next try doubles. So a load that lies
    between two levels is tried ever more rarely, and one that is gone is forgotten a few seconds later.
    """

    def __init__(self) -> None:
        self._number = 0
        self._patience = PATIENCE
        self._came_down = False
        self._start_again()

    @property
    def level(self) -> Level:
        """That of the frames to come."""
        return LEVELS[self._number]

    def _start_again(self) -> None:
        """Frames of another level say nothing about this one."""
        self._latencies: deque[float] = deque(maxlen=RECENT)
        self._frames = 0  # on this level
        self._calm = 0  # of them, without interruption, with room for more

    def update(self, latency_s: float, target_ms: float) -> Level:
        """The level for the frames to come, after one that took latency_s, seconds. target_ms 0: never give up."""
        if not target_ms:
            self._number, self._patience, self._came_down = 0, PATIENCE, False
            self._start_again()
            return self.level
        self._frames += 1
        self._latencies.append(latency_s)
        if len(self._latencies) == RECENT:
            self._judge(median(self._latencies) * 1000 / target_ms)
        return self.level

    def _judge(self, load: float) -> None:
        """load: latency relative to the target."""
        self._calm = self._calm + 1 if load < EASE else 0
        if load > 1 and self._number + 1 < len(LEVELS):
            self._up()
        elif self._calm >= self._patience and self._number:
            self._down()

    def _up(self) -> None:
        if self._came_down:
            relapse = self._frames < MOST_PATIENCE
            self._patience = min(2 * self._patience, MOST_PATIENCE) if relapse else PATIENCE
        self._number += 1
        self._came_down = False
        self._start_again()

    def _down(self) -> None:
        if self._came_down:  # and that went well
            self._patience = PATIENCE
        self._number -= 1
        self._came_down = True
        self._start_again()
