# SPDX-License-Identifier: Apache-2.0
"""What the encoder says about an image, in few numbers: by it a place is known again."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

CELLS = (6, 8)  # rows and columns that an image is divided into
SIZE = 64  # numbers for each, of a random projection, which keeps the angles between tokens (Johnson-Lindenstrauss)

LARGEST = 60_000.0  # that float16 holds
LEVELS = 127  # of a number in 8 bits, on either side of 0
FEWEST = 20  # cells that two images share where one is laid over the other, shifted


def describe(patches: Tensor, grid: tuple[int, int]) -> NDArray[np.float16]:
    """Patch tokens [S, n, C] of images of a patch grid (h, w) -> [S, cells, SIZE], cells row by row."""
    tokens = patches.float().unflatten(1, grid).permute(0, 3, 1, 2)
    cells = F.adaptive_avg_pool2d(tokens, CELLS).flatten(2).transpose(1, 2)
    found = cells @ _projection(patches.shape[-1], patches.device)
    return found.clamp(-LARGEST, LARGEST).half().cpu().numpy()


@lru_cache(maxsize=4)
def _projection(width: int, device: torch.device) -> Tensor:
    """Orthonormal columns [C, SIZE], always the same; the identity's where tokens are no longer than that."""
    if width <= SIZE:
        return torch.eye(width, SIZE, device=device)
    numbers = torch.randn(width, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(numbers)[0].float().to(device)


def coded(descriptor: NDArray) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """In 8 bits a number: whole numbers [..., cells, SIZE], and what 1 of them is in each cell [..., cells]."""
    numbers = descriptor.astype(np.float32)
    unit = np.abs(numbers).max(-1) / LEVELS
    return np.rint(numbers / np.maximum(unit, 1e-12)[..., None]).astype(np.int8), unit


def decoded(codes: NDArray[np.int8], unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """What `coded` was given, to half of a unit."""
    return codes * unit[..., None]


def centre(descriptor: NDArray, mean: NDArray) -> NDArray[np.float32]:
    """[cells, SIZE] less the mean [SIZE] of many images, which they have in common; each of length 1."""
    apart = descriptor.astype(np.float32) - mean
    return apart / np.maximum(np.linalg.norm(apart, axis=-1, keepdims=True), 1e-6)


def likeness(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of a centred descriptor and others [..., cells, SIZE], at most 1 each [...].

    It is the mean cosine of each cell and the most similar of the other image.
    """
    cosines = b @ a.T
    return (cosines.max(-1).mean(-1) + cosines.max(-2).mean(-1)) / 2


def shifted_likeness(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of centred descriptors and as many others, both [..., cells, SIZE], at most 1 each [...].

    It is the mean cosine of the cells that lie upon each other where one image is laid over the other, of the shift
    where they are most alike: places that have the same things in another order are not alike.
    """
    cosines = a @ np.swapaxes(b, -1, -2)
    return (cosines.reshape(*cosines.shape[:-2], -1) @ _shifts().T).max(-1)


@lru_cache(maxsize=1)
def _shifts() -> NDArray[np.float32]:
    """[shifts, cells * cells]: the weights of pairs of cells in the mean of each shift."""
    row, column = np.divmod(np.arange(CELLS[0] * CELLS[1]), CELLS[1])
    shift = np.ravel((row[:, None] - row) * 2 * CELLS[1] + column[:, None] - column)
    shifts, counts = np.unique(shift, return_counts=True)
    wide = counts >= FEWEST
    return ((shift == shifts[wide, None]) / counts[wide, None]).astype(np.float32)
