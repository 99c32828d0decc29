# SPDX-License-Identifier: Apache-2.0
"""Points followed through a stream: the books that are kept of them. How well, test/weights says."""

import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xsvggt_ros import tracks as tracks_module
from xsvggt_ros.config import CacheConfig, NodeConfig, StreamConfig
from xsvggt_ros.model.config import MODELS, TrackConfig
from xsvggt_ros.model.loading import weight_dtype
from xsvggt_ros.model.streamvggt import StreamVGGT
from xsvggt_ros.pipeline import Pipeline
from xsvggt_ros.replay.sources.source import image_message
from xsvggt_ros.stream import GeometryStream
from xsvggt_ros.tracks import PointTracker

SIZES = TrackConfig(8, (8, 8, 16, 16), iterations=2, corr_levels=2, corr_radius=1, width=16, layers=1, heads=2)
WIDTH, HEIGHT = 56, 42


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = StreamVGGT(replace(MODELS["demo"], track=SIZES), heads=("track",)).eval()
    torch.nn.init.normal_(model.track_head.tracker.updateformer.flow_head.weight, std=0.05)
    return model.requires_grad_(False)


@pytest.fixture
def stream(model):
    return stream_of(model)


def stream_of(model, groups=2, grid=0):
    config = StreamConfig(image_width=WIDTH, dtype="float32", track_groups=groups, track_grid=grid)
    return GeometryStream(config, model)


def image(seed):
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def points(*pixels):
    return np.array(pixels, np.float32)


def test_points_are_followed_from_the_newest_frame_on(stream):
    assert stream.step(image(0)).tracks.ids.size == 0
    ids = stream.track(points((10, 20), (30.5, 7)))
    frames = [stream.step(image(i)) for i in range(1, 4)]
    assert ids.tolist() == [0, 1]
    for frame in frames:
        assert frame.tracks.ids.tolist() == [0, 1] and frame.tracks.pixels.shape == (2, 2)
        assert frame.tracks.pixels.dtype == np.float32 and np.isfinite(frame.tracks.pixels).all()
        assert frame.tracks.visible.dtype == bool and (frame.tracks.confidence >= 0).all()
    more = stream.track(points((1, 1)))
    assert more.tolist() == [2] and stream.step(image(5)).tracks.ids.tolist() == [0, 1, 2]


def test_a_window_of_two_frames_is_the_head_on_the_whole_sequence(model, stream):
    given = points((10, 20), (30.5, 7), (50, 40))
    stream.step(image(0))
    stream.track(given)
    streamed = stream.step(image(1)).tracks
    pixels = torch.tensor(np.stack([image(0), image(1)])).permute(0, 3, 1, 2)[None] / 255
    whole = model(pixels, query_points=torch.tensor(given)[None])
    np.testing.assert_allclose(streamed.pixels, whole.tracks[0, 1], atol=1e-2)
    np.testing.assert_allclose(streamed.confidence, whole.track_confidence[0, 1], atol=1e-3)
    assert (streamed.visible == (whole.visibility[0, 1] > 0.5).numpy()).all()


