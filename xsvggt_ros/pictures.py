# SPDX-License-Identifier: Apache-2.0
"""Arrays as pictures: false colours, and clouds as seen from elsewhere."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from xsvggt_ros.geometry import Array

DEPTH_COLOURS = "turbo"  # blue is near, red is far
CONFIDENCE_COLOURS = "viridis"  # bright is sure
SHOWN_PERCENTILES = (2, 98)  # of the values, from one end of a colour scale to the other
TURN_DEG = [25, 25]  # of a cloud about y and x through its middle: it is then seen from the right and from above
FARTHER = 1.3  # times as far away as it is, so that what is turned stays in the picture
LEAST_HEIGHT = 240  # pixels, about, of a picture in a notebook
DOT = 2  # pixels, the side of a point


def shown_range(values: NDArray[np.floating]) -> tuple[float, float]:
    """Ends of a colour scale for values of any shape: without outliers; (0, 1) where none is finite."""
    seen = values[np.isfinite(values)]
    low, high = np.percentile(seen, SHOWN_PERCENTILES) if seen.size else (0.0, 1.0)
    return float(low), float(high)


def false_colour(values: NDArray[np.floating], low: float, high: float, colours: str) -> NDArray[np.uint8]:
    """RGBA [H, W, 4] of values [H, W] between two, in one of matplotlib's scales; what is not finite is transparent."""
    import matplotlib  # large, and a node without a page makes no such pictures

    scaled = (values - low) / max(high - low, 1e-9)
    return matplotlib.colormaps[colours](np.ma.masked_invalid(scaled), bytes=True)


def cloud(points: NDArray[np.float32], colours: NDArray[np.uint8], intrinsics: Array) -> NDArray[np.uint8]:
    """RGB [h, w, 3] of a camera's points [h, w, 3], in its optical frame, seen from beside and above it, on white.

    colours: RGB uint8 [h, w, 3]; intrinsics [3, 3] in pixels of both pictures. Points that are not finite are left out.
    """
    height, width = points.shape[:2]
    finite = np.isfinite(points).all(-1)
    flat, colours = points[finite], colours[finite]
    middle = np.median(flat, axis=0) if len(flat) else np.zeros(3)
    turned = (flat - middle) @ Rotation.from_euler("yx", TURN_DEG, degrees=True).as_matrix().T
    seen = turned + FARTHER * middle
    order = np.argsort(-seen[:, 2])  # the nearest is drawn last
    order = order[seen[order, 2] > 0]
    pixels = seen[order] @ intrinsics.T
    corner = np.floor(pixels[:, :2] / pixels[:, 2:])
    picture = np.full((height, width, 3), 255, np.uint8)
    for offset in np.ndindex(DOT, DOT):
        column, row = (corner + offset).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        picture[row[inside].astype(int), column[inside].astype(int)] = colours[order[inside]]
    return picture


def png(pixels: NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, 3 or 4], RGB or RGBA."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
