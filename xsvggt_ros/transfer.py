# SPDX-License-Identifier: Apache-2.0
"""Images to the device and outputs back. On CUDA through pinned memory, and the host waits once, for the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from xsvggt_ros.preprocess import Resize
from xsvggt_ros.resample import resample

HIGH = 2  # height over width, above which Pillow 13 takes the columns before the rows: not so `resample`


def held(image: NDArray[np.uint8], resize: Resize, device: torch.device) -> NDArray[np.uint8]:
    """What is kept of an image [H, W, 3] until its chunk is full, in memory of its own: what `seen` needs.

    For CUDA that is the image as it came; else as the network sees it, resized by Pillow.
    """
    height, width = image.shape[:2]
    there = device.type == "cuda" and height <= HIGH * width
    if not there and (height, width) != (resize.height, resize.width):
        image = resize.image(Image.fromarray(image))
    return np.array(image)


def seen(kept: Sequence[tuple[NDArray[np.uint8], Resize]], device: torch.device) -> Tensor:
    """What was `held` of images that become the same size, as the network sees them: uint8 [S, h, w, 3] there."""
    return torch.stack([resample(_upload(image, device), resize) for image, resize in kept])


def _upload(image: NDArray[np.uint8], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(image)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_host(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Tensors of one device as arrays, each in memory of its own; on a CPU that is the tensor's."""
    device = tensors[0].device
    if device.type != "cuda":
        return [tensor.numpy() for tensor in tensors]
    packed = pack(tensors)
    pinned = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
    pinned.copy_(packed, non_blocking=True)
    torch.cuda.current_stream(device).record_event().synchronize()
    return unpack(pinned.numpy(), tensors)


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Their bytes, one after the other, uint8 [N]."""
    return torch.cat([tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors])


def unpack(packed: NDArray[np.uint8], tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Copies of arrays that were packed, of the types and shapes of these tensors."""
    ends = np.cumsum([tensor.nbytes for tensor in tensors])
    return [
        part.view(torch.empty(0, dtype=tensor.dtype).numpy().dtype).reshape(tuple(tensor.shape)).copy()
        for part, tensor in zip(np.split(packed, ends[:-1]), tensors, strict=True)
    ]
