# SPDX-License-Identifier: Apache-2.0
"""Training of the track head: what is true of points, and that a stream follows them as they are trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from xsvggt_ros.model.config import MODELS, TrackConfig
from xsvggt_ros.model.streamvggt import StreamVGGT
from xsvggt_ros.tracks import PointTracker
from xsvggt_ros.training import tracking
from xsvggt_ros.training.network import matmul_attention
from xsvggt_ros.training.rendering import Request, draw, shoot
from xsvggt_ros.training.tracking import (
    Truth,
    errors_of_tracks,
    feature_maps,
    random_queries,
    streamed,
    track_losses,
    true_tracks,
    windows,
)

CPU = torch.device("cpu")
SIZES = TrackConfig(8, (8, 8, 16, 16), iterations=2, corr_levels=2, corr_radius=1, width=16, layers=1, heads=2)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def batch():
    return shoot(draw(Request(3, 2, 5, 56, 42)), CPU)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = StreamVGGT(replace(MODELS["demo"], track=SIZES), heads=("track",))
    model.kernel = matmul_attention
    torch.nn.init.normal_(model.track_head.tracker.updateformer.flow_head.weight, std=0.05)
    return model


def test_true_tracks_show_the_same_colour_where_they_are_visible(batch):
    queries = random_queries(batch, seeded(1))
    column, row = queries.long().T
    for images, *of_one in zip(batch.images, *true_tracks(batch, queries), strict=True):
        truth = Truth(*of_one)
        torch.testing.assert_close(truth.pixels[0], queries, atol=1e-2, rtol=0)
        assert truth.visible[0].all() and truth.near[0].all()
        there = truth.pixels[-1].round().long()
        seen = truth.visible[-1] > 0
        colour = images[-1][:, there[seen, 1], there[seen, 0]]
        off = (colour - images[0][:, row[seen], column[seen]]).abs().mean()
        apart = (colour - images[0][:, row[seen], column[seen]].roll(7, 1)).abs().mean()
        assert seen.sum() > 10 and off < 0.7 * apart


def test_a_stream_follows_points_as_they_are_trained(model):
    maps = torch.randn(5, SIZES.features, 21, 28, generator=torch.manual_seed(0))
    queries = torch.tensor([[10.0, 20.0], [30.5, 7.0], [50.0, 40.0]])
    with torch.no_grad():
        tracks, visibility, confidence = streamed(model.track_head, maps[None], queries[None])
    tracker = PointTracker(model.track_head, groups=1, grid=0)
    tracker.update(maps[:1])
    tracker.follow(queries.numpy())
    told = tracker.update(maps[1:])
    for i, found in enumerate(told, start=1):
        np.testing.assert_allclose(found.pixels, tracks[-1, 0, i], atol=1e-4)
        np.testing.assert_allclose(found.confidence, confidence[0, i], atol=1e-5)
        assert (found.visible == (visibility[0, i] > 0.5).numpy()).all()


def test_losses_are_least_at_the_truth_and_far_places_do_not_count(batch):
    truth = true_tracks(batch, random_queries(batch, seeded(1)))
    tracks = truth.pixels.expand(3, -1, -1, -1, -1)
    sure = truth.visible.clamp(0.01, 0.99)
    right = tracking._losses((tracks, sure, sure), truth)
    wrong = tracking._losses((tracks + 3, 1 - sure, 1 - sure), truth)
    for name, loss in right.items():
        assert loss < 0.1 * wrong[name], name
    hidden = Truth(truth.pixels * 1e4, torch.zeros_like(truth.visible), torch.zeros_like(truth.near))
    assert tracking._losses((tracks, sure, sure), hidden)["place"] == 0


def test_features_match_where_their_points_are(model):
    maps = torch.randn(1, SIZES.features, 21, 28, generator=torch.manual_seed(0)).repeat(3, 1, 1, 1)
    maps = torch.stack([maps[0], maps[1].roll(2, -1), maps[2].roll(4, -1)])  # moves by four pixels a frame
    queries = torch.tensor([[10.0, 20.0], [30.0, 8.0], [24.0, 36.0]])
    seen = torch.ones(1, 3, 3)
    moving = torch.stack([queries + torch.tensor([4.0 * s, 0.0]) for s in range(3)])
    right, wrong = (
        tracking._match_loss(model.track_head, maps[None], queries[None], Truth(pixels[None], seen, seen))
        for pixels in (moving, queries.expand(3, -1, -1))
    )
    assert right < 0.5 * wrong


def test_windows_are_frames_of_a_stream(model):
    maps = torch.randn(2, 5, SIZES.features, 21, 28, generator=torch.manual_seed(0))
    queries = torch.tensor([[10.0, 20.0], [30.5, 7.0], [50.0, 40.0]]).expand(2, -1, -1)
    later = torch.tensor([4, 1, 2])
    with torch.no_grad():
        whole = streamed(model.track_head, maps, queries)
        shown = torch.cat([torch.tensor([0]), later, later - 1])
        found = windows(model.track_head, maps[:, shown], queries, later - 1, whole[0][-1][:, later - 1])
    torch.testing.assert_close(found[0][:, :, 1:], whole[0][:, :, later])
    for one, other in zip(found[1:], whole[1:], strict=True):
        torch.testing.assert_close(one[:, 1:], other[:, later])


def test_windows_start_about_where_points_truly_were_in_the_frame_before(batch, model, monkeypatch):
    monkeypatch.setattr(tracking, "windows", lambda *given: seen.append(given) or windows(*given))
    monkeypatch.setattr(tracking, "NOISE", 0.0)
    seen = []
    track_losses(model, batch, 2)
    ((_, maps, queries, before, start),) = seen
    all_maps, size = feature_maps(model, batch.images), torch.tensor([56.0, 42.0])
    truth = true_tracks(batch, queries[0])
    assert sorted(before.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(maps, all_maps[:, torch.cat([torch.tensor([0]), before + 1, before])])
    torch.testing.assert_close(start, truth.pixels[:, before].clamp(-size, 2 * size))
    torch.testing.assert_close(truth.pixels[:, 0], queries, atol=1e-2, rtol=0)


@pytest.mark.parametrize("frames", [5, 2])
def test_two_of_eight_steps_see_whole_sequences(batch, model, monkeypatch, frames):
    monkeypatch.setattr(tracking, "windows", lambda *given: seen.append(given) or windows(*given))
    short = replace(batch, **{name: getattr(batch, name)[:, :frames] for name in ("images", "depth", "T_first_cam")})
    counts = []
    for step in range(8):
        seen = []
        losses = track_losses(model, short, step)
        counts.append(len(seen))
    assert counts == [0, 0, 1, 1, 1, 1, 1, 1]
    sum(losses.values()).backward()
    assert model.track_head.feature_extractor.projects[0].weight.grad.abs().sum() > 0
    assert model.aggregator.camera_token.grad is None


def test_errors_of_tracks_that_stand_still(batch, model):
    torch.nn.init.zeros_(model.track_head.tracker.updateformer.flow_head.weight)
    torch.nn.init.zeros_(model.track_head.tracker.updateformer.flow_head.bias)
    errors = errors_of_tracks(model.eval(), batch)
    truth = true_tracks(batch, random_queries(batch, seeded(0)))
    pairs = zip(truth.pixels, truth.visible, strict=True)
    moved = [(pixels - pixels[:1]).norm(dim=-1)[1:][seen[1:] > 0].mean().item() for pixels, seen in pairs]
    assert errors["error"] == pytest.approx(np.mean(moved), rel=1e-3)
