# SPDX-License-Identifier: Apache-2.0
"""What a model's encoder says of images, without the rest of it."""

import numpy as np
import torch
from numpy.typing import NDArray

from xsvggt_ros.descriptor import describe
from xsvggt_ros.model import StreamVGGT
from xsvggt_ros.model.attention import WholeSequence

BATCH = 50


@torch.inference_mode()
def described(model: StreamVGGT, images: list[NDArray[np.uint8]]) -> NDArray[np.float16]:
    """Descriptors [N, cells, SIZE] of images as the network sees them, [h, w, 3] each."""
    found = []
    for first in range(0, len(images), BATCH):
        pixels = torch.tensor(np.stack(images[first : first + BATCH])).permute(0, 3, 1, 2) / 255
        found.append(describe(model.aggregator.encode(pixels, WholeSequence(model.kernel)), model.grid(pixels)))
    return np.concatenate(found)
