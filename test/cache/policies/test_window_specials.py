# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from support.streams import RandomStream

from xsvggt_ros.config import CacheConfig

CONFIG = CacheConfig(policy="window_specials", budget_tokens=130, key_bits=16, value_bits=16)


def layout(frames: int, budget: int, chunk: int = 1) -> list[tuple[int, int]]:
    """What is kept of frames of 25 tokens: the first, the specials of a quarter of the budget, and the newest."""
    newest = [(f, t) for f in range(frames - 1, 0, -1) for t in range(24, -1, -1)]
    special = budget // 4 // 5
    # What is the newest chunk now was not there yet when the others were ranked.
    specials = [(f, t) for f in range(frames - chunk - special, frames - chunk) for t in range(5) if f > 0]
    kept = [(0, t) for t in range(25)] + newest[: 25 * chunk] + specials
    others = [place for place in newest if place not in set(kept)]
    return sorted(kept + others[: budget - len(kept)])


@pytest.mark.parametrize("bits", [2, 16])
def test_special_tokens_outlive_the_patches_of_their_frame(bits):
    stream = RandomStream(replace(CONFIG, key_bits=bits, value_bits=bits))
    for frames in range(1, 20):
        stream.step()
        if frames >= 7:
            for layer in range(2):
                assert stream.places(layer) == layout(frames, 130)


def test_a_chunk_leaves_as_much_room():
    stream = RandomStream(replace(CONFIG, chunk=3, budget_tokens=150))
    for _ in range(6):
        stream.step(3)
    assert stream.places(0) == layout(18, 150, chunk=3)


def test_a_smaller_budget_has_specials_of_fewer_frames():
    stream = RandomStream(CONFIG)
    for _ in range(12):
        stream.step()
    stream.cache.reconfigure(replace(CONFIG, budget_tokens=80))
    places = stream.places(0)
    assert len(places) == 80
    assert {frame for frame, _ in places} == {0, 11, 10, 9, 8, 7}  # 4 frames of specials: 7 to 10, and a window
    for _ in range(3):
        stream.step()
    assert stream.places(1) == layout(15, 80)
