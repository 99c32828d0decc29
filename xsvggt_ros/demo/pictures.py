# SPDX-License-Identifier: Apache-2.0
"""Pictures of a recording: camera images and false colours, still and moving."""

from __future__ import annotations

import io
from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xsvggt_ros.demo.errors import true_depth
from xsvggt_ros.demo.recording import Recording
from xsvggt_ros.pictures import DEPTH_COLOURS, false_colour, shown_range

TAIL, DOT = 8, 2  # answers before, pixels
GOLDEN = 0.618034  # turns of the colour circle from one point to the next: no two near ones look alike
SHIFT = 4  # binary places of pixels for OpenCV
FILM_MS, FILM_QUALITY = 80, 80  # of each image; of the WebP


def colour_stops(colours: str, count: int = 12) -> list[str]:
    """The colours of a scale from its low to its high end, as #rrggbb."""
    return [matplotlib.colors.to_hex(colour) for colour in matplotlib.colormaps[colours](np.linspace(0, 1, count))]


def followed(recording: Recording, index: int) -> NDArray[np.uint8]:
    """The image of an answer, with the points that the node follows and where they were in the answers before."""
    answers = recording.answers[max(0, index - TAIL) : index + 1]
    shown = [{p["id"]: (p["u"], p["v"]) for p in answer.tracks if p["visible"]} for answer in answers]
    image = recording.images[answers[-1].image].image.copy()
    for name, place in shown[-1].items():
        colour = tuple(int(255 * c) for c in matplotlib.colormaps["hsv"](name * GOLDEN % 1)[:3])
        way = [positions[name] for positions in shown if name in positions]
        cv2.polylines(image, [_fixed(way)], False, colour, 1, cv2.LINE_AA, SHIFT)
        cv2.circle(image, _fixed(place), DOT << SHIFT, colour, -1, cv2.LINE_AA, SHIFT)
    return image


def _fixed(pixels: Any) -> Any:
    """Pixels [..., 2] as OpenCV takes parts of them."""
    return np.round(np.array(pixels) * 2**SHIFT).astype(np.int32)


def film_webp(recording: Recording) -> bytes:
    """Animated WebP of the answered images, side by side: image, true depth where it is known, the node's depth."""
    low, high = depth_range(recording)
    frames = [Image.fromarray(_film_frame(recording, i, low, high)) for i in range(len(recording.answers))]
    buffer = io.BytesIO()
    first, *others = frames
    first.save(buffer, "webp", save_all=True, append_images=others, duration=FILM_MS, loop=0, quality=FILM_QUALITY)
    return buffer.getvalue()


def _film_frame(r: Recording, index: int, low: float, high: float) -> NDArray[np.uint8]:
    answer = r.answers[index]
    image = followed(r, index)
    depths = [r.unit * answer.depth]
    if r.truth:
        depths.insert(0, true_depth(r.true_answers[index], answer.depth.shape))
    coloured = [false_colour(depth, low, high, DEPTH_COLOURS)[..., :3] for depth in depths]
    size = image.shape[1::-1]
    return np.hstack([image, *(cv2.resize(c, size, interpolation=cv2.INTER_NEAREST) for c in coloured)])


def depth_range(recording: Recording) -> tuple[float, float]:
    """Ends of the scale that all depth is shown on, metres where the truth tells them."""
    r = recording
    shown = [t.depth for t in r.true_answers] or [answer.depth for answer in r.answers]
    return shown_range(np.concatenate([depth.ravel() for depth in shown]))
