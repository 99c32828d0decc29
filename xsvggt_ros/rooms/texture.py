# SPDX-License-Identifier: Apache-2.0
"""A fixed library of tiling procedural textures, sampled without aliasing.

Textures are grey, in [0, 1]; a surface maps one between two colours. Each is a pyramid of halved sizes
(L. Williams, "Pyramidal Parametrics", SIGGRAPH 1983), so detail fades as it becomes finer than a pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec

import cv2
import numpy as np
import torch
from torch import Tensor

SIZE = 512
LEVELS = SIZE.bit_length()  # 512, 256, ... 1
_TEXELS = (4 * SIZE**2 - 1) // 3  # of one pyramid


def _fractal(rng: np.random.Generator, exponent: float, stretch: float = 1.0) -> np.ndarray:
    """Tiling noise [SIZE, SIZE] in [0, 1] with spectrum 1/f^exponent; `stretch` > 1 draws it out along x."""
    fy, fx = np.fft.fftfreq(SIZE)[:, None] * SIZE, np.fft.rfftfreq(SIZE)[None] * SIZE
    frequency = np.hypot(fx * stretch, fy)
    spectrum = np.fft.rfft2(rng.standard_normal((SIZE, SIZE))) / np.maximum(frequency, 1) ** exponent
    noise = np.fft.irfft2(np.where(frequency > 0, spectrum, 0), (SIZE, SIZE))
    return np.clip(0.5 + noise / (4 * noise.std()), 0, 1)


def _cells(columns: int, rows: int, shift: float = 0.0) -> tuple[np.ndarray, ...]:
    """Cell index (column, row) of every texel and its place in the cell, in [0, 1); odd rows are shifted."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    row, v = np.divmod(y * rows, 1)
    column, u = np.divmod(x * columns + shift * (row % 2), 1)
    return (column % columns).astype(int), row.astype(int), u, v


def _tiles(rng: np.random.Generator, columns: int, rows: int, shift: float, joint: float) -> np.ndarray:
    """Bricks, tiles or planks: a random tone each, dark joints `joint` wide (share of the tile's height)."""
    column, row, u, v = _cells(columns, rows, shift)
    tone = rng.uniform(0.45, 1, (rows, columns))[row, column]
    edge = np.minimum(np.minimum(u, 1 - u) * (rows / columns), np.minimum(v, 1 - v))
    return tone * np.clip(edge / joint, 0, 1)


def _checker(rng: np.random.Generator, count: int) -> np.ndarray:
    column, row, _, _ = _cells(count, count)
    return (0.1 + 0.8 * ((column + row) % 2)) * (0.8 + 0.2 * _fractal(rng, 1.0))


def _stripes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Upright stripes of random width and tone."""
    edges = np.sort(rng.uniform(0, 1, count))
    stripe = np.searchsorted(edges, (np.arange(SIZE) + 0.5) / SIZE) % count
    return np.broadcast_to(rng.uniform(0, 1, count)[stripe], (SIZE, SIZE))


def _dots(rng: np.random.Generator, count: int) -> np.ndarray:
    column, row, u, v = _cells(count, count, 0.5)
    radius = rng.uniform(0.15, 0.42, (count, count))[row, column]
    return np.clip((radius - np.hypot(u - 0.5, v - 0.5)) * SIZE / count, 0, 1)


def _stones(rng: np.random.Generator, count: int) -> np.ndarray:
    """Voronoi cells, a random tone each, with dark joints."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    delta = np.abs(np.stack([x, y])[:, None] - rng.uniform(0, 1, (2, count, 1, 1)))
    distance = np.hypot(*np.minimum(delta, 1 - delta))  # [count, SIZE, SIZE], on the torus
    first, second = np.partition(distance, 1, axis=0)[:2]
    return rng.uniform(0.3, 1, count)[distance.argmin(0)] * np.clip((second - first) * np.sqrt(count) * 6, 0, 1)