def test_later_ones_are_matched_with_the_first_and_the_last_frame_from_where_they_were(model):
    """By hand, with maps that are numbers."""
    head, generator = model.track_head, torch.manual_seed(1)
    maps = torch.randn(4, SIZES.features, HEIGHT // 2, WIDTH // 2, generator=generator)
    tracker, given = PointTracker(head, 1, 0), points((10, 20), (30.5, 7))
    tracker.update(maps[:1])
    tracker.follow(given)
    found = tracker.update(maps[1:])
    query, last = torch.tensor(given), torch.tensor(given)
    for t, frame in enumerate(found, 1):
        window = maps[[0, t]] if t == 1 else maps[[0, t - 1, t]]
        with torch.no_grad():
            start = torch.stack([query, *[last] * (len(window) - 1)])
            expected, visibility, _ = head.tracker(window[None], query[None], start[None])
        last = expected[-1, 0, -1]
        np.testing.assert_allclose(frame.pixels, last, atol=1e-4)
        assert (frame.visible == (visibility[0, -1] > 0.5).numpy()).all()


def test_what_cannot_be_followed_is_refused(model, stream):
    with pytest.raises(ValueError, match="there is no frame yet"):
        stream.track(points((1, 1)))
    stream.step(image(0))
    for wrong, reason in (
        (points((-1, 3)), "must lie in what the network sees of the image, 56x42"),
        (points((1, np.nan)), "must lie in what the network sees"),
        (points((56, 3)), "must lie in what the network sees"),
        (np.zeros((2, 3)), r"1 to 256 pixels \(x, y\), got \[2, 3\]"),
        (np.zeros((0, 2)), "1 to 256 pixels"),
        (np.zeros((257, 2)), "1 to 256 pixels"),
    ):
        with pytest.raises(ValueError, match=reason):
            stream.track(wrong)
    stream.track(points((1, 1)))
    stream.track(points((1, 1)))
    with pytest.raises(ValueError, match="2 groups of points are followed already: raise track_groups"):
        stream.track(points((1, 1)))
    assert stream.step(image(1)).tracks.ids.tolist() == [0, 1]


def test_without_the_head_nothing_is_followed():
    stream = GeometryStream(StreamConfig(image_width=WIDTH))
    assert stream.step(image(0)).tracks is None and stream.status.track_bytes == 0
    with pytest.raises(ValueError, match="track_groups is above 0"):
        stream.track(points((1, 1)))


def test_a_model_without_a_track_head_says_so():
    with pytest.raises(ValueError, match="model small has no track head: set track_groups to 0"):
        GeometryStream(StreamConfig(model="small", weights="random", track_groups=1))


def test_a_new_world_forgets_points_but_not_which_ids_there_were(stream):
    stream.step(image(0))
    stream.track(points((1, 1)))
    stream.reset()
    assert stream.step(image(1)).tracks.ids.size == 0
    assert stream.track(points((1, 1))).tolist() == [1]


def test_points_that_stay_out_of_sight_make_room(model, stream, monkeypatch):
    monkeypatch.setattr(tracks_module, "LOST", 3)
    model.track_head.tracker.vis_predictor[0].bias.data.fill_(-100)
    try:
        stream.step(image(0))
        stream.track(points((1, 1)))
        assert [stream.step(image(i)).tracks.ids.size for i in range(1, 5)] == [1, 1, 0, 0]
    finally:
        model.track_head.tracker.vis_predictor[0].bias.data.zero_()


def test_a_grid_renews_itself(model):
    stream = stream_of(model, groups=1, grid=3)
    bias = model.track_head.tracker.vis_predictor[0].bias.data
    try:
        bias.fill_(100)
        first = [stream.step(image(i)).tracks for i in range(3)]
        assert [t.ids.tolist() for t in first] == [list(range(9))] * 3
        np.testing.assert_allclose(first[0].pixels[0], [WIDTH / 6 - 0.5, HEIGHT / 6 - 0.5])
        bias.fill_(-100)
        assert stream.step(image(4)).tracks.ids.tolist() == list(range(9, 18))
    finally:
        bias.zero_()


def test_the_borders_of_the_cameras_image_can_be_followed(stream):
    """Of a larger one, whose outermost pixels lie beyond the middles of the network's."""
    large = np.zeros((10 * HEIGHT, 10 * WIDTH, 3), np.uint8)
    resize = stream.step(large).resize
    corners = points((0, 0), (10 * WIDTH - 1, 10 * HEIGHT - 1))
    stream.track(resize.to_input(corners))
    np.testing.assert_array_equal(stream._tracker._groups[0].queries, [[0, 0], [WIDTH - 1, HEIGHT - 1]])


def test_what_cannot_be_followed_any_more_is_said(model, caplog):
    config = NodeConfig(stream=StreamConfig(image_width=WIDTH, dtype="float32", track_groups=1))
    pipeline = Pipeline(GeometryStream(config.stream, model), config, logging.getLogger("test"))
    for _ in range(2):
        pipeline.receive("~/track_click", SimpleNamespace(x=1.0, y=1.0, z=0.0))
    assert "~/track_click ignored: points were given 1 times since the last image: raise track_groups" in caplog.text
    with pytest.raises(ValueError, match="set track_groups above 0"):
        StreamConfig(track_grid=3)


def test_places_do_not_round_in_half_precision(model):
    """Maps are in bfloat16, whose steps are 2 pixels at 500; places are not."""
    maps = torch.randn(2, SIZES.features, 20, 280, generator=torch.manual_seed(0))
    queries = torch.tensor([[501.25, 20.0], [333.5, 7.0]])
    exact, _, _ = model.track_head.tracker(maps[None], queries[None])
    rounded, _, _ = model.track_head.tracker(maps[None].bfloat16(), queries[None])
    assert weight_dtype("track_head.tracker.corr_mlp.fc1.weight", torch.bfloat16) == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0)
    assert torch.equal(rounded[:, 0, 0], queries.expand(2, -1, -1))


