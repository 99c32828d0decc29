# SPDX-License-Identifier: Apache-2.0
"""Batches of synthetic rooms, drawn at random and rendered as they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

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


class Request(NamedTuple):
    """Batch `number`: how many sequences and frames; the height is that of most batches, the width that of all."""

    number: int
    sequences: int
    frames: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Exposure:
    """How sharp and noisy the images of each sequence are, and how bright each frame."""

    gain: NDArray[np.float64]  # [B, S]
    noise: NDArray[np.float64]  # [B], in shares of white
    softness: NDArray[np.float64]  # [B]
    seed: int


@dataclass(frozen=True, eq=False)
class Drawing:
    """What there is to see, on the CPU: one room and camera per sequence."""

    scenes: Scene  # of each sequence
    T_room_cam: NDArray[np.float64]  # [B, S, 4, 4]
    intrinsics: NDArray[np.float64]  # [B, 3, 3]
    shape: tuple[int, int]  # height, width
    exposure: Exposure


@lru_cache(maxsize=1)
def draw(request: Request) -> Drawing:
    """The same request gives the same rooms, so that a resumed run goes on as if it had not been interrupted."""
    number, sequences, frames, width, height = request
    rng = np.random.default_rng([number, 4])
    first = FIRST_SEED + number * MOST_SEQUENCES
    seeds = range(first, first + sequences)
    if rng.random() < OTHER_SHAPES:
        rows = height // PATCH_SIZE
        height = PATCH_SIZE * int(rng.integers(max(1, rows // 2), 3 * rows // 2))
    T_room_cam = np.stack([_dropping(rng, seed, frames) for seed in seeds])
    lenses = np.stack([pinhole(width, height, *_field_of_view(rng)) for _ in seeds])
    style = VARIED if rng.random() < VARIED_ROOMS else PLAIN
    return Drawing(_scenes(seeds, style), T_room_cam, lenses, (height, width), _exposure(rng, sequences, frames))


def shoot(drawing: Drawing, device: torch.device, mirrored: bool = False) -> Batch:
    """What the cameras see, as it is or mirrored and backwards."""
    images, depth = _views(drawing, device)
    T_room_cam = drawing.T_room_cam
    if mirrored:
        images, depth = images.flip(1, -1), depth.flip(1, -1)
        mirror = np.diag([-1.0, 1, 1, 1])  # of both the room and the camera, so that it stays a rotation
        T_room_cam = (mirror @ T_room_cam @ mirror)[:, ::-1]
    return true_batch(images, depth, T_room_cam, drawing.intrinsics)


def held_out_batch(seeds: range, frames: int, interval: float, width: int, height: int, device: torch.device) -> Batch:
    """Plain rooms that were never trained on, a robot's motion, `interval` seconds between frames."""
    T_room_cam = np.stack([trajectory(make_room(seed), frames, rate=1 / interval) for seed in seeds])
    intrinsics = np.tile(pinhole(width, height), (len(seeds), 1, 1))
    exposure = _exposure(np.random.default_rng(0), len(seeds), frames)
    return shoot(Drawing(_scenes(seeds, PLAIN), T_room_cam, intrinsics, (height, width), exposure), device)


def _dropping(rng: np.random.Generator, seed: int, frames: int) -> NDArray[np.float64]:
    """Poses [frames, 4, 4] of a camera, seen at irregular times."""
    interval = np.exp(rng.uniform(*np.log(INTERVALS)))
    motion = "handheld" if rng.random() < HANDHELD else "robot"
    poses = trajectory(make_room(seed), SKIPPED * frames, motion, rate=SKIPPED / interval)
    return poses[np.sort(rng.choice(len(poses), frames, replace=False))]


def _field_of_view(rng: np.random.Generator) -> tuple[float, ...]:
    """In degrees; none: the usual one."""
    return (rng.uniform(*FIELDS_OF_VIEW),) if rng.random() < OTHER_LENSES else ()


def _scenes(seeds: range, style: Style) -> Scene:
    return Scene.cat([furnish(make_room(seed), style=style) for seed in seeds])


def _exposure(rng: np.random.Generator, sequences: int, frames: int) -> Exposure:
    gain = 1 + np.stack([sway(rng, np.arange(frames) / 10, GAIN_SWAY, GAIN_HERTZ) for _ in range(sequences)])
    noise, softness = (rng.uniform(low, high, sequences) for low, high in (NOISE, (0, SOFTNESS)))
    return Exposure(gain, noise, softness, int(rng.integers(2**31)))


@lru_cache(maxsize=1)
def _views(drawing: Drawing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images [B, S, 3, H, W] and depth [B, S, H, W] in metres."""
    size = drawing.T_room_cam.shape[:2]
    each = drawing.intrinsics.repeat(size[1], 0)
    scenes = drawing.scenes.of_frames(size[1], device)
    colour, depth = render(scenes, drawing.T_room_cam.reshape(-1, 4, 4), each, *drawing.shape)
    return _exposed(colour.movedim(-1, 1).unflatten(0, size), drawing.exposure), depth.unflatten(0, size)


def _exposed(colour: Tensor, exposure: Exposure) -> Tensor:
    """Images [B, S, 3, H, W] as cameras of different sharpness, noise and drifting exposure take them."""
    gain = colour.new_tensor(exposure.gain)[..., None, None, None]
    noise, softness = (colour.new_tensor(x)[:, None, None, None, None] for x in (exposure.noise, exposure.softness))
    smooth = F.avg_pool2d(F.pad(colour.flatten(0, 1), (1, 1, 1, 1), "replicate"), 3, 1)
    colour = colour.lerp(smooth.view_as(colour), softness)
    generator = torch.Generator(colour.device).manual_seed(exposure.seed)
    grain = torch.randn(colour.shape, generator=generator, device=colour.device)
    return (colour * gain + noise * grain).clamp(0, 1)
