# SPDX-License-Identifier: Apache-2.0
"""The scale as median of measured ratios, and what every source of it says."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Protocol

import numpy as np

from xsvggt_ros.config import ScaleConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array
from xsvggt_ros.status import ScaleStatus

MIN_MEASUREMENTS = 3
KEPT = 8  # measurements over a join where every frame measures: those of the new unit then soon outnumber them
NORMAL = NormalDist().inv_cdf(0.75)  # median absolute deviation of spread 1; scipy.stats, which has it, loads slowly
LEAST = 1e-6  # ratio; neither it nor its inverse is a measurement


class ScaleSource(Protocol):
    """Says after every frame of a world, in order, how many metres its unit is."""

    def update(self, frame: Frame, stamp_ns: int, T_base_cam: Array | None, config: ScaleConfig) -> ScaleStatus:
        """Takes a frame in the model's unit. T_base_cam [4, 4], metres: the mounting, None where that is unknown."""
        ...

    def reset(self) -> None:
        """Forgets what was measured: a new world has another unit."""
        ...

    def rescale(self, factor: float) -> None:
        """From now on the unit is `factor` times as many metres."""
        ...


class Fixed:
    """The factor that is set (source fixed), or 1 because the unit stays the model's (source none)."""

    def update(self, frame: Frame, stamp_ns: int, T_base_cam: Array | None, config: ScaleConfig) -> ScaleStatus:
        """Looks at the settings only."""
        return ScaleStatus() if config.source == "none" else ScaleStatus(config.source, config.factor, scale_spread=0.0)

    def reset(self) -> None:
        """Does nothing: nothing was measured."""

    def rescale(self, factor: float) -> None:
        """Does nothing: the factor is set."""


class RunningRatio:
    """Median of the newest measurements of a ratio, taken over their logarithms."""

    def __init__(self) -> None:
        self._logs: list[float] = []
        self._count = 0

    def add(self, ratio: float) -> None:
        """Adds a measurement; one out of all proportion (0, infinite, NaN) is none."""
        if LEAST < ratio < 1 / LEAST:
            self._logs.append(math.log(ratio))
            self._count += 1

    def rescale(self, factor: float, keep: int = 0) -> None:
        """What was measured holds for the new unit too; keep: so many of the newest are enough, 0: all count."""
        self._logs = [log + math.log(factor) for log in self._logs[-keep:]]

    def status(self, config: ScaleConfig, times: float = 1.0) -> ScaleStatus:
        """The median of the last `window` measurements, `times` a known length; NaN before MIN_MEASUREMENTS."""
        del self._logs[: -config.window]  # here, because the window changes live
        if self._count < MIN_MEASUREMENTS:
            return ScaleStatus(config.source, math.nan, math.nan, self._count)
        median = float(np.median(self._logs))
        spread = float(np.median(np.abs(np.subtract(self._logs, median)))) / NORMAL
        return ScaleStatus(config.source, times * math.exp(median), spread, self._count)
