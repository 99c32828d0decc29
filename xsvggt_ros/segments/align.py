# SPDX-License-Identifier: Apache-2.0
"""Where the camera is by what two images show: the network's pose, made exact.

A pose of the network is off by a degree or three, which are a few pixels. By its depth each image is drawn as the other
camera would see it, optical flow finds what is still off, and the pose is the one that brings points there: alignment
of images as in visual odometry (Kerl et al., Robust Odometry Estimation for RGB-D Cameras, ICRA 2013), of points. Where
little is found, as on blank walls, the camera moves as the network says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array, cross_matrices, inverse, rigid, transform, unproject
from xsvggt_ros.preprocess import Resize

SIDE = 128  # pixels that an image's longer side has at most: a tenth of one is a twentieth of a degree
STRIDE = 7  # from one point that is looked for to the next
MARGIN = 2  # that has none
WINDOW = 13  # pixels across that are compared, with the point in their middle
MOST_FLOW = 6.0  # pixels from where a point should be to where it is found, and
RETURNS = 1.0  # from where it was to where it is found on the way back
HALVED = 2  # times, of images in which points are looked for further away, where there are fewer than
SCARCE = 100  # points
AGAIN = 0.4  # share of the first view's points in sight, from which on it is looked for
STOP = cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.01  # of the search
TEXTURE = 1e-3  # least eigenvalue of a window, of white 1: grey values that differ by two or three
HIDDEN = 0.25  # logarithm of depths by which a point lies behind, or before, what the other camera sees there
ENOUGH = 0.6  # share of what was found beside a reference at most, below which another one may be better, and
FEW = 60  # points
LEAST = 50  # points that make a pose, and
SURE = 0.3  # that they have to count: those of one place count .4 and more, those of white noise .15 to .26
STEPS = 5  # of Gauss-Newton
PIXEL = 0.5  # standard deviations of where a point is found, and, of the demo model as it is here,
TURN = np.deg2rad(2.0)  # of the network's rotation, and
SHIFT = 0.05  # of its position, as a share of the median depth
ALIKE = 12  # points that are off together
NEAR = 1e-3  # of a segment's unit

Found = tuple[Array, Array]  # pixels [N, 2], x y, of one view, and where another shows the same


@dataclass(frozen=True)
class View:
    """What a camera shows, small."""

    grey: NDArray[np.uint8]  # [h, w]
    depth: NDArray[np.float32]  # [h, w]
    intrinsics: Array  # [3, 3]

    @classmethod
    def of(cls, frame: Frame) -> View:
        height, width = frame.depth.shape
        grey = np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), np.uint8)
        share = SIDE / max(height, width)
        if share >= 1:
            return cls(grey, np.ascontiguousarray(frame.depth), frame.intrinsics)
        size = round(width * share), round(height * share)
        small = Resize(size[0] / width, size[1] / height, *size, height=size[1], top=0)
        return cls(
            np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8),
            np.asarray(cv2.resize(frame.depth, size, interpolation=cv2.INTER_AREA), np.float32),
            small.intrinsics(frame.intrinsics),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        height, width = self.grey.shape
        return width, height

    def points(self, pixels: Array) -> Array:
        """Of pixels [N, 2] -> [N, 3] in the camera's frame."""
        depth = sampled(self.depth, pixels)[:, None]
        return np.hstack([(pixels - self.intrinsics[:2, 2]) / self.intrinsics[[0, 1], [0, 1]] * depth, depth])

    def pixels(self, points: NDArray) -> NDArray:
        """Of points [..., 3] in the camera's frame -> [..., 2]; anywhere for those behind it."""
        K = self.intrinsics.astype(points.dtype)
        return points[..., :2] / np.maximum(points[..., 2:], NEAR) * K[[0, 1], [0, 1]] + K[:2, 2]


@dataclass(frozen=True)
class _Placed:
    """A view, where it is, and where the network says it is: T_first_cam [4, 4]."""

    view: View
    T: Array
    T_said: Array


