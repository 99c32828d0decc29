# SPDX-License-Identifier: Apache-2.0
"""Batches of synthetic rooms, rendered as they are needed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from xsvggt_ros.config import PATCH_SIZE
from xsvggt_ros.rooms import Scene, furnish, make_room, pinhole, render, trajectory
from xsvggt_ros.rooms.motion import sway
from xsvggt_ros.rooms.scene import PLAIN, VARIED, Style
from xsvggt_ros.rooms.sequence import GAIN_HERTZ, GAIN_SWAY, NOISE
from xsvggt_ros.training.batches import Batch, true_batch

FIRST_SEED = 1_000_000  # of the rooms trained on; those below are for evaluation and demonstration
MOST_SEQUENCES = 1000  # in a batch
INTERVALS = (0.08, 0.6)  # seconds between frames, in the mean of a sequence
SKIPPED = 2  # of so many rendered instants one becomes a frame, as in a stream that drops images
SOFTNESS = 0.5  # at most: some cameras, and all resized images, are less sharp than ray casting
HANDHELD = 0.15  # share of the sequences; the others are a robot's
OTHER_LENSES, FIELDS_OF_VIEW = 0.15, (50.0, 95.0)  # share of the sequences, degrees
OTHER_SHAPES = 0.1  # share of the batches, from half as high to half as high again
VARIED_ROOMS = 0.5  # share of the batches; the others are of plain ones


def training_batch(
    number: int, sequences: int, frames: int, width: int, height: int, device: torch.device, mirrored: bool = False
) -> Batch:
    """Batch `number`, with rooms, motion and cameras of its own, as it is or mirrored and backwards.

    The height is that of most batches, the width that of all. The same arguments give the same batch, so that a
    resumed run goes on as if it had not been interrupted.
    """
    images, depth, T_room_cam, intrinsics = _training_views(number, sequences, frames, width, height, device)
    if mirrored:
        images, depth = images.flip(1, -1), depth.flip(1, -1)
        mirror = np.diag([-1.0, 1, 1, 1])  # of both the room and the camera, so that it stays a rotation
        T_room_cam = (mirror @ T_room_cam @ mirror)[:, ::-1]
    return true_batch(images, depth, T_room_cam, intrinsics)


def held_out_batch(seeds: range, frames: int, interval: float, width: int, height: int, device: torch.device) -> Batch:
    """Plain rooms that were never trained on, a robot's motion, `interval` seconds between frames."""
    T_room_cam = np.stack([trajectory(make_room(seed), frames, rate=1 / interval) for seed in seeds])
    intrinsics = np.tile(pinhole(width, height), (len(seeds), 1, 1))
    images, depth = _views(T_room_cam, intrinsics, seeds, PLAIN, (height, width), device)
    return true_batch(_exposed(images, np.random.default_rng(0)), depth, T_room_cam, intrinsics)


@lru_cache(maxsize=1)
def _training_views(
    number: int, sequences: int, frames: int, width: int, height: int, device: torch.device
) -> tuple[Tensor, Tensor, NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng([number, 4])
    first = FIRST_SEED + number * MOST_SEQUENCES
    seeds = range(first, first + sequences)
    if rng.random() < OTHER_SHAPES:
        rows = height // PATCH_SIZE
        height = PATCH_SIZE * int(rng.integers(max(1, rows // 2), 3 * rows // 2))
    T_room_cam = np.stack([_dropping(rng, seed, frames) for seed in seeds])
    lenses = [pinhole(width, height, *_field_of_view(rng)) for _ in seeds]
    style = VARIED if rng.random() < VARIED_ROOMS else PLAIN
    images, depth = _views(T_room_cam, np.stack(lenses), seeds, style, (height, width), device)
    return _exposed(images, rng), depth, T_room_cam, np.stack(lenses)


def _dropping(rng: np.random.Generator, seed: int, frames: int) -> NDArray[np.float64]:
    """Poses [frames, 4, 4] of a camera, seen at irregular times."""
    interval = np.exp(rng.uniform(*np.log(INTERVALS)))
    motion = "handheld" if rng.random() < HANDHELD else "robot"
    poses = trajectory(make_room(seed), SKIPPED * frames, motion, rate=SKIPPED / interval)
    return poses[np.sort(rng.choice(len(poses), frames, replace=False))]


def _field_of_view(rng: np.random.Generator) -> tuple[float, ...]:
    """In degrees; none: the usual one."""
    return (rng.uniform(*FIELDS_OF_VIEW),) if rng.random() < OTHER_LENSES else ()


def _views(
    T_room_cam: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    seeds: range,
    style: Style,
    shape: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Images [B, S, 3, H, W] and depth [B, S, H, W] in metres of one room and camera per sequence."""
    size = T_room_cam.shape[:2]
    scenes = [scene for seed in seeds for scene in [furnish(make_room(seed), device, style)] * size[1]]
    each = intrinsics.repeat(size[1], 0)
    colour, depth = render(Scene.cat(scenes), T_room_cam.reshape(-1, 4, 4), each, *shape)
    return colour.movedim(-1, 1).unflatten(0, size), depth.unflatten(0, size)


def _exposed(colour: Tensor, rng: np.random.Generator) -> Tensor:
    """Images [B, S, 3, H, W] as cameras of different sharpness, noise and drifting exposure take them."""
    sequences, frames = colour.shape[:2]
    shape = (sequences, 1, 1, 1, 1)
    gain = 1 + np.stack([sway(rng, np.arange(frames) / 10, GAIN_SWAY, GAIN_HERTZ) for _ in range(sequences)])
    noise, softness = (colour.new_tensor(rng.uniform(low, high, shape)) for low, high in (NOISE, (0, SOFTNESS)))
    smooth = F.avg_pool2d(F.pad(colour.flatten(0, 1), (1, 1, 1, 1), "replicate"), 3, 1)
    colour = colour.lerp(smooth.view_as(colour), softness)
    generator = torch.Generator(colour.device).manual_seed(int(rng.integers(2**31)))
    grain = torch.randn(colour.shape, generator=generator, device=colour.device)
    return (colour * colour.new_tensor(gain)[..., None, None, None] + noise * grain).clamp(0, 1)
