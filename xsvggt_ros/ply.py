# SPDX-License-Identifier: Apache-2.0
"""Clouds of coloured points as binary PLY."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

VERTEX = np.dtype([("position", "<f4", 3), ("colour", "u1", 3)])
PROPERTIES = ("float x", "float y", "float z", "uchar red", "uchar green", "uchar blue")


def header(count: int, axes: str) -> bytes:
    """What comes before so many vertices; as long whatever their number, so that it can be overwritten at the end.

    axes: of which frame and unit the points are.
    """
    properties = "".join(f"property {name}\n" for name in PROPERTIES)
    start = f"ply\nformat binary_little_endian 1.0\ncomment {axes}\nelement vertex {count:012d}\n"
    return f"{start}{properties}end_header\n".encode()


def vertices(points: NDArray[np.float32], colours: NDArray[np.uint8]) -> NDArray[np.void]:
    """Points [N, 3] and their RGB [N, 3] -> [N] of VERTEX."""
    made = np.empty(len(points), VERTEX)
    made["position"], made["colour"] = points, colours
    return made
