# SPDX-License-Identifier: Apache-2.0
"""The room before it is furnished: its size, and the closed path along which cameras move through it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WALL_CLEARANCE = 0.65  # metres between the path and the walls
SHAPES = {  # least and largest half-sides, metres
    "room": ([1.5, 1.5], [5.0, 5.0]),
    "corridor": ([7.0, 1.1], [10.0, 1.5]),
}


@dataclass(frozen=True)
class Room:
    """World axes: origin in the middle of the floor, x and y along the walls, z up; metres."""

    seed: int
    half: np.ndarray  # [2] half the length along x and y
    height: float
    path: np.ndarray  # [n, 2] corners of a smooth closed curve, counter-clockwise or clockwise


def make_room(seed: int, shape: str = "room") -> Room:
    """The same room for the same seed: of one of SHAPES, 2.4-3.2 m high. Raises ValueError for another shape."""
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}: choose one of {', '.join(SHAPES)}")
    rng = np.random.default_rng([seed, 0])
    half = rng.uniform(*SHAPES[shape])
    return Room(seed, half, rng.uniform(2.4, 3.2), _loop(rng, half - WALL_CLEARANCE))


def _loop(rng: np.random.Generator, reach: np.ndarray, corners: int = 2000) -> np.ndarray:
    """An ellipse bent by two harmonics, within `reach` of the origin along each axis."""
    harmonic = np.arange(1, 4)[:, None]
    phase = 2 * np.pi * np.arange(corners) / corners
    amplitude = np.array([1.0, 0.3, 0.12])[:, None, None] * rng.uniform(0.5, 1, (3, 2, 1))
    shift = rng.uniform(0, 2 * np.pi, (3, 2, 1))
    shift[0] = np.array([[0], [-np.pi / 2]])  # cosine and sine: a round trip
    curve = (amplitude * np.cos(harmonic[:, None] * phase + shift)).sum(0)  # [2, corners]
    size = reach * rng.uniform(0.65, 1.0, 2)
    return (curve / np.abs(curve).max(1, keepdims=True)).T * size * [1, rng.choice([-1, 1])]