@dataclass(frozen=True)
class _Sight:
    """What a view shows of a reference, from where it is taken to be."""

    reference: _Placed
    view: View
    T_ref_cam: Array
    there: Found  # points of the reference, and where the view shows them
    here: Found  # points of the view, and where the reference does

    @classmethod
    def of(cls, reference: _Placed, view: View, T_first_cam: Array, halved: int = 0) -> _Sight:
        T = inverse(reference.T) @ T_first_cam
        there, here = found(reference.view, view, inverse(T), halved), found(view, reference.view, T, halved)
        return cls(reference, view, T, there, here)

    @classmethod
    def wide(cls, reference: _Placed, view: View, T_first_cam: Array) -> _Sight:
        """Points that are further away, too: found in images halved, and then from where these have the camera."""
        far = cls.of(reference, view, T_first_cam, HALVED)
        return cls.of(reference, view, far.fitted()[0]) if far.count >= LEAST else far

    @property
    def count(self) -> int:
        """Of points."""
        return len(self.there[0]) + len(self.here[0])

    def fitted(self) -> tuple[Array, float]:
        """T_first_cam by that, and how much the points count, from 0 to 1."""
        T_ref_cam, sure = fitted(self.reference.view, self.view, self.there, self.here, self.T_ref_cam)
        return self.reference.T @ T_ref_cam, sure


class Aligner:
    """Places the frames of a stream, one after the other, beside one that shows much of the same: the reference.

    That is the first frame; where too few of its points are found the newest takes its place, until the first is seen
    again. The network always has that in its cache, so that its own pose leads back there. Where a frame is found
    beside none, the camera has moved since the newest as the network says.
    """

    def __init__(self, first: Frame) -> None:
        """first: in whose axes and unit the others are."""
        self._first = self._reference = self._newest = _Placed(View.of(first), first.T_first_cam, first.T_first_cam)
        self.points = 0  # that placed the newest frame; 0: the network did
        self._most = 0  # points found beside the reference
        self._motion: Array | None = None  # of the camera, to the newest

    def __call__(self, frame: Frame, looks: bool = True) -> Frame:
        """The next frame, where its image shows it to be; unless it `looks`, as the network has moved on."""
        self.points = 0
        newest = self._newest
        T = T_said = newest.T @ inverse(newest.T_said) @ frame.T_first_cam
        if looks and frame.status.dense:
            view = View.of(frame)
            guesses = [T_said] if self._motion is None else [T_said, newest.T @ self._motion]
            T_shown = self._place(self._sights(view, guesses, frame.T_first_cam))
            T = T_said if T_shown is None else T_shown
            self._motion, self._newest = inverse(newest.T) @ T, _Placed(view, T, frame.T_first_cam)
        points = frame.predicted_points
        if points is not None:
            points = transform(T @ inverse(frame.T_first_cam), points)
        return replace(frame, T_first_cam=T, predicted_points=points)

    def goes_on(self, before: Aligner, T_first_now: Array, units: float) -> None:
        """From where the segment before is by now, of whose unit this one's is so many; T_first_now: here."""
        view, motion = before._newest.view, before._motion
        T_said = self._newest.T_said @ inverse(self._newest.T) @ T_first_now
        self._newest = _Placed(replace(view, depth=view.depth / np.float32(units)), T_first_now, T_said)
        self._motion = None if motion is None else rigid(motion[:3, :3], motion[:3, 3] / units)

    def _sights(self, view: View, guesses: list[Array], T_network: Array) -> Iterator[_Sight]:
        """Of the first frame, where it is seen again, and then of the reference or else the newest.

        guesses: of T_first_cam, by the network's motion, and, where that leads astray, as the camera went on.
        T_network: as the network has it, whatever went before.
        """
        if self._reference is not self._first:
            for T in (guesses[0], T_network):
                if _share_seen(self._first.view, view, inverse(T) @ self._first.T) >= AGAIN:
                    sight = _Sight.wide(self._first, view, T)
                    if sight.count >= SCARCE:
                        yield sight
        yield self._beside(view, guesses)

    def _beside(self, view: View, guesses: list[Array]) -> _Sight:
        """The one with most points of the reference and the newest; the reference's, if these are enough."""
        references = [self._reference] + [self._newest] * (self._newest is not self._reference)
        sights: list[_Sight] = []
        for reference, T in product(references, guesses):
            sights.append(_Sight.of(reference, view, T))
            if sights[-1].count >= max(FEW, ENOUGH * self._most):
                break
        if all(sight.count < SCARCE for sight in sights):
            sights += [_Sight.wide(reference, view, guesses[0]) for reference in references]
        return max(sights, key=lambda sight: sight.count)

    def _place(self, sights: Iterator[_Sight]) -> Array | None:
        """T_first_cam by the first of them that says it surely; None: none does."""
        for sight in sights:
            T, sure = sight.fitted()
            if sight.count >= LEAST and sure >= SURE:
                known = self._most if sight.reference is self._reference else 0
                self._reference, self._most, self.points = sight.reference, max(sight.count, known), sight.count
                return rigid(Rotation.from_matrix(T[:3, :3]).as_matrix(), T[:3, 3])  # else errors would multiply
        return None


