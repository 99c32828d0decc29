# SPDX-License-Identifier: Apache-2.0
"""Sim(3): what relates two worlds of one camera, whose units differ."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.transform import Rotation

from xsvggt_ros.geometry import Array, rigid


@dataclass(frozen=True)
class Similarity:
    """Target <- source: x -> scale * rotation @ x + translation. Named S_target_source."""

    scale: float = 1.0
    rotation: Array = field(default_factory=lambda: np.eye(3))
    translation: Array = field(default_factory=lambda: np.zeros(3))

    def __matmul__(self, other: Similarity) -> Similarity:
        """self @ other: first other, then self."""
        moved = self.scale * self.rotation @ other.translation + self.translation
        rotation = Rotation.from_matrix(self.rotation @ other.rotation).as_matrix()  # in chains errors would multiply
        return Similarity(self.scale * other.scale, rotation, moved)

    def inverse(self) -> Similarity:
        back = self.rotation.T
        return Similarity(1 / self.scale, back, -back @ self.translation / self.scale)

    def pose(self, T_source_cam: Array) -> Array:
        """A camera's pose [4, 4] in the target, in the target's unit; the camera's own axes keep their length."""
        return rigid(self.rotation @ T_source_cam[:3, :3], self.point(T_source_cam[:3, 3]))

    def point(self, x: Array) -> Array:
        """A point [3] in the target."""
        return self.scale * self.rotation @ x + self.translation
