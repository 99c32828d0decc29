# SPDX-License-Identifier: Apache-2.0
"""Where the camera is, and how far what it sees, by what images show: the network's pose and depth, refined.

A pose of the network is off by a degree or three, which are a few pixels. By its depth each image is drawn as the other
camera would see it, optical flow finds what is still off, and the pose is the one that brings points there: alignment
of images as in visual odometry (Kerl et al., Robust Odometry Estimation for RGB-D Cameras, ICRA 2013), of points. Then
points of several earlier images tell both its pose and, as they move past each other, where its depth is off: a smooth
correction as in bundle adjustment. Where little is found, as on blank walls, all is as the network says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
from scipy.spatial.transform import Rotation

from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array, inverse, rigid, transform
from xsvggt_ros.segments.fit import COLUMNS, LEAST, ROWS, Placed, Sight, factors, fitted
from xsvggt_ros.segments.flow import View, share_seen

SCARCE = 100  # points, below which they are looked for further away, too
ENOUGH = 0.6  # share of what was found beside a reference at most, below which another one may be better, and
FEW = 60  # points
SURE = 0.3  # that they have to count: those of one place count .4 and more, those of white noise .15 to .26
AGAIN = 0.4  # share of the first view's points in sight, from which on it is looked for
BACK = 1, 3, 6  # images before, beside which, and the first, depth is corrected too


class Refiner:
    """Places the frames of a stream, one after the other, beside one that shows much of the same: the reference.

    That is the first frame; where too few of its points are found the newest takes its place, until the first is seen
    again: the cache keeps that, so that the network's own pose leads back there. Where a frame is found beside none the
    camera has moved since the newest as the network says.
    """

    def __init__(self, first: Frame) -> None:
        """first: in whose axes and unit the others are."""
        self._reference = self._first = Placed(View.of(first), first.T_first_cam, first.T_first_cam)
        self._past = deque([self._first], max(BACK))
        self.points = 0  # that placed the newest frame; 0: the network did
        self._most = 0  # points found beside the reference
        self._motion: Array | None = None  # of the camera, to the newest

    def __call__(self, frame: Frame, looks: bool = True) -> Frame:
        """The next frame, where its image shows it to be; unless it `looks`, as the network has moved on."""
        self.points = 0
        newest = self._past[-1]
        T = newest.T @ inverse(newest.T_said) @ frame.T_first_cam
        if not (looks and frame.status.dense):
            self._motion = None
            return _refined(frame, T)
        view = View.of(frame)
        guesses = [T] if self._motion is None else [T, newest.T @ self._motion]
        T, logs = self._fit(view, guesses, frame.T_first_cam)
        self._motion = inverse(newest.T) @ T
        if logs is not None:
            view = view.deeper(factors(logs, *view.depth.shape))
        self._past.append(Placed(view, T, frame.T_first_cam))
        return _refined(frame, T, logs)

    def goes_on(self, before: Refiner, T_first_now: Array, units: float) -> None:
        """From where the segment before is by now, of whose unit this one's is so many; T_first_now: here."""
        view, motion, newest = before._past[-1].view, before._motion, self._past[-1]
        T_said = newest.T_said @ inverse(newest.T) @ T_first_now
        self._past.append(Placed(view.deeper(np.float32(1 / units)), T_first_now, T_said))
        self._motion = None if motion is None else rigid(motion[:3, :3], motion[:3, 3] / units)

    def _fit(self, view: View, guesses: list[Array], T_network: Array) -> tuple[Array, Array | None]:
        """T_first_cam, and logarithms that correct depth, by some earlier images that show enough of the same.

        guesses: of T_first_cam, by the network's motion, and, where that leads astray, as the camera went on.
        T_network: as the network has it, whatever went before.
        """
        T = self._placed(self._sights(view, guesses, T_network))
        if T is None:
            return guesses[0], None
        past = [self._past[-back] for back in BACK if back <= len(self._past)]
        references = [self._first, *(each for each in past if each is not self._first)]
        sights = [sight for each in references if (sight := Sight.of(each, view, T)).count >= LEAST]
        fit = fitted(sights, T, guesses[0], ROWS * COLUMNS) if sights else None
        if fit is None or fit.sure < SURE:
            return T, None
        self.points = sum(sight.count for sight in sights)
        return _orthogonal(fit.T), fit.logs

    def _sights(self, view: View, guesses: list[Array], T_network: Array) -> Iterator[Sight]:
        """Of the first frame, where it is seen again, and then of the reference or else the newest."""
        if self._reference is not self._first:
            for T in (guesses[0], T_network):
                if share_seen(self._first.view, view, inverse(T) @ self._first.T) >= AGAIN:
                    sight = Sight.wide(self._first, view, T)
                    if sight.count >= SCARCE:
                        yield sight
        yield self._beside(view, guesses)

    def _beside(self, view: View, guesses: list[Array]) -> Sight:
        """The one with most points of the reference and the newest; the reference's, if these are enough."""
        newest = self._past[-1]
        references = [self._reference] + [newest] * (newest is not self._reference)
        sights: list[Sight] = []
        for reference, T in product(references, guesses):
            sights.append(Sight.of(reference, view, T))
            if sights[-1].count >= max(FEW, ENOUGH * self._most):
                break
        if all(sight.count < SCARCE for sight in sights):
            sights += [Sight.wide(reference, view, guesses[0]) for reference in references]
        return max(sights, key=lambda sight: sight.count)

    def _placed(self, sights: Iterator[Sight]) -> Array | None:
        """T_first_cam by the first of them that says it surely; None: none does."""
        for sight in sights:
            if sight.count < LEAST:
                continue
            fit = fitted([sight], sight.T, sight.T)
            if fit.sure >= SURE:
                known = self._most if sight.reference is self._reference else 0
                self._reference, self._most, self.points = sight.reference, max(sight.count, known), sight.count
                return _orthogonal(fit.T)
        return None


def _refined(frame: Frame, T_first_cam: Array, logs: Array | None = None) -> Frame:
    """The frame there, and with corrected depth; so are points of the point head."""
    depth, points = frame.depth, frame.predicted_points
    factor = None if logs is None else factors(logs, *depth.shape)
    if points is not None:
        seen = transform(inverse(frame.T_first_cam), points)
        points = transform(T_first_cam, seen if factor is None else factor[..., None] * seen)
    depth = depth if factor is None else depth * factor
    return replace(frame, T_first_cam=T_first_cam, depth=depth, predicted_points=points)


def _orthogonal(T: Array) -> Array:
    """Its rotation is one: else rounding errors would multiply."""
    return rigid(Rotation.from_matrix(T[:3, :3]).as_matrix(), T[:3, 3])
