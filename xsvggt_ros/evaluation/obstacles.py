# SPDX-License-Identifier: Apache-2.0
"""How right a costmap's obstacles are, in rooms whose surfaces are known, with and without what filters them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
from scipy.spatial import cKDTree

from xsvggt_ros.config import ObstacleConfig, ScaleConfig
from xsvggt_ros.evaluation.datasets import EvaluationFrame, EvaluationSequence, readable
from xsvggt_ros.evaluation.table import Estimate
from xsvggt_ros.evaluation.trace import Incomparable, follow
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array, inverse, rigid, transform, unproject
from xsvggt_ros.obstacles import obstacle_points
from xsvggt_ros.placement.scale import ReferenceDepth, make_scale
from xsvggt_ros.placement.scale.depth import DepthSamples
from xsvggt_ros.stream import GeometryStream

NEAR = (0.1, 0.2)  # metres between points of the same thing
BOTH, ALL = "confidence and edges", "all points"
FILTERS: dict[str, dict[str, float]] = {  # what is changed of the settings
    BOTH: {},
    "confidence": {"edge_angle": 0.0},
    "edges": {"doubt": 0.0},
    ALL: {"doubt": 0.0, "edge_angle": 0.0},
}
SOURCES = ("depth", "camera_height")  # of the metres
COLUMNS = {  # heading -> format
    **{f"right within {near:g} m": ".3f" for near in NEAR},
    **{f"covered within {near:g} m": ".3f" for near in NEAR},
    "points a cloud": ".0f",
}
Way = tuple[str, str]  # of SOURCES, of FILTERS
WAYS = tuple(product(SOURCES, FILTERS))


class Obstacles:
    """Collects a sequence's clouds beside the true ones, in its world: an Observer.

    World: z up, metres, the floor at 0. The robot's base is taken to be on the floor below the camera, and its TF to
    know the mounting: height and tilt are the true ones.
    """

    def __init__(self, config: ObstacleConfig) -> None:
        self._config = config
        self._scales = {source: make_scale(ScaleConfig(source)) for source in SOURCES}
        self._surfaces: list[Array] = []  # of each frame [n, 3], all that it truly shows at their heights
        self._clouds: dict[Way, list[tuple[Array, Array]]] = {way: [] for way in WAYS}  # true [n, 3], found [m, 3]

    def add(self, frame: Frame, truth: EvaluationFrame) -> None:
        if truth.depth is None or truth.intrinsics is None or truth.T_world_cam is None:
            raise Incomparable("obstacles are compared with the truth: depth, poses and the camera must be known")
        T_world_base = base_below(truth.T_world_cam)
        T_base_cam = inverse(T_world_base) @ truth.T_world_cam
        points = unproject(truth.depth, truth.intrinsics)[truth.depth > 0].astype(np.float64)
        points = transform(truth.T_world_cam, points)
        band = (points[:, 2] >= self._config.min_height) & (points[:, 2] <= self._config.max_height)
        self._surfaces.append(points[band])
        sure = np.ones_like(truth.depth)
        seen = replace(frame, depth=truth.depth, confidence=sure, intrinsics=truth.intrinsics)
        true = self._cloud(seen, T_base_cam, T_world_base, ALL)
        for source in SOURCES:
            scale = self._scale(source, frame, truth, T_base_cam)
            if math.isnan(scale):
                continue
            metric = replace(frame, depth=frame.depth * np.float32(scale))
            for name in FILTERS:
                self._clouds[source, name].append((true, self._cloud(metric, T_base_cam, T_world_base, name)))

    def _scale(self, source: str, frame: Frame, truth: EvaluationFrame, T_base_cam: Array) -> float:
        """Metres per unit as a node would know them by now; NaN: not yet."""
        scale = self._scales[source]
        if isinstance(scale, ReferenceDepth) and truth.depth is not None:
            scale.add_depth(truth.stamp_ns, DepthSamples.of(truth.depth))
        config = ScaleConfig(source, camera_height=float(T_base_cam[2, 3]))
        return scale.update(frame, truth.stamp_ns, T_base_cam, config).scale

    def _cloud(self, frame: Frame, T_base_cam: Array, T_world_base: Array, name: str) -> Array:
        config = replace(self._config, **FILTERS[name])
        return transform(T_world_base, obstacle_points(frame, T_base_cam, config).astype(np.float64))

    def shares(self) -> dict[Way, Array]:
        """COLUMNS of each way, over the frames that had metres: of its points those near a true surface, seen in any
        frame, that is no floor; of what is truly an obstacle in the frame, those near one of its points."""
        surfaces = cKDTree(np.concatenate(self._surfaces))
        return {way: _shares(surfaces, clouds) for way, clouds in self._clouds.items()}


def _shares(surfaces: cKDTree, clouds: list[tuple[Array, Array]]) -> Array:
    if not clouds:
        return np.full(len(COLUMNS), np.nan)
    wrong = np.concatenate([surfaces.query(found)[0] for _, found in clouds])  # metres
    missed = np.concatenate([cKDTree(found).query(true)[0] for true, found in clouds])
    shares = [np.mean(far <= near) if len(far) else np.nan for far in (wrong, missed) for near in NEAR]
    return np.array([*shares, len(wrong) / len(clouds)])


def base_below(T_world_cam: Array) -> Array:
    """T_world_base [4, 4] of a base on the floor below the camera: x goes where the camera looks, z up."""
    x, y = T_world_cam[:2, 2] / np.linalg.norm(T_world_cam[:2, 2])
    return rigid(np.array([[x, -y, 0.0], [y, x, 0.0], [0.0, 0.0, 1.0]]), T_world_cam[:3, 3] * [1, 1, 0])


def obstacle_shares(stream: GeometryStream, sequence: EvaluationSequence) -> dict[Way, Array]:
    """As Obstacles.shares, of a sequence that the stream follows from a new start; the settings are the usual ones."""
    obstacles = Obstacles(ObstacleConfig())
    follow(stream, sequence.name, readable(sequence), obstacles)
    return obstacles.shares()


def table(rooms: list[dict[Way, Array]]) -> str:
    """Means over rooms with their standard errors, a line for each way, and what all filters change, room by room."""
    lines = [f"| metres by | points | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for source in SOURCES:
        of = {name: np.array([room[source, name] for room in rooms]) for name in FILTERS}
        lines += [_line(source, name, values, "") for name, values in of.items()]
        lines.append(_line(source, "what both change", of[BOTH] - of[ALL], "+"))
    return "\n".join(lines) + "\n"


def _line(source: str, name: str, values: Array, sign: str) -> str:
    known = [column[~np.isnan(column)] for column in values.T]
    cells = (
        Estimate.of(column).text(sign + form) if len(column) else "-"
        for column, form in zip(known, COLUMNS.values(), strict=True)
    )
    return f"| {source} | {name} | {' | '.join(cells)} |"
