# SPDX-License-Identifier: Apache-2.0
"""Steps without depth, for whom poses are enough."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.recordings import SECOND, picture, raw_image

from xsvggt_ros import CacheConfig, GeometryStream, StreamConfig
from xsvggt_ros.cache.policies import BY_NAME, Policy
from xsvggt_ros.config import NodeConfig, SegmentConfig
from xsvggt_ros.model import load_model
from xsvggt_ros.pipeline import Pipeline
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.settings import changed
from xsvggt_ros.stream import NotFinite

CONFIG = StreamConfig(dtype="float32", image_width=56)
LOG = logging.getLogger("pipeline under test")


@pytest.fixture(scope="module")
def model():
    return load_model(CONFIG)


def stream_of(model, kind=GeometryStream, **settings):
    stream = kind(replace(CONFIG, **settings), model)
    stream.dense = False
    return stream


def images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)


def test_poses_and_cache_are_as_ever_and_depth_comes_back_when_it_is_asked_for(model):
    without, with_depth = stream_of(model), GeometryStream(CONFIG, model)
    for i, image in enumerate(images(8)):
        without.dense = i in (4, 5)
        mine, theirs = without.step(image), with_depth.step(image)
        np.testing.assert_array_equal(mine.T_first_cam, theirs.T_first_cam)
        np.testing.assert_array_equal(mine.intrinsics, theirs.intrinsics)
        assert mine.status.dense == (i in (0, 4, 5)) and theirs.status.dense  # a world's first has it
        assert mine.depth.shape == mine.confidence.shape == theirs.depth.shape
        if mine.status.dense:
            np.testing.assert_array_equal(mine.depth, theirs.depth)
        else:
            assert np.isnan(mine.depth).all() and np.isnan(mine.confidence).all()
        assert mine.status.seconds.keys() == theirs.status.seconds.keys()
    for mine, theirs in zip(without._cache.tensors, with_depth._cache.tensors, strict=True):
        assert torch.equal(mine, theirs)


def test_a_frame_without_depth_has_no_points_and_says_why(model):
    stream = stream_of(model, point_head=True)
    frame = [stream.step(image) for image in images(2)][1]
    for points in (frame.points_cam, frame.points_world):
        with pytest.raises(ValueError, match="its depth was not computed: set dense to always"):
            points()


def test_it_does_not_ask_the_depth_head(model, monkeypatch):
    asked, forward = [], model.depth_head.forward
    monkeypatch.setattr(model.depth_head, "forward", lambda *args: asked.append(1) or forward(*args))
    stream = stream_of(model)
    for image in images(5):
        stream.step(image)
    assert len(asked) == 1


def test_policies_that_learn_from_geometry_say_so():
    assert {name for name, policy in BY_NAME.items() if policy.goes_by_depth} == {
        name for name, policy in BY_NAME.items() if policy.learn is not Policy.learn
    }


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (GeometryStream, dict(cache=CacheConfig(policy="stac")), [True] * 5),
        (GeometryStream, dict(cache=CacheConfig(adaptive=True)), [True] * 5),
        (SegmentedStream, dict(segment=SegmentConfig(enabled=True)), [True] * 5),
        (SegmentedStream, dict(), [True] * 5),
        (SegmentedStream, dict(refine=False), [True] + [False] * 4),
        (GeometryStream, dict(cache=CacheConfig(intake="moved")), [True, True, False, False, False]),
    ],
    ids=["stac", "adaptive", "segments", "refine", "none", "moved"],
)
def test_what_goes_by_depth_has_it(model, kind, settings, expected):
    stream = stream_of(model, kind, **settings)
    image = images(1)[0]
    frames = [stream.step(image) for _ in range(5)]
    assert [frame.status.dense for frame in frames] == expected
    assert [bool(np.isfinite(frame.depth).all()) for frame in frames] == expected


def test_numbers_that_are_none_are_still_seen_in_the_pose(model, monkeypatch):
    stream = stream_of(model)
    stream.step(images(1)[0])
    frames = stream._frames
    spoil = lambda frame: replace(frame, T_first_cam=frame.T_first_cam * np.nan)  # noqa: E731
    monkeypatch.setattr(stream, "_frames", lambda *a: (lambda T, found: (T, [*map(spoil, found)]))(*frames(*a)))
    with pytest.raises(NotFinite):
        stream.step(images(1)[0])


@pytest.mark.parametrize(("source", "needed"), [("none", False), ("fixed", False), ("camera_height", True)])
def test_a_scale_that_goes_by_depth_has_it(model, source, needed):
    config = changed(NodeConfig(stream=CONFIG), {"scale.source": source})
    pipeline = Pipeline(GeometryStream(config.stream, model), config, LOG)
    dense = [
        answer.status.step.dense
        for i in range(3)
        for answer in pipeline.process(raw_image(picture(i), i * SECOND), config, dense=False)
    ]
    assert dense == [True, needed, needed]
    (answer,) = pipeline.process(raw_image(picture(3), 3 * SECOND), config)
    assert answer.status.step.dense
