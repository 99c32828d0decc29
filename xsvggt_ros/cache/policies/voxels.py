# SPDX-License-Identifier: Apache-2.0
"""Which voxel of space a point lies in, as one number, so that tokens can be sorted and found by it."""

from __future__ import annotations

import torch
from torch import Tensor

NONE = 0  # of what lies in no voxel
SIDE = 1024  # voxels along each axis, after which the numbers repeat: so there is one for every point


def voxels_of(points: Tensor, size: Tensor) -> Tensor:
    """Numbers [...] int32 of the voxels, cubes of edge `size`, in which points [..., 3] lie."""
    return _number((points / size).floor().remainder(SIDE).int())


def around(voxels: Tensor, reach: int) -> Tensor:
    """All voxels within `reach` of one of these [n], along every axis; ascending, some more than once."""
    step = torch.arange(-reach, reach + 1, dtype=torch.int32, device=voxels.device)
    places = _places(voxels)[:, None] + torch.cartesian_prod(step, step, step)
    near = _number(places.remainder(SIDE))
    return near.masked_fill(voxels[:, None] == NONE, NONE).flatten().sort().values


def among(voxels: Tensor, ascending: Tensor) -> Tensor:
    """Which of them are among those of an ascending list, bool."""
    place = torch.searchsorted(ascending, voxels.contiguous())
    return ascending[place.clamp_max(ascending.shape[0] - 1)] == voxels


def _number(places: Tensor) -> Tensor:
    x, y, z = places.unbind(-1)
    return 1 + z + SIDE * (y + SIDE * x)


def _places(voxels: Tensor) -> Tensor:
    z, y, x = ((voxels - 1) // SIDE**power for power in range(3))
    return torch.stack([x, y % SIDE, z % SIDE], -1)
