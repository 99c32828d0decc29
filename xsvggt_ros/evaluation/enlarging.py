# SPDX-License-Identifier: Apache-2.0
"""What depth loses on its way from the network's resolution to the image's, by several ways, on synthetic rooms.

The depth that is enlarged is exact at the network's pixels, or that softened by a pixel, as networks soften edges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xsvggt_ros.config import PATCH_SIZE
from xsvggt_ros.frame import Frame
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.rooms.render import render
from xsvggt_ros.rooms.room import make_room
from xsvggt_ros.rooms.scene import furnish
from xsvggt_ros.rooms.sequence import stream
from xsvggt_ros.status import StepStatus
from xsvggt_ros.upsampling import upsampled

SIZE = (640, 480)  # of the images, width and height
SOFT = 1.0  # pixels of the network: standard deviation of the softening
JUMP = 0.1  # from one pixel to the next, of the depth: an edge
NEAR = 7  # pixels of the image: side of the square around an edge that counts as near
IN_THE_AIR = 0.05  # of the depth: further than that from all that is in a square of so many pixels
AROUND = 5
GUIDE_RADIUS, GUIDE_EPSILON = 2, 1e-4  # of the guided filter: pixels of the network, and of grey from 0 to 1

Depth = NDArray[Any]  # float32 [h, w] or [H, W]
Way = Callable[[Frame, NDArray[np.uint8]], Depth]


class Losses(NamedTuple):
    """Of one image."""

    abs_rel: float
    near_edges: float  # AbsRel of the pixels there
    in_the_air: float  # share of them whose depth is of nothing around them
    milliseconds: float  # of one thread


def by_resize(frame: Frame, image: NDArray[np.uint8], how: int) -> Depth:
    """Depth [H, W] by one of OpenCV's interpolations."""
    return cv2.resize(frame.depth, image.shape[1::-1], interpolation=how)


def by_guided_filter(frame: Frame, image: NDArray[np.uint8]) -> Depth:
    """Depth [H, W] as a function of grey that is linear near each pixel: fast guided filter, arXiv 1505.00996."""
    small, large = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255 for x in (frame.image, image))
    side = (2 * GUIDE_RADIUS + 1,) * 2
    mean = partial(cv2.boxFilter, ddepth=-1, ksize=side, borderType=cv2.BORDER_REFLECT)
    grey, depth = mean(small), mean(frame.depth)
    slope = (mean(small * frame.depth) - grey * depth) / (mean(small * small) - grey * grey + GUIDE_EPSILON)
    tilt, base = (cv2.resize(mean(x), large.shape[::-1]) for x in (slope, depth - slope * grey))
    return tilt * large + base


WAYS: dict[str, Way] = {
    "nearest": partial(by_resize, how=cv2.INTER_NEAREST_EXACT),
    "bilinear": partial(by_resize, how=cv2.INTER_LINEAR),
    "guided filter": by_guided_filter,
    "output.resolution input": lambda frame, image: upsampled(frame, image).depth,
}


def losses(seeds: Iterable[int], frames: int, rate: float, motion: str, width: int) -> dict[tuple[str, str], Losses]:
    """{(kind of depth, way): mean over all images, with the median of the times}.

    width: of the network, to whose resolution depth is exact; the other arguments are those of the rooms.
    """
    found: dict[tuple[str, str], list[Losses]] = {}
    for frame, image, truth in (each for seed in seeds for each in room_frames(seed, frames, rate, motion, width)):
        soft = replace(frame, depth=np.asarray(cv2.GaussianBlur(frame.depth, (0, 0), SOFT), np.float32))
        for kind, given in (("exact", frame), ("softened", soft)):
            for name, way in WAYS.items():
                started = time.thread_time()
                depth = way(given, image)
                seconds = time.thread_time() - started
                found.setdefault((kind, name), []).append(loss(depth, truth, 1000 * seconds))
    return {key: _mean(each) for key, each in found.items()}


def room_frames(
    seed: int, frames: int, rate: float, motion: str, width: int
) -> Iterator[tuple[Frame, NDArray[np.uint8], Depth]]:
    """Frames whose depth is exact at the network's pixels, with the image [H, W, 3] and exact depth of its pixels."""
    scene = furnish(make_room(seed))
    for index, shot in enumerate(stream(seed, frames, *SIZE, motion, rate)):
        resize = Resize.of(SIZE[1], SIZE[0], width, PATCH_SIZE)
        K = resize.intrinsics(shot.intrinsics)
        _, (depth,) = render(scene, shot.T_room_cam[None], K, resize.height, resize.width)
        yield (
            Frame(
                index=index,
                T_first_cam=shot.T_room_cam,
                intrinsics=K,
                depth=depth.numpy(),
                confidence=np.ones(depth.shape, np.float32),
                image=resize.image(Image.fromarray(shot.rgb)),
                status=StepStatus(),
                resize=resize,
            ),
            shot.rgb,
            shot.depth,
        )


def loss(depth: Depth, truth: Depth, milliseconds: float) -> Losses:
    """Of a depth [H, W] that took so long."""
    square = np.ones((3, 3), np.uint8)
    edges = cv2.dilate(truth, square) > (1 + JUMP) * cv2.erode(truth, square)
    near = cv2.dilate(edges.view(np.uint8), np.ones((NEAR, NEAR), np.uint8)).view(np.bool_)
    off = np.abs(depth - truth) / truth
    if not near.any():
        return Losses(float(off.mean()), np.nan, np.nan, milliseconds)
    air = np.min([np.abs(depth - there) / there for there in _around(truth)], 0) > IN_THE_AIR
    return Losses(float(off.mean()), float(off[near].mean()), float(air[near].mean()), milliseconds)


def _around(truth: Depth) -> Iterator[Depth]:
    """Each depth in the square around every pixel, [H, W]."""
    height, width = truth.shape
    padded = np.pad(truth, AROUND // 2, mode="edge")
    for row, column in np.ndindex(AROUND, AROUND):
        yield padded[row : row + height, column : column + width]


def _mean(found: list[Losses]) -> Losses:
    *errors, times = np.array(found).T
    known = (column[~np.isnan(column)] for column in errors)
    abs_rel, near_edges, in_the_air = (float(column.mean()) if len(column) else np.nan for column in known)
    return Losses(abs_rel, near_edges, in_the_air, float(np.median(times)))


def table(found: dict[tuple[str, str], Losses]) -> str:
    """In Markdown."""
    lines = ["| depth | way | AbsRel | near edges | in the air | ms |", "|---|---|---|---|---|---|"]
    for (kind, name), of_way in found.items():
        errors = f"{of_way.abs_rel:.5f} | {of_way.near_edges:.4f} | {of_way.in_the_air:.2%}"
        lines.append(f"| {kind} | {name} | {errors} | {of_way.milliseconds:.1f} |")
    return "\n".join(lines)
