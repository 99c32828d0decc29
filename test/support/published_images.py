# SPDX-License-Identifier: Apache-2.0
"""Images as the published demo loads them."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xsvggt_ros.config import PATCH_SIZE
from xsvggt_ros.preprocess import WHITE, Resize, rgb


def load_images(
    images: list[Image.Image], target: int = 518, patch: int = PATCH_SIZE, mode: str = "crop"
) -> NDArray[np.uint8]:
    """Images as the published demo loads them: uint8 [S, h, w, 3]; the network takes them divided by 255.

    crop: width becomes `target`, rows beyond `target` are cut. pad: the longer side becomes `target`, the rest
    is white. Images of different sizes are padded with white to the largest.
    """
    if mode == "pad":
        inputs = [_pad(_fit(rgb(image), target, patch), target, target) for image in images]
    else:
        inputs = [Resize.of(image.height, image.width, target, patch).image(rgb(image)) for image in images]
    height, width = (max(x.shape[axis] for x in inputs) for axis in (0, 1))
    return np.stack([_pad(x, height, width) for x in inputs])


def _fit(image: Image.Image, target: int, patch: int) -> NDArray[np.uint8]:
    longer = max(image.size)
    width, height = (target if n == longer else round(n * (target / longer) / patch) * patch for n in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _pad(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    missing = ((height - image.shape[0]), (width - image.shape[1]))
    margins = [(n // 2, n - n // 2) for n in missing]
    return np.pad(image, [*margins, (0, 0)], constant_values=WHITE)
