# SPDX-License-Identifier: Apache-2.0
"""Pillow's bicubic resize as matrix products, for images that lie on a device: the same numbers, to the bit.

Pillow resamples rows and then columns, each a sum of pixels times weights in fixed point, rounded to 8 bits. Here the
weights of a pass are a matrix of integers, in two parts, so that float32 holds each part's sums without rounding, in
whatever order a device adds. (Where a program has allowed TF32, which rounds factors, a value may be off by one.)
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xsvggt_ros.preprocess import Resize

BITS = 22  # of Pillow's weights after the point
LOW_BITS = 8  # of them in the lower part: sums of both stay below 2**24, for images up to 128 times as large
REACH = 2.0  # pixels to each side that the filter has weights for, of an image that is not made smaller


def resample(image: Tensor, resize: Resize) -> Tensor:
    """An image, uint8 [H, W, 3], as `resize.image` makes it, uint8 [h, w, 3]; one of that size stays as it is."""
    height, width = image.shape[:2]
    if (height, width) == (resize.height, resize.width):
        return image
    planes = image.permute(2, 0, 1).float()  # [3, H, W]
    rows = _weights(width, resize.width, 0, resize.width, image.device)
    columns = _weights(height, resize.scaled_height, resize.top, resize.height, image.device)
    planes = _rounded(*(planes @ part.T for part in rows)).float()
    return _rounded(*(part @ planes for part in columns)).permute(1, 2, 0).to(torch.uint8)


def _rounded(high: Tensor, low: Tensor) -> Tensor:
    """Weighted sums, by the two parts of the weights, as 8 bits in int32."""
    total = (high.int() << LOW_BITS) + low.int()
    return ((total + (1 << BITS - 1)) >> BITS).clamp_(0, 255)


@lru_cache(maxsize=16)
def _weights(size: int, scaled: int, first: int, count: int, device: torch.device) -> Tensor:
    """Of a pass from `size` pixels to `scaled`, for `count` of these from `first` on: two parts [2, count, size]."""
    fixed = _fixed_point(size, scaled)[first : first + count]
    high = (fixed + (1 << LOW_BITS - 1)) >> LOW_BITS
    return torch.from_numpy(np.stack([high, fixed - (high << LOW_BITS)]).astype(np.float32)).to(device)


def _fixed_point(size: int, scaled: int) -> NDArray[np.int64]:
    """Pillow's weights [scaled, size] as integers, `precompute_coeffs` and `normalize_coeffs_8bpc` of Resample.c."""
    scale = size / scaled
    stretch = max(scale, 1.0)
    centre = (np.arange(scaled)[:, None] + 0.5) * scale
    place = np.arange(size)
    weights = _bicubic((place - centre + 0.5) * (1 / stretch))
    reach = REACH * stretch
    weights[(place < (centre - reach + 0.5).astype(int)) | (place >= (centre + reach + 0.5).astype(int))] = 0
    weights /= weights.sum(1, keepdims=True)
    return np.trunc(weights * (1 << BITS) + np.copysign(0.5, weights)).astype(np.int64)


def _bicubic(x: NDArray[np.float64], a: float = -0.5) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
