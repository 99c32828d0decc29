# SPDX-License-Identifier: Apache-2.0
"""What points of a view say of where it is, and of how deep what it shows: the network's pose and depth, refined."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from xsvggt_ros.geometry import Array, cross_matrices, inverse, rigid
from xsvggt_ros.segments.flow import NEAR, Found, View, found

HALVED = 2  # times, of images in which points are looked for further away
LEAST = 50  # points that make a pose
STEPS = 5  # of Gauss-Newton at most, and
DONE = 1e-4  # of radians and logarithms, below which there is no other
PIXEL = 0.5  # standard deviations of where a point is found, and, of the demo model as it is here,
TURN = np.deg2rad(2.0)  # of the network's rotation, and
SHIFT = 0.05  # of its position, as a share of the median depth
ALIKE = 12  # points that are off together, to a pose; depth is held by what one says
COLUMNS, ROWS = 4, 3  # points of a grid, between which depth is corrected by what is in between
OFF = 0.08  # standard deviation of the logarithm by which the network's depth is off there


@dataclass(frozen=True)
class Placed:
    """A view, where it is, and where the network says it is: T_first_cam [4, 4]."""

    view: View
    T: Array
    T_said: Array


@dataclass(frozen=True)
class Sight:
    """What a view shows of a reference, from where it is taken to be."""

    reference: Placed
    view: View
    T: Array  # T_first_cam [4, 4] of the view
    there: Found  # points of the reference, and where the view shows them
    here: Found  # points of the view, and where the reference does

    @classmethod
    def of(cls, reference: Placed, view: View, T_first_cam: Array, halved: int = 0) -> Sight:
        T = inverse(reference.T) @ T_first_cam
        there, here = found(reference.view, view, inverse(T), halved), found(view, reference.view, T, halved)
        return cls(reference, view, T_first_cam, there, here)

    @classmethod
    def wide(cls, reference: Placed, view: View, T_first_cam: Array) -> Sight:
        """Points that are further away, too: found in images halved, and then from where these have the camera."""
        far = cls.of(reference, view, T_first_cam, HALVED)
        return cls.of(reference, view, fitted([far], far.T, far.T).T) if far.count >= LEAST else far

    @property
    def count(self) -> int:
        """Of points."""
        return len(self.there[0]) + len(self.here[0])

    @cached_property
    def pixels(self) -> Found:
        """Of the reference and of the view: of all points, whichever they are of."""
        return np.vstack([self.there[0], self.here[1]]), np.vstack([self.there[1], self.here[0]])

    @cached_property
    def points(self) -> Found:
        """As the reference's depth has them, in its camera's frame, and as the view's has them, in that one's."""
        return self.reference.view.points(self.pixels[0]), self.view.points(self.pixels[1])

    @cached_property
    def shares(self) -> Array:
        """See `shares`, of the view's points."""
        return shares(self.pixels[1], self.view.size)

    def count_in(self, gradient: Array, hessian: Array, T_first_cam: Array, logs: Array) -> float:
        """Adds what there is to say of a pose, and of logarithms [N] that correct the view's depth, or none.

        Returns the sum of how much each point counts, from 0 to 1; each is one of the reference and one of the view.
        """
        T = inverse(self.reference.T) @ T_first_cam
        R, t = T[:3, :3], T[:3, 3]
        (theirs, own), by_shares = self.points, self.shares[:, : len(logs)]
        by_change = np.zeros((2, len(own), 3, len(gradient)))  # by a turn and a shift in the view's axes, and by logs
        seen = (theirs - t) @ R
        by_change[0, :, :, :3], by_change[0, :, :, 3:6] = cross_matrices(seen), -np.eye(3)
        own = own * np.exp(by_shares @ logs)[:, None]
        by_change[1, :, :, :3], by_change[1, :, :, 3:6] = R @ -cross_matrices(own), R
        by_change[1, :, :, 6:] = (own @ R.T)[:, :, None] * by_shares[:, None]
        counts = _count_in(gradient, hessian, self.view, seen, self.pixels[1], by_change[0])
        return counts + _count_in(gradient, hessian, self.reference.view, own @ R.T + t, self.pixels[0], by_change[1])