def found(a: View, b: View, T_b_a: Array, halved: int = 0) -> Found:
    """Points of a, and where b shows them: from where it should, by a's depth and that pose, to where it does.

    halved: how many times the images are, at first; each doubles how far off the pose may be.
    """
    points = transform(T_b_a, unproject(a.depth, a.intrinsics))
    at = b.pixels(points)
    wanted = _grid(*a.size)
    wanted = wanted[_visible(b, points[_rows_columns(wanted)], at[_rows_columns(wanted)])]
    if not len(wanted):
        return np.zeros((0, 2)), np.zeros((0, 2))
    drawn = sampled(b.grey, at)  # as a would see it
    seen = _rows_columns(wanted)
    exposure = a.grey[seen].mean() / max(drawn[seen].mean(), 1.0)
    drawn = np.asarray(cv2.convertScaleAbs(drawn, alpha=exposure), np.uint8)
    moved, ok = _flow(a.grey, drawn, wanted, halved)
    back, ok_too = _flow(drawn, a.grey, moved, halved)
    ok &= ok_too & (np.linalg.norm(moved - wanted, axis=-1) < MOST_FLOW * 2**halved)
    ok &= np.linalg.norm(back - wanted, axis=-1) < RETURNS
    pixels = np.stack([sampled(at[..., i], moved[ok]) for i in (0, 1)], -1)
    return wanted[ok].astype(float), pixels


def fitted(a: View, b: View, there: Found, here: Found, T_said: Array) -> tuple[Array, float]:
    """T_a_b [4, 4] that brings points of each view to where the other shows them; Gauss-Newton, Cauchy's weights.

    there: points of a, and where b shows them; here: of b, and where a does. T_said: what it is about. Returns too how
    much the points count in the end, the mean from 0 to 1.
    """
    T = T_said
    points_a, points_b = a.points(there[0]), b.points(here[0])
    spread = np.repeat([TURN, SHIFT * float(np.median(b.depth))], 3)
    for _ in range(STEPS):  # T changes by a turn and a shift in b's axes
        R, t = T[:3, :3], T[:3, 3]
        off = np.hstack([Rotation.from_matrix(T_said[:3, :3].T @ R).as_rotvec(), R.T @ (t - T_said[:3, 3])])
        gradient, hessian = ALIKE * off / spread**2, np.diag(ALIKE / spread**2)
        seen = (points_a - t) @ R
        by_change = np.concatenate([cross_matrices(seen), np.broadcast_to(-np.eye(3), (len(seen), 3, 3))], -1)
        counts = _count_in(gradient, hessian, b, seen, there[1], by_change)
        by_change = R @ np.concatenate(
            [-cross_matrices(points_b), np.broadcast_to(np.eye(3), (len(points_b), 3, 3))], -1
        )
        counts += _count_in(gradient, hessian, a, points_b @ R.T + t, here[1], by_change)
        change = np.linalg.solve(hessian, -gradient)
        T = T @ rigid(Rotation.from_rotvec(change[:3]).as_matrix(), change[3:])
    return T, counts / max(len(points_a) + len(points_b), 1)


