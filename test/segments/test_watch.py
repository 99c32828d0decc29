# SPDX-License-Identifier: Apache-2.0
"""Cameras that are carried elsewhere, and such as move on, by what the demo model's encoder says of their images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.encoded import described
from support.paths import SHARED
from support.segments import pose, seen

from xsvggt_ros.config import SegmentConfig, StreamConfig
from xsvggt_ros.descriptor import CELLS, SIZE
from xsvggt_ros.geometry import Array
from xsvggt_ros.model import load_model
from xsvggt_ros.preprocess import Resize
from xsvggt_ros.replay.sources.folder import image_files, read_image
from xsvggt_ros.rooms.sequence import stream
from xsvggt_ros.segments.watch import Watch

MOST = SegmentConfig().carried
SAMPLE = SHARED / "data" / "7scenes_sample"
TRIES = 40  # of each pair of rooms, and in each room
WAYS = [("robot", "room"), ("handheld", "room"), ("robot", "corridor")]
FRAME = seen(pose())


@dataclass
class Way:
    """What a camera sees, and which way it looks."""

    descriptors: NDArray[np.float16]  # [N, cells, SIZE]
    ahead: Array  # [N, 3]

    def every(self, stride: int) -> Way:
        return Way(self.descriptors[::stride], self.ahead[::stride])


@pytest.fixture(scope="module")
def model():
    return load_model(StreamConfig(dtype="float32"))


@pytest.fixture(scope="module", params=WAYS, ids=" ".join)
def ways(request, model, endurance) -> list[Way]:
    """Through rooms, at 4 images per second."""
    motion, shape = request.param
    rooms, frames = (range(100, 108), 300) if endurance else (range(100, 103), 80)
    shots = [list(stream(seed, frames, 112, 84, motion, 4.0, shape=shape)) for seed in rooms]
    return [
        Way(described(model, [s.rgb for s in each]), np.stack([s.T_room_cam[:3, 2] for s in each])) for each in shots
    ]


def noticed(descriptors, most: float = MOST) -> list[int]:
    """At which of the images."""
    watch = Watch()
    frames = (replace(FRAME, index=i, descriptor=each) for i, each in enumerate(descriptors))
    return [frame.index for frame in frames if watch.carried(frame, most)]


def carried(ways: list[Way]):
    """Three images before and three after, of two rooms, and of places in one whose views are apart."""
    rng = np.random.default_rng(0)
    pairs = [*permutations(ways, 2), *zip(ways, ways, strict=True)]
    for a, b in pairs:
        for i, j in rng.integers(3, len(a.ahead) - 3, (TRIES, 2)):
            if a is not b or a.ahead[i] @ b.ahead[j] < 0:
                yield np.concatenate([a.descriptors[i - 3 : i], b.descriptors[j : j + 3]])


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_camera_that_is_carried_elsewhere_is_noticed_nine_times_in_ten(ways, stride, figures):
    found = [noticed(each) for each in carried([way.every(stride) for way in ways])]
    share = np.mean([each == [4] for each in found])  # once, as the second image of the new place comes
    figures(f"carried elsewhere: noticed, of {len(found)}, at {4 / stride:g} Hz", f"{share:.3f}")
    assert share >= (0.9 if stride == 1 else 0.5)  # from image to image of a slow stream all looks changed


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_no_motion_through_a_room_is_taken_for_that(ways, stride, figures):
    found = [noticed(way.every(stride).descriptors) for way in ways]
    figures(
        f"moved on: taken for carried, of {sum(len(way.ahead) for way in ways) // stride}, at {4 / stride:g} Hz",
        sum(map(len, found)),
    )
    assert sum(map(len, found)) <= (0 if stride == 1 else 0.02 * sum(len(way.ahead) for way in ways))


@pytest.mark.skipif(not SAMPLE.exists(), reason="the 7-Scenes sample is not here")
def test_no_motion_of_a_real_camera_is_taken_for_that(model, figures):
    images = [read_image(path) for path in image_files(SAMPLE) if ".color." in path.name]
    resize = Resize.of(*images[0].shape[:2], 112, 14)
    found = noticed(described(model, [resize.image(Image.fromarray(image)) for image in images]))
    figures(f"7-Scenes: taken for carried, of {len(images)}", len(found))
    assert not found and len(images) > 100


# --- images that are made up ------------------------------------------------------------------------


def places(seed: int, count: int, alike: float = 0.9) -> NDArray[np.float16]:
    """Descriptors of images of one place, so alike."""
    rng = np.random.default_rng(seed)
    place, own = rng.normal(size=(1, CELLS[0] * CELLS[1], SIZE)), rng.normal(size=(count, CELLS[0] * CELLS[1], SIZE))
    return (np.sqrt(alike) * place + np.sqrt(1 - alike) * own).astype(np.float16)


def test_one_image_that_is_spoiled_is_no_change_of_place():
    there, spoiled = places(0, 8), places(1, 1)
    assert noticed([*there[:4], *spoiled, *there[4:]]) == []
    assert noticed([*there[:4], *spoiled, *places(2, 4)]) == []  # though it came as the place changed


def test_a_view_that_changes_all_the_time_is_that_of_a_fast_camera():
    assert noticed(places(0, 12, alike=0.1)) == []
    assert noticed([*places(0, 4, alike=0.15), *places(1, 4, alike=0.15)]) == []


def test_it_is_noticed_once_and_not_where_it_is_never_to_be():
    there_and_back = [*places(0, 4), *places(1, 4), *places(0, 4)]
    assert noticed(there_and_back) == [5, 9]
    assert noticed(there_and_back, most=0.0) == []


def test_images_are_compared_with_those_right_before_them():
    watch, changes = Watch(), [*places(0, 4), *places(1, 4)]
    for index, descriptor in zip((0, 1, 2, 3, 14, 15, 16, 17), changes, strict=True):
        assert not watch.carried(replace(FRAME, index=index, descriptor=descriptor), MOST)
    watch.forget()
    for index, descriptor in enumerate(changes, 18):
        assert watch.carried(replace(FRAME, index=index, descriptor=descriptor), MOST) == (index == 23)
        if index == 23:
            watch.forget()