@dataclass(frozen=True)
class Fit:
    """What points of a view say of it."""

    T: Array  # T_first_cam [4, 4]
    logs: Array  # that correct its depth, [ROWS * COLUMNS] or none
    sure: float  # how much the points count, the mean from 0 to 1


def fitted(sights: list[Sight], T: Array, T_said: Array, cells: int = 0) -> Fit:
    """What brings points of a view to where others show them; Gauss-Newton, Cauchy's weights.

    T: of T_first_cam, where to begin; T_said: what it is about. cells: how many logarithms correct the view's depth.
    """
    logs = np.zeros(cells)
    spread = np.repeat([TURN, SHIFT * float(np.median(sights[0].view.depth))], 3)
    weights = np.hstack([ALIKE / spread**2, np.full(cells, 1 / OFF**2)])
    counts = 0.0
    for _ in range(STEPS):
        R, t = T[:3, :3], T[:3, 3]
        off = np.hstack([Rotation.from_matrix(T_said[:3, :3].T @ R).as_rotvec(), R.T @ (t - T_said[:3, 3]), logs])
        gradient, hessian = weights * off, np.diag(weights)
        counts = sum(sight.count_in(gradient, hessian, T, logs) for sight in sights)
        change = np.linalg.solve(hessian, -gradient)
        T = T @ rigid(Rotation.from_rotvec(change[:3]).as_matrix(), change[3:6])
        logs = logs + change[6:]
        if np.abs(change[:3]).max() < DONE and np.abs(change[6:]).max(initial=0.0) < DONE:
            break
    return Fit(T, logs, counts / max(2 * sum(sight.count for sight in sights), 1))


def shares(pixels: Array, size: tuple[int, int]) -> Array:
    """How much each point of the grid tells of pixels [N, 2], x y, of an image of that size -> [N, ROWS * COLUMNS]."""
    at = np.clip(pixels / np.maximum(np.subtract(size, 1), 1), 0, 1) * (COLUMNS - 1, ROWS - 1)
    x, y = (_tents(at[:, i], count) for i, count in enumerate((COLUMNS, ROWS)))
    return (y[:, :, None] * x[:, None]).reshape(len(pixels), ROWS * COLUMNS)


def factors(logs: Array, height: int, width: int) -> NDArray[np.float32]:
    """By which logarithms [ROWS * COLUMNS] correct depth [h, w]."""
    y, x = (_tents(np.linspace(0, n - 1, side), n) for n, side in ((ROWS, height), (COLUMNS, width)))
    return np.exp(y @ logs.reshape(ROWS, COLUMNS) @ x.T).astype(np.float32)


def _tents(at: Array, count: int) -> Array:
    """How much each of so many points in a row tells of what is there [N] -> [N, count]; in between both do."""
    return np.maximum(1 - np.abs(at[:, None] - np.arange(count)), 0)


def _count_in(gradient: Array, hessian: Array, view: View, seen: Array, pixels: Array, by_change: Array) -> float:
    """Adds what a view says: points [N, 3] in its camera, where it shows them, and how they change [N, 3, M].

    Returns the sum of how much each counts, from 0 to 1.
    """
    x, y, z = seen[:, 0], seen[:, 1], np.maximum(seen[:, 2], NEAR)
    fx, fy = view.intrinsics[0, 0], view.intrinsics[1, 1]
    zero = np.zeros(len(z))
    projection = np.stack([fx / z, zero, -fx * x / z**2, zero, fy / z, -fy * y / z**2], -1).reshape(-1, 2, 3)
    error = (view.pixels(seen) - pixels) / PIXEL
    weight = 1 / np.sqrt(1 + (error**2).sum(-1, keepdims=True))
    jacobian = (projection @ by_change * (weight[..., None] / PIXEL)).reshape(-1, len(gradient))
    gradient += jacobian.T @ (error * weight).ravel()
    hessian += jacobian.T @ jacobian
    return float((weight**2).sum())