def sampled(table: NDArray, pixels: NDArray) -> NDArray:
    """Table [h, w] at pixels [..., 2], x y, those outside at its edge -> [...], in the table's dtype; bilinear."""
    if not pixels.size:
        return np.zeros(pixels.shape[:-1], table.dtype)
    at = np.moveaxis(np.asarray(pixels, np.float32), -1, 0).reshape(2, -1, pixels.shape[-2])
    values = cv2.remap(table, at[0], at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(values, table.dtype).reshape(pixels.shape[:-1])


def _grid(width: int, height: int) -> NDArray[np.float32]:
    """Pixels [N, 2], x y, all over an image."""
    columns, rows = (np.arange(MARGIN, side - MARGIN, STRIDE, dtype=np.float32) for side in (width, height))
    return np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)


def _rows_columns(pixels: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where whole pixels [N, 2], x y, are in an array."""
    column, row = pixels.astype(np.intp).T
    return row, column


def _visible(view: View, points: NDArray, at: NDArray) -> NDArray[np.bool_]:
    """Whether a view shows points [N, 3] of its camera's frame, at its pixels [N, 2], and nothing else there."""
    inside = (points[:, 2] > NEAR) & (at >= 1).all(-1) & (at <= np.subtract(view.size, 2)).all(-1)
    return inside & (np.abs(np.log(np.maximum(points[:, 2], NEAR) / sampled(view.depth, at))) < HIDDEN)


def _share_seen(a: View, b: View, T_b_a: Array) -> float:
    """Of a's points, those that b shows."""
    points = transform(T_b_a, a.points(_grid(*a.size).astype(float)))
    return float(_visible(b, points, b.pixels(points)).mean())


def _flow(
    a: NDArray, b: NDArray, pixels: NDArray[np.float32], halved: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Where b has what a has at pixels [N, 2], and whether that is known: Lucas and Kanade's."""
    window = WINDOW, WINDOW
    moved, ok, _ = cv2.calcOpticalFlowPyrLK(
        a, b, pixels, np.empty_like(pixels), winSize=window, maxLevel=halved, criteria=STOP, minEigThreshold=TEXTURE
    )
    return np.asarray(moved, np.float32).reshape(-1, 2), np.asarray(ok).ravel() > 0


def _count_in(gradient: Array, hessian: Array, view: View, seen: Array, pixels: Array, by_change: Array) -> float:
    """Adds what a view says: points [N, 3] in its camera, where it shows them, and how they change [N, 3, 6].

    Returns the sum of how much each counts, from 0 to 1.
    """
    x, y, z = seen[:, 0], seen[:, 1], np.maximum(seen[:, 2], NEAR)
    fx, fy = view.intrinsics[0, 0], view.intrinsics[1, 1]
    zero = np.zeros(len(z))
    projection = np.stack([fx / z, zero, -fx * x / z**2, zero, fy / z, -fy * y / z**2], -1).reshape(-1, 2, 3)
    error = (view.pixels(seen) - pixels) / PIXEL
    weight = 1 / np.sqrt(1 + (error**2).sum(-1, keepdims=True))
    jacobian = (projection @ by_change * (weight[..., None] / PIXEL)).reshape(-1, 6)
    gradient += jacobian.T @ (error * weight).ravel()
    hessian += jacobian.T @ jacobian
    return float((weight**2).sum())
