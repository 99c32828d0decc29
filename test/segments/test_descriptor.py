# SPDX-License-Identifier: Apache-2.0
"""What is kept of what the encoder says."""

import numpy as np
import pytest
import torch
from support.encoded import described

from xsvggt_ros.config import LoopConfig, StreamConfig
from xsvggt_ros.descriptor import CELLS, SIZE, centre, coded, decoded, describe, likeness, shifted_likeness
from xsvggt_ros.model import load_model
from xsvggt_ros.rooms.sequence import stream

CELL_COUNT = CELLS[0] * CELLS[1]


def tokens(count: int, grid: tuple[int, int], width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, grid[0] * grid[1], width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("grid", [CELLS, (1, 1), (3, 4), (6, 9), (28, 37), (17, 5)])
@pytest.mark.parametrize("width", [16, SIZE, 384])
def test_any_grid_and_width_has_the_same_shape(grid, width):
    described = describe(tokens(2, grid, width), grid)
    assert described.shape == (2, CELL_COUNT, SIZE) and described.dtype == np.float16
    assert np.isfinite(described).all() and described.any()


def test_the_same_tokens_say_the_same_whatever_came_before():
    first = describe(tokens(2, (6, 8), 384), (6, 8))
    describe(tokens(1, (6, 8), 200, seed=1), (6, 8))
    np.testing.assert_array_equal(describe(tokens(2, (6, 8), 384), (6, 8)), first)
    alone = describe(tokens(2, (6, 8), 384)[1:], (6, 8))[0]
    np.testing.assert_allclose(alone.astype(np.float32), first[1], atol=1e-3)


def test_tokens_that_are_short_are_kept_as_they_are():
    few = tokens(1, CELLS, 16)
    described = describe(few, CELLS)[0]
    np.testing.assert_array_equal(described[:, :16], few[0].half().numpy())
    assert not described[:, 16:].any()


def test_cells_go_row_by_row():
    grid = 2 * CELLS[0], 2 * CELLS[1]
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows, columns], -1).flatten(0, 1).float()[None]
    described = describe(places, grid)[0].reshape(*CELLS, SIZE)
    np.testing.assert_array_equal(described[2, 5, :2], [4.5, 10.5])


def test_angles_between_tokens_are_roughly_kept():
    base, other = tokens(2, CELLS, 384)
    for share in (0.0, 0.5, 0.9):
        mixed = torch.stack([base, share * base + (1 - share**2) ** 0.5 * other])
        before = torch.cosine_similarity(*mixed, dim=-1).mean().item()
        a, b = (centre(each, np.zeros(SIZE)) for each in describe(mixed, CELLS))
        assert (a * b).sum(-1).mean() == pytest.approx(before, abs=0.1)


def test_centred_descriptors_have_length_one_or_none():
    described = describe(tokens(1, CELLS, 384), CELLS)[0]
    np.testing.assert_allclose(np.linalg.norm(centre(described, described[0] / 2), axis=-1), 1, atol=1e-5)
    assert not centre(described, described[0])[0].any()


def test_an_image_is_most_like_itself_wherever_its_cells_have_gone():
    a, b = (centre(each, np.zeros(SIZE)) for each in describe(tokens(2, CELLS, 384), CELLS))
    assert likeness(a, a) == pytest.approx(1, abs=1e-5)
    assert likeness(a, np.roll(a, 7, axis=0)) == pytest.approx(1, abs=1e-5)
    assert likeness(a, b) == likeness(b, a) < 0.6


def test_eight_bits_are_within_half_a_unit_of_each_cell_and_stay_what_they_are():
    numbers = describe(tokens(2, CELLS, 384), CELLS) * np.logspace(-4, 4, CELL_COUNT, dtype=np.float32)[:, None]
    codes, unit = coded(numbers)
    assert codes.dtype == np.int8 and codes.shape == numbers.shape and unit.shape == numbers.shape[:-1]
    assert (np.abs(decoded(codes, unit) - numbers) <= 0.5001 * unit[..., None]).all()
    np.testing.assert_array_equal(coded(decoded(codes, unit))[0], codes)
    nothing = np.zeros((CELL_COUNT, SIZE), np.float16)
    np.testing.assert_array_equal(decoded(*coded(nothing)), nothing)


def test_the_same_keyframes_are_tried_by_what_is_kept_in_eight_bits(endurance, figures):
    """Of every 8th image of some rooms, by every 5th."""
    rooms, frames = (range(100, 104), 300) if endurance else (range(100, 103), 40)
    model, least = load_model(StreamConfig(dtype="float32")), LoopConfig().likeness
    shots = [[shot.rgb for shot in stream(seed, frames, 112, 84, rate=4.0)] for seed in rooms]
    images = [described(model, each) for each in shots]
    keys, others = (np.concatenate([each[part] for each in images]) for part in (slice(0, None, 8), slice(3, None, 5)))
    before, after = (
        np.array([likeness(centre(each, mean), centre(kept, mean)) for each in others])
        for kept in (keys.astype(np.float32), decoded(*coded(keys)))
        for mean in [kept.mean((0, 1), dtype=np.float64)]
    )
    changed = ((before > least) != (after > least)).sum()
    figures(f"8 bits: pairs of {before.size} on another side of loop.likeness", changed)
    np.testing.assert_allclose(after, before, atol=1e-3)
    assert changed <= 0.005 * before.size and 0.05 < (before > least).mean() < 0.95


def test_images_are_alike_as_far_as_one_lies_shifted_upon_the_other():
    a, b = (centre(each, np.zeros(SIZE)) for each in describe(tokens(2, CELLS, 384), CELLS))
    grid = a.reshape(*CELLS, SIZE)
    rolled = np.roll(grid, (1, -2), axis=(0, 1)).reshape(a.shape)
    mirrored = grid[:, ::-1].reshape(a.shape)
    assert shifted_likeness(a, a) == pytest.approx(1, abs=1e-5)
    assert shifted_likeness(a, rolled) == pytest.approx(1, abs=1e-5)  # of the cells that are in both
    assert shifted_likeness(a, b) == pytest.approx(shifted_likeness(b, a), abs=1e-5) and shifted_likeness(a, b) < 0.2
    assert shifted_likeness(a, mirrored) < 0.4 and likeness(a, mirrored) == pytest.approx(1, abs=1e-5)
    both = shifted_likeness(np.stack([a, a]), np.stack([a, b]))
    np.testing.assert_allclose(both, [shifted_likeness(a, a), shifted_likeness(a, b)], atol=1e-6)
