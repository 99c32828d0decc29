# SPDX-License-Identifier: Apache-2.0
"""Image sequences of synthetic rooms with what a network should say about them, rendered as they are needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xsvggt_ros.geometry import encode_pose, inverse
from xsvggt_ros.rooms import Scene, furnish, make_room, pinhole, render, trajectory
from xsvggt_ros.rooms.motion import sway
from xsvggt_ros.rooms.sequence import GAIN_HERTZ, GAIN_SWAY, NOISE

FIRST_SEED = 1_000_000  # of the rooms trained on; those below are for evaluation and demonstration
MOST_SEQUENCES = 100  # in a batch
INTERVALS = (0.1, 0.6)  # seconds between frames, in the mean of a sequence
SKIPPED = 2  # of so many rendered instants one becomes a frame, as in a stream that drops images
SOFTNESS = 0.5  # at most: some cameras, and all resized images, are less sharp than ray casting


@dataclass(frozen=True)
class Batch:
    """B sequences of S frames. The world is the first camera; 1 is the mean distance of what that camera sees."""

    images: Tensor  # [B, S, 3, H, W] in [0, 1]
    depth: Tensor  # [B, S, H, W]
    T_first_cam: Tensor  # [B, S, 4, 4], float32
    pose: Tensor  # [B, S, 9], see geometry.decode_pose
    step: Tensor  # [B, S, 9], the same with the frame before as the world
    intrinsics: Tensor  # [3, 3], pixel centres at integers

    def points(self, pixels: Tensor, depth: Tensor) -> Tensor:
        """World points [B, S, n, 3] of pixels [n, 2] (x, y) at depth [B, S, n]."""
        homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
        rays = homogeneous @ self.intrinsics.inverse().T  # [n, 3]
        points = depth[..., None] * rays
        return points @ self.T_first_cam[..., :3, :3].mT + self.T_first_cam[..., None, :3, 3]

    def point_maps(self) -> Tensor:
        """The world point of every pixel, [B, S, H, W, 3]."""
        height, width = self.depth.shape[-2:]
        device = self.depth.device
        v, u = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        pixels = torch.stack([u, v], -1).flatten(0, 1).to(self.depth)
        return self.points(pixels, self.depth.flatten(2)).unflatten(2, (height, width))


def training_batch(
    number: int, sequences: int, frames: int, width: int, height: int, device: torch.device, mirrored: bool = False
) -> Batch:
    """Batch `number`, with rooms of its own, as it is or mirrored and backwards.

    The same arguments give the same batch, so that a resumed run goes on as if it had not been interrupted.
    """
    images, depth, T_room_cam = _training_views(number, sequences, frames, width, height, device)
    if mirrored:
        images, depth = images.flip(1, -1), depth.flip(1, -1)
        mirror = np.diag([-1.0, 1, 1, 1])  # of both the room and the camera, so that it stays a rotation
        T_room_cam = (mirror @ T_room_cam @ mirror)[:, ::-1]
    return _in_first_camera(images, depth, T_room_cam)


def held_out_batch(seeds: range, frames: int, interval: float, width: int, height: int, device: torch.device) -> Batch:
    """Rooms that were never trained on, `interval` seconds between frames."""
    T_room_cam = np.stack([trajectory(make_room(seed), frames, rate=1 / interval) for seed in seeds])
    images, depth = _views(T_room_cam, seeds, np.random.default_rng(0), width, height, device)
    return _in_first_camera(images, depth, T_room_cam)


@lru_cache(maxsize=1)
def _training_views(
    number: int, sequences: int, frames: int, width: int, height: int, device: torch.device
) -> tuple[Tensor, Tensor, NDArray[np.float64]]:
    rng = np.random.default_rng([number, 4])
    first = FIRST_SEED + number * MOST_SEQUENCES
    seeds = range(first, first + sequences)
    T_room_cam = np.stack([_dropping(rng, seed, frames) for seed in seeds])
    return *_views(T_room_cam, seeds, rng, width, height, device), T_room_cam


def _dropping(rng: np.random.Generator, seed: int, frames: int) -> NDArray[np.float64]:
    """Poses [frames, 4, 4] of a robot, seen at irregular times."""
    interval = np.exp(rng.uniform(*np.log(INTERVALS)))
    poses = trajectory(make_room(seed), SKIPPED * frames, rate=SKIPPED / interval)
    return poses[np.sort(rng.choice(len(poses), frames, replace=False))]


def _views(
    T_room_cam: NDArray[np.float64],
    seeds: range,
    rng: np.random.Generator,
    width: int,
    height: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Images [B, S, 3, H, W] and depth [B, S, H, W] in metres of one room per sequence."""
    size = T_room_cam.shape[:2]
    scenes = [scene for seed in seeds for scene in [furnish(make_room(seed), device)] * size[1]]
    flat = T_room_cam.reshape(-1, 4, 4)
    colour, depth = render(Scene.cat(scenes), flat, pinhole(width, height), height, width)
    return _exposed(colour.movedim(-1, 1).unflatten(0, size), rng), depth.unflatten(0, size)


def _exposed(colour: Tensor, rng: np.random.Generator) -> Tensor:
    """Images [B, S, 3, H, W] as cameras of different sharpness, noise and drifting exposure take them."""
    sequences, frames = colour.shape[:2]
    shape = (sequences, 1, 1, 1, 1)
    gain = 1 + np.stack([sway(rng, np.arange(frames) / 10, GAIN_SWAY, GAIN_HERTZ) for _ in range(sequences)])
    noise, softness = (colour.new_tensor(rng.uniform(low, high, shape)) for low, high in (NOISE, (0, SOFTNESS)))
    flat = colour.flatten(0, 1)
    smooth = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(flat, (1, 1, 1, 1), "replicate"), 3, 1)
    colour = colour.lerp(smooth.view_as(colour), softness)
    generator = torch.Generator(colour.device).manual_seed(int(rng.integers(2**31)))
    grain = torch.randn(colour.shape, generator=generator, device=colour.device)
    return (colour * colour.new_tensor(gain)[..., None, None, None] + noise * grain).clamp(0, 1)


def _in_first_camera(images: Tensor, depth: Tensor, T_room_cam: NDArray[np.float64]) -> Batch:
    height, width = images.shape[-2:]
    intrinsics = pinhole(width, height)
    K = images.new_tensor(intrinsics)
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([u, v, torch.ones_like(u)], -1).to(K) @ K.inverse().T  # [H, W, 3]
    scale = (depth[:, 0] * rays.norm(dim=-1)).mean((1, 2))  # [B]
    T_first_cam = np.linalg.inv(T_room_cam[:, :1]) @ T_room_cam
    T_first_cam[..., :3, 3] /= scale.cpu().numpy()[:, None, None]
    T_previous_cam = np.linalg.inv(np.roll(T_first_cam, 1, axis=1)) @ T_first_cam
    T_previous_cam[:, 0] = np.eye(4)

    def encoded(transforms: NDArray[np.float64]) -> Tensor:
        poses = [encode_pose(inverse(T), intrinsics, height, width) for T in transforms.reshape(-1, 4, 4)]
        return K.new_tensor(np.array(poses)).unflatten(0, transforms.shape[:2])

    depth = depth / scale[:, None, None, None]
    return Batch(images, depth, K.new_tensor(T_first_cam), encoded(T_first_cam), encoded(T_previous_cam), K)
