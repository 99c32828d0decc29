# SPDX-License-Identifier: Apache-2.0
"""Camera image -> network input, and the intrinsics that go with it."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITE = 255
FULL = (2**10 - 1, 2**12 - 1, 2**16 - 1)  # brightest samples of the cameras that send 16 bits
STEEPEST = 16  # height over width; of a higher image only that little in the middle would be seen


@dataclass(frozen=True)
class Resize:
    """How an image becomes a network input: scaled to `width` x `scaled_height`, then rows cropped evenly."""

    scale_x: float
    scale_y: float
    width: int
    scaled_height: int
    height: int
    top: int  # first row kept

    @classmethod
    def of(cls, height: int, width: int, target: int, patch: int) -> Resize:
        """For an image of a size and a network of `target` width; the sides become multiples of `patch`.

        Raises ValueError if the result would be lower than one row of patches.
        """
        if width and height > STEEPEST * width:
            raise ValueError(
                f"an image of {width}x{height} is more than {STEEPEST} times as high as wide; send a less high image"
            )
        scaled_height = round(height * (target / width) / patch) * patch if width else 0
        if not scaled_height:
            raise ValueError(
                f"an image of {width}x{height} becomes less than one row of {patch} pixel patches at width {target}; "
                "send a less wide image"
            )
        kept = min(scaled_height, target)
        return cls(target / width, scaled_height / height, target, scaled_height, kept, (scaled_height - kept) // 2)

    @property
    def unseen(self) -> float:
        """The share of an image's rows that is cut off, at top and bottom."""
        return 1 - self.height / self.scaled_height

    def image(self, image: Image.Image) -> NDArray[np.uint8]:
        """RGB image -> uint8 [height, width, 3]."""
        resized = image.resize((self.width, self.scaled_height), Image.Resampling.BICUBIC)
        return np.asarray(resized)[self.top : self.top + self.height]

    def intrinsics(self, intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
        """Camera matrix [3, 3] of the image -> of the network input. Pixel centres lie at integers."""
        K = intrinsics.astype(np.float64)
        K[0] *= self.scale_x
        K[1] *= self.scale_y
        K[0, 2] += (self.scale_x - 1) / 2
        K[1, 2] += (self.scale_y - 1) / 2 - self.top
        return K

    def image_intrinsics(self, intrinsics: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of `intrinsics`."""
        K = intrinsics.astype(np.float64)
        K[0, 2] -= (self.scale_x - 1) / 2
        K[1, 2] -= (self.scale_y - 1) / 2 - self.top
        K[0] /= self.scale_x
        K[1] /= self.scale_y
        return K

    def to_input(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Pixels [..., 2] (x, y) of the image -> of the network input. Pixel centres lie at integers."""
        scale = np.array([self.scale_x, self.scale_y], np.float32)
        return (pixels + 0.5) * scale - 0.5 - np.array([0, self.top], np.float32)

    def to_image(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The inverse of `to_input`."""
        scale = np.array([self.scale_x, self.scale_y], np.float32)
        return (pixels + 0.5 + np.array([0, self.top], np.float32)) / scale - 0.5


def stretched(samples: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """16-bit samples as 8-bit ones, from the darkest to the brightest: how many of the bits are used is not known."""
    eight = np.empty(samples.shape, np.uint8)
    cv2.normalize(samples, eight, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
    return eight


def eight_bits(colours: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """16-bit colours [H, W, 3 or 4] as 8-bit ones, in the same proportion: divided by what their bits can hold."""
    brightest = colours[..., :3].max(initial=0)
    full = next(full for full in FULL if brightest <= full)
    eight = np.empty(colours.shape, np.uint8)
    cv2.convertScaleAbs(colours, eight, WHITE / full)
    return eight


def rgb(image: Image.Image) -> Image.Image:
    """Any image as RGB; 16-bit grey is stretched, transparent ones lie over white."""
    if image.mode.startswith("I"):
        image = Image.fromarray(stretched(np.asarray(image).astype(np.uint16)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (WHITE,) * 4), image)
    return image.convert("RGB")
