# SPDX-License-Identifier: Apache-2.0
"""What a camera that moves through a synthetic room records, with the truth beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xsvggt_ros.geometry import intrinsic_matrix, quaternion_xyzw
from xsvggt_ros.rooms.motion import sway, trajectory
from xsvggt_ros.rooms.render import RAYS, render
from xsvggt_ros.rooms.room import make_room
from xsvggt_ros.rooms.scene import furnish

FIELD_OF_VIEW = 70.0  # degrees, over the width
GAIN_SWAY, GAIN_HERTZ = 0.1, 0.2  # exposure drifts
NOISE = (0.004, 0.02)  # of a pixel, in shares of white; drawn once per sequence
THREADS = 2  # render ahead


@dataclass(frozen=True)
class RoomFrame:
    """One image and what is true of it; the world is the room's (z up, metres)."""

    rgb: NDArray[np.uint8]  # [H, W, 3]
    depth: NDArray[np.float32]  # [H, W], metres along the optical axis
    T_room_cam: NDArray[np.float64]  # [4, 4], optical camera axes (x right, y down, z forward)
    intrinsics: NDArray[np.float64]  # [3, 3], pixel centres at integers
    stamp_ns: int


def pinhole(width: int, height: int, field_of_view: float = FIELD_OF_VIEW) -> NDArray[np.float64]:
    """Intrinsics [3, 3] of an ideal camera; the field of view is in degrees, over the width."""
    focal = width / 2 / np.tan(np.deg2rad(field_of_view) / 2)
    return intrinsic_matrix(focal, focal, (width - 1) / 2, (height - 1) / 2)


def stream(
    seed: int,
    frames: int,
    width: int = 320,
    height: int = 240,
    kind: str = "robot",
    rate: float = 30.0,
    device: str | torch.device = "cpu",
    field_of_view: float = FIELD_OF_VIEW,
    shape: str = "room",
) -> Iterator[RoomFrame]:
    """Frames of room `seed`, `rate` per second; kind: "robot" or "handheld", see motion.trajectory.

    The field of view is in degrees, over the width; shape: one of room.SHAPES.

    The same arguments give the same bytes on the same machine, and more frames only add to fewer.
    """
    room = make_room(seed, shape)
    scene = furnish(room, device)
    poses = trajectory(room, frames, kind, rate)
    intrinsics = pinhole(width, height, field_of_view)
    rng = np.random.default_rng([seed, 3])
    noise = rng.uniform(*NOISE)
    gain = 1 + sway(rng, np.arange(frames) / rate, GAIN_SWAY, GAIN_HERTZ)

    def shoot(chosen: range) -> list[RoomFrame]:
        colour, depth = render(scene, poses[chosen], intrinsics, height, width)
        return [
            RoomFrame(
                rgb=_expose(colour[k], gain[i], noise, seed * 1_000_003 + i),
                depth=depth[k].cpu().numpy(),
                T_room_cam=poses[i],
                intrinsics=intrinsics,
                stamp_ns=round(i * 1e9 / rate),
            )
            for k, i in enumerate(chosen)
        ]

    batch = max(1, RAYS[scene.centre.device.type] // (width * height))
    return _ahead(shoot, [range(frames)[first : first + batch] for first in range(0, frames, batch)])


def _ahead(shoot: Callable[[range], list[RoomFrame]], batches: list[range]) -> Iterator[RoomFrame]:
    """The frames of all batches in order, rendered by threads while the caller is busy with earlier ones."""
    threads = torch.get_num_threads()
    started: deque[Future[list[RoomFrame]]] = deque()
    try:
        # Each gets one of torch's own threads: in operations this small, two would mostly wait for each other.
        with ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for batch in batches:
                started.append(pool.submit(shoot, batch))
                if len(started) > THREADS:
                    yield from started.popleft().result()
            for future in started:
                yield from future.result()
    finally:
        torch.set_num_threads(threads)  # also holds for threads that start later


def _expose(colour: Tensor, gain: float, noise: float, seed: int) -> NDArray[np.uint8]:
    """A camera's 8-bit image of colour [H, W, 3] in [0, 1]."""
    generator = torch.Generator(colour.device).manual_seed(seed)
    grain = torch.randn(colour.shape, generator=generator, device=colour.device)
    return ((colour * gain + noise * grain) * 255).round().clamp(0, 255).to(torch.uint8).contiguous().cpu().numpy()


def write_folder(frames: Iterable[RoomFrame], folder: Path) -> None:
    """Writes rgb/*.png, depth/*.png (16 bit, millimetres), groundtruth.txt (TUM) and intrinsics.txt (3x3).

    groundtruth.txt has one line `t x y z qx qy qz qw` per image, seconds and metres: the optical camera's pose in the
    room. Raises ValueError if the folder has something in it, OSError if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder")
    for name in ("rgb", "depth"):
        (folder / name).mkdir()
    with (folder / "groundtruth.txt").open("w") as poses:
        poses.write("# t x y z qx qy qz qw: camera (x right, y down, z forward) in the room (z up)\n")
        for index, frame in enumerate(frames):
            _write_image(folder / "rgb" / f"{index:06d}.png", frame.rgb[..., ::-1])
            _write_image(folder / "depth" / f"{index:06d}.png", np.rint(frame.depth * 1000).astype(np.uint16))
            pose = (*frame.T_room_cam[:3, 3], *quaternion_xyzw(frame.T_room_cam[:3, :3]))
            poses.write(f"{frame.stamp_ns / 1e9:.9f} {' '.join(f'{number:.9f}' for number in pose)}\n")
            if index == 0:
                np.savetxt(folder / "intrinsics.txt", frame.intrinsics)


def _write_image(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f"{path} cannot be written; is the disk full?")
