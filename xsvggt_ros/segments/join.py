# SPDX-License-Identifier: Apache-2.0
"""How two segments join: a similarity from the frames that both have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array
from xsvggt_ros.similarity import Similarity

MOST_TURN = np.deg2rad(6.0)  # by which shared frames may disagree in a join that is trusted,
MOST_SCALE = 0.15  # of the logarithm of depths, and
MOST_SHIFT = 0.15  # of the median depth

Shared = list[tuple[Frame, Frame]]  # an image as the old segment has it, and the new one


@dataclass(frozen=True)
class Join:
    """S_old_new, and how far the shared frames are from it at most."""

    relation: Similarity
    rotation_spread: float  # radians
    scale_spread: float  # of the logarithm
    position_spread: float  # as a share of the median depth

    @property
    def trusted(self) -> bool:
        """Whether the shared frames agree."""
        return (
            self.rotation_spread <= MOST_TURN and self.scale_spread <= MOST_SCALE and self.position_spread <= MOST_SHIFT
        )


def join(shared: Shared) -> Join:
    """Of at least one shared frame.

    The scale is the median over frames of each one's median ratio of depths, the rotation the chordal mean of each
    one's, and the translation the mean of what is left between the camera centres, all weighted by the mean of the
    new frames' confidence over 1.
    """
    weights = np.array([max(float(new.confidence.mean()) - 1, 1e-6) for _, new in shared])
    logs = np.array([np.median(np.log(old.depth / new.depth)) for old, new in shared])
    scale = float(np.exp(np.median(logs)))
    turns = Rotation.from_matrix([_turn(old.T_first_cam, new.T_first_cam) for old, new in shared])
    mean = turns.mean(weights)
    rotation = mean.as_matrix()
    shifts = np.array([old.T_first_cam[:3, 3] - scale * rotation @ new.T_first_cam[:3, 3] for old, new in shared])
    translation = np.average(shifts, axis=0, weights=weights)
    depth = float(np.median([np.median(old.depth) for old, _ in shared]))
    return Join(
        Similarity(scale, rotation, translation),
        rotation_spread=float((turns * mean.inv()).magnitude().max()),
        scale_spread=float(np.abs(logs - np.median(logs)).max()),
        position_spread=float(np.linalg.norm(shifts - translation, axis=-1).max() / depth),
    )


def _turn(T_old_cam: Array, T_new_cam: Array) -> Array:
    return T_old_cam[:3, :3] @ T_new_cam[:3, :3].T