def _marble(rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    return 0.5 + 0.5 * np.sin(2 * np.pi * (2 * x + y + 3 * _fractal(rng, 1.8)))


def _planks(rng: np.random.Generator, rows: int) -> np.ndarray:
    return _tiles(rng, 2, rows, 0.5, 0.04) * (0.6 + 0.4 * _fractal(rng, 1.2, stretch=12))


def _rectangles(rng: np.random.Generator, count: int) -> np.ndarray:
    """Overlapping rectangles, as on a poster."""
    picture = np.full((SIZE, SIZE), 0.5)
    for x, y, w, h, tone in rng.uniform((0, 0, 0.05, 0.05, 0), (1, 1, 0.4, 0.4, 1), (count, 5)):
        window = (np.arange(int(y * SIZE), int((y + h) * SIZE)), np.arange(int(x * SIZE), int((x + w) * SIZE)))
        picture[np.ix_(window[0] % SIZE, window[1] % SIZE)] = tone
    return picture


# {name: (edge in metres, recipe)}
TEXTURES: dict[str, tuple[float, Callable[[np.random.Generator], np.ndarray]]] = {
    "grain": (2.9, lambda rng: _fractal(rng, 0.9)),
    "plaster": (1.7, lambda rng: _fractal(rng, 1.3)),
    "clouds": (2.3, lambda rng: _fractal(rng, 1.9)),
    "brushed": (1.3, lambda rng: _fractal(rng, 1.1, stretch=10)),
    "marble": (2.6, _marble),
    "bricks": (1.3, lambda rng: _tiles(rng, 5, 14, 0.5, 0.12)),
    "tiles": (2.4, lambda rng: _tiles(rng, 6, 6, 0.0, 0.05)),
    "small tiles": (1.8, lambda rng: _tiles(rng, 16, 16, 0.0, 0.1)),
    "planks": (1.4, lambda rng: _planks(rng, 10)),
    "wide planks": (1.2, lambda rng: _planks(rng, 5)),
    "checker": (3.2, lambda rng: _checker(rng, 8)),
    "stripes": (2.0, lambda rng: _stripes(rng, 24)),
    "dots": (1.6, lambda rng: _dots(rng, 8)),
    "stones": (2.4, lambda rng: _stones(rng, 40)),
    "poster": (1.1, lambda rng: _rectangles(rng, 30)),
    "patchwork": (1.5, lambda rng: _rectangles(rng, 150)),
}


# Of scikit-image, which has them under free licences (skimage/data/README.txt); their numbers follow the recipes'.
_FILES = ("astronaut", "camera", "chelsea", "coffee", "coins", "hubble_deep_field", "moon", "rocket", "page")
_MATERIALS = ("brick", "grass", "gravel")
PHOTOGRAPHS = tuple(f"photographed {name}" for name in (*_FILES, *_MATERIALS))
PHOTOGRAPH_METRES = 1.6


def metres_of(name: str) -> float:
    """The edge of a texture before it is scaled."""
    return TEXTURES[name][0] if name in TEXTURES else PHOTOGRAPH_METRES


def need_photographs() -> None:
    """Raises ValueError if the package that has them is not installed."""
    if find_spec("skimage") is None:
        raise ValueError("varied rooms have photographs from scikit-image: pip install scikit-image")


def _photographs() -> list[np.ndarray]:
    """As they are in one corner and mirrored in the others, so that they tile; none without scikit-image."""
    if find_spec("skimage") is None:
        return []
    from skimage import data

    return [_tiling(getattr(data, name)()) for name in (*_FILES, *_MATERIALS)]


def _tiling(photograph: np.ndarray) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] -> grey [SIZE, SIZE] in [0, 1]."""
    grey = photograph.reshape(*photograph.shape[:2], -1).mean(-1) / 255
    side = min(grey.shape)
    corner = cv2.resize(grey[:side, :side], (SIZE // 2, SIZE // 2), interpolation=cv2.INTER_AREA)
    row = np.hstack([corner, corner[:, ::-1]])
    return np.vstack([row, row[::-1]])


@functools.cache
def _texels(device: torch.device) -> Tensor:
    """The pyramids of all textures one after the other, flat."""
    rng = np.random.default_rng(0)
    images = np.stack([*(recipe(rng) for _, recipe in TEXTURES.values()), *_photographs()])
    levels = [torch.tensor(images, dtype=torch.float32)]
    for _ in range(LEVELS - 1):
        levels.append(torch.nn.functional.avg_pool2d(levels[-1], 2))
    return torch.cat([level.flatten(1) for level in levels], 1).flatten().to(device)


def sample(texture: Tensor, u: Tensor, v: Tensor, footprint: Tensor) -> Tensor:
    """Trilinear look-up; all tensors of one shape.

    texture: index into TEXTURES, int32; u, v: place, in units of the texture's edge, any real number;
    footprint: size of a pixel there, in the same unit.
    """
    level = (footprint * (SIZE / 2)).log2().clamp(0, LEVELS - 1.001)  # interpolation blurs by about one more
    fine = level.floor()
    near, far = (_bilinear(texture, u, v, k.to(torch.int32)) for k in (fine, fine + 1))
    return torch.lerp(near, far, level - fine)


def _bilinear(texture: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
    size = SIZE >> level
    x, y = u * size - 0.5, v * size - 0.5
    left, top = x.floor(), y.floor()
    columns = [(left.to(torch.int32) + k) & (size - 1) for k in (0, 1)]
    # The levels before this one hold 4/3 (SIZE^2 - size^2) texels.
    start = texture * _TEXELS + (SIZE**2 - size * size) // 3 * 4
    rows = [start + ((top.to(torch.int32) + k) & (size - 1)) * size for k in (0, 1)]
    texels = _texels(u.device)
    corner = [texels.index_select(0, (row + column).flatten()).view(u.shape) for row in rows for column in columns]
    fx, fy = x - left, y - top
    return torch.lerp(torch.lerp(corner[0], corner[1], fx), torch.lerp(corner[2], corner[3], fx), fy)
