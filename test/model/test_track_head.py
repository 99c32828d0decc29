# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from xsvggt_ros.model.config import TrackConfig
from xsvggt_ros.model.track_head import TrackHead, motion_embedding, position_embedding, sample

CONFIG = TrackConfig(features=32, out_channels=(32, 32, 64, 64), iterations=4, corr_levels=4, corr_radius=3, width=96)
GRID = (4, 5)  # patches; feature maps of 28 x 35, images of 56 x 70
WIDTH = 24


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    return TrackHead(WIDTH, CONFIG).double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def taps():
    return list(torch.randn(4, 1, 3, GRID[0] * GRID[1], WIDTH, dtype=torch.float64, generator=torch.manual_seed(1)))


def test_samples_lie_between_pixel_centres():
    ramp = torch.arange(12.0).view(1, 1, 3, 4)  # value = 4 y + x
    points = torch.tensor([[[2.0, 1.0], [0.5, 0.0], [1.25, 1.5], [9.0, 9.0]]])
    assert sample(ramp, points, "border")[0, :, 0].tolist() == pytest.approx([6.0, 0.5, 7.25, 11.0])
    assert sample(ramp, points, "zeros")[0, -1, 0] == 0


def test_no_motion_is_a_cosine_of_one():
    embedding = motion_embedding(torch.zeros(1, 1, 2), 8)[0, 0]
    assert embedding.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0]


def test_the_frequencies_of_motion_are_multiples():
    embedding = motion_embedding(torch.tensor([[[0.001, 0.0]]]), 16)[0, 0]
    assert embedding[0:8:2].tolist() == pytest.approx(torch.tensor([0, 0.25, 0.5, 0.75]).sin().tolist())


def test_positions_between_pixels_are_interpolated():
    at = position_embedding(torch.tensor([[2.0, 5.0], [3.0, 5.0], [2.25, 5.0]]), (9, 9), 16)
    assert at[2].tolist() == pytest.approx((0.75 * at[0] + 0.25 * at[1]).tolist(), abs=1e-6)
    assert at[0, :4].tolist() == pytest.approx([torch.tensor(2 / 10**i).sin().item() for i in range(4)], abs=1e-6)


def test_positions_outside_are_those_of_the_border():
    outside, border = position_embedding(torch.tensor([[-3.0, 20.0], [0.0, 8.0]]), (9, 9), 16)
    assert torch.equal(outside, border)


def test_correlations_are_products_with_what_the_map_has_there(head):
    """In the other order of things: the map's features are sampled first, their products made after."""
    tracker, generator = head.tracker, torch.manual_seed(2)
    features = CONFIG.features
    maps = torch.randn(2, features, 28, 35, dtype=torch.float64, generator=generator)
    points = torch.rand(2, 3, 2, dtype=torch.float64, generator=generator) * 34
    appearance = torch.randn(2, 3, features, dtype=torch.float64, generator=generator)
    side = 2 * CONFIG.corr_radius + 1
    found = tracker._correlate([maps], points, appearance).view(2, 3, side, side)
    for dx, dy in ((-3, 0), (2, -1)):
        moved = points + torch.tensor([dx, dy])
        expected = (appearance * sample(maps, moved, "zeros")).sum(-1) / features**0.5
        torch.testing.assert_close(found[:, :, dx + CONFIG.corr_radius, dy + CONFIG.corr_radius], expected)


def test_the_first_frame_stays_at_the_query_and_others_move(head, taps):
    query = torch.tensor([[10.0, 20.0], [69.0, 55.0]])
    tracks, visibility, confidence = (x[0] for x in head(taps, GRID, query[None]))
    assert tracks.shape == (3, 2, 2)
    assert visibility.shape == confidence.shape == (3, 2)
    assert torch.equal(tracks[0], query.double())
    assert (tracks[1:] != query).all()
    assert ((visibility > 0) & (visibility < 1)).all()


def test_points_do_not_depend_on_their_order(head, taps):
    query = torch.tensor([[10.0, 20.0], [40.0, 30.0], [60.0, 5.0]])
    there, back = (head(taps, GRID, query[None, order])[0][0] for order in ([0, 1, 2], [2, 0, 1]))
    torch.testing.assert_close(there[:, [2, 0, 1]], back)