def test_memory_does_not_grow_and_is_told(stream):
    held = []
    for i in range(6):
        held.append(stream.step(image(i)).status.track_bytes)
        if i < 2:
            stream.track(points((i, i)))
    assert held == [3 * SIZES.features * (HEIGHT // 2) * (WIDTH // 2) * 4] * 6


def test_a_budget_in_mib_holds_for_the_maps_too(model):
    budgets, cache = [], CacheConfig(budget_mib=2.0)
    for groups in (1, 9):
        config = StreamConfig(image_width=WIDTH, dtype="float32", track_groups=groups, cache=cache)
        status = GeometryStream(config, model).step(image(0)).status
        assert status.cache_bytes + status.track_bytes <= 2 * 2**20
        budgets.append(status.budget_tokens)
    assert budgets[0] > budgets[1] > status.floor_tokens


def test_points_in_space_are_where_their_pixels_are(stream):
    stream.step(image(0))
    stream.track(points((10, 20), (30.4, 7.2)))
    frame = stream.step(image(1))
    here = replace(frame.tracks, pixels=points((10.2, 19.8), (30, 7)), visible=np.array([True, False]))
    found = replace(frame, tracks=here).tracked_points()
    np.testing.assert_array_equal(found[0], frame.points_world()[20, 10])
    assert np.isnan(found[1]).all()


def test_points_of_the_cameras_image_come_by_message(model, caplog):
    """In pixels of an image twice as large as the network's."""
    caplog.set_level("INFO")
    config = NodeConfig(stream=StreamConfig(image_width=WIDTH, dtype="float32", track_groups=1))
    pipeline = Pipeline(GeometryStream(config.stream, model), config, logging.getLogger("test"))

    def shown(i):
        large = np.random.default_rng(i).integers(0, 256, (2 * HEIGHT, 2 * WIDTH, 3), dtype=np.uint8)
        (answer,) = pipeline.process(image_message(large, "rgb8", i * 10**8), config)
        return answer.result.frame

    def ask(*pixels):
        points = [SimpleNamespace(x=x, y=y, z=0.0) for x, y in pixels]
        pipeline.receive("~/track_points", SimpleNamespace(points=points))

    ask((1.0, 1.0))
    assert shown(0).tracks.ids.size == 0 and "~/track_points ignored: there is no frame yet" in caplog.text
    ask((20.5, 40.5), (100.0, 80.0))
    frame = shown(1)
    assert frame.tracks.ids.tolist() == [0, 1] and "following 2 points, from id 0" in caplog.text
    queries = pipeline._stream._tracker._groups[0].queries.numpy()
    np.testing.assert_allclose(queries, [[10, 20], [49.75, 39.75]], atol=1e-5)
    np.testing.assert_allclose(frame.resize.to_image(queries), [[20.5, 40.5], [100, 80]], atol=1e-4)
    pipeline.receive("~/track_click", SimpleNamespace(x=1000.0, y=0.0, z=0.0))
    shown(2)
    assert "~/track_click ignored: points must lie in what the network sees" in caplog.text
    pipeline.reset()
    shown(3)
    pipeline.receive("~/track_click", SimpleNamespace(x=20.5, y=40.5, z=0.0))
    assert shown(4).tracks.ids.tolist() == [2]
    ask((1000.0, 0.0))
    shown(5)
    assert "~/track_points ignored: points must lie in what the network sees" in caplog.text
