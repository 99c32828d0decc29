# SPDX-License-Identifier: Apache-2.0
"""How many views of its scene a stream has had, and what an adaptive cache makes of it."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.caches import Shortage, shape_of

from xsvggt_ros import CacheConfig, GeometryStream, StreamConfig
from xsvggt_ros.allowance import for_views, scaled, tokens_of
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import rigid
from xsvggt_ros.memory import OutOfMemory
from xsvggt_ros.model import load_model
from xsvggt_ros.rooms import stream as room
from xsvggt_ros.status import StepStatus
from xsvggt_ros.views import MOST, Views

TOKENS = 17  # of a 56x42 frame


def frame(turn=(0, 0, 0), at=(0, 0, 0), depth=2.0):
    """Of a camera turned by some degrees about each axis."""
    ones = np.ones((2, 3), np.float32)
    T = rigid(Rotation.from_rotvec(turn, degrees=True).as_matrix(), np.array(at, float))
    return Frame(0, T, np.eye(3), depth * ones, ones, np.zeros((2, 3, 3), np.uint8), StepStatus())


def count(*frames):
    views = Views()
    for each in frames:
        views.add(each)
    return views.count


def test_a_camera_that_has_turned_or_moved_far_enough_has_another_view():
    assert count() == 0
    assert count(frame()) == count(frame(), frame()) == 1
    for axis in np.eye(3):
        assert count(frame(), frame(turn=14.9 * axis)) == 1
        assert count(frame(), frame(turn=15.1 * axis)) == 2
        assert count(frame(), frame(at=0.299 * axis)) == 1
        assert count(frame(), frame(at=0.301 * axis)) == 2
        assert count(frame(depth=20.0), frame(at=2.9 * axis)) == 1
    assert count(frame(), frame(turn=(0, 180, 0))) == 2


def test_a_view_that_comes_again_is_not_counted_again():
    circle = [frame(turn=(0, degrees, 0)) for degrees in range(0, 720, 4)]
    assert count(*circle) == count(*circle[:90]) == 22  # one in 16 degrees
    there_and_back = [frame(at=(0, 0, z)) for z in [*np.arange(0, 2, 0.1), *np.arange(2, 0, -0.1)]]
    assert count(*there_and_back) == count(*there_and_back[:21])


def test_no_more_views_are_counted_than_a_cache_could_hold():
    assert count(*(frame(at=(i, 0, 0)) for i in range(MOST + 10))) == MOST


def test_a_budget_grows_with_the_views_in_steps_from_the_floor_to_what_is_set():
    shape, config = shape_of(10), CacheConfig(adaptive=True, budget_tokens=155)
    budgets = [for_views(config, views, shape).budget_tokens for views in range(16)]
    assert budgets == [30, 30, 40, 50, 60, 80, 80, 100, 100, *[140] * 4, *[155] * 3]
    for config in (CacheConfig(budget_tokens=155), CacheConfig(policy="full", adaptive=True)):
        assert for_views(config, 1, shape) is config
    small = for_views(replace(config, policy="xstream", budget_tokens=5), 3, shape)
    assert small.budget_tokens == 5  # the policy raises it, and says so


def test_a_budget_in_mib_is_a_ceiling_too():
    shape, config = shape_of(10), CacheConfig(adaptive=True, budget_tokens=0, budget_mib=0.2)
    ceiling = tokens_of(config, shape)
    assert ceiling == tokens_of(replace(config, adaptive=False), shape) > 60
    for views, tokens in ((1, 30), (4, 60), (10**6, ceiling)):
        assert tokens_of(for_views(config, views, shape), shape) == tokens
    assert tokens_of(CacheConfig(policy="full"), shape) == 0
    assert scaled(config, 1) is config


# --- stream -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return load_model(StreamConfig(dtype="float32"))


def stream_of(model, **cache) -> GeometryStream:
    settings = dict(budget_tokens=20 * TOKENS, adaptive=True) | cache
    return GeometryStream(StreamConfig(dtype="float32", image_width=56, cache=CacheConfig(**settings)), model)


@pytest.fixture(scope="module")
def images():
    return [each.rgb for each in room(3, 24, 64, 48, rate=3.0)]


def test_a_cache_grows_with_its_scene_and_says_why(model, images):
    stream = stream_of(model)
    statuses = [stream.step(image).status for image in images]
    assert {s.ceiling_tokens for s in statuses} == {20 * TOKENS}
    budgets = [s.budget_tokens for s in statuses]
    assert budgets == sorted(budgets) and len(set(budgets)) > 3 and budgets[0] == 3 * TOKENS
    views = [int(s.budget_reason.split()[0]) for s in statuses]
    assert all(b - a in (0, 1) for a, b in pairwise(views)) and views[-1] > 4
    assert statuses[0].budget_reason == "1 view of the scene"
    for before, now in pairwise(statuses):  # what a frame adds is there for the next
        assert now.budget_tokens >= min((2 + int(before.budget_reason.split()[0])) * TOKENS, 20 * TOKENS)
    assert not any(s.event for s in statuses)
    assert statuses[-1].cache_bytes > statuses[0].cache_bytes


def test_a_camera_that_stands_still_needs_few_frames(model, images):
    stream = stream_of(model)
    for _ in range(12):
        status = stream.step(images[0]).status
    assert (status.budget_tokens, status.tokens, status.budget_reason) == (
        3 * TOKENS,
        3 * TOKENS,
        "1 view of the scene",
    )


def test_a_new_world_starts_small_again(model, images):
    stream = stream_of(model)
    for image in images:
        before = stream.step(image).status
    stream.reset()
    after = stream.step(images[0]).status
    assert after.budget_tokens == 3 * TOKENS < before.budget_tokens


def test_views_count_from_the_worlds_first_frame_whenever_the_setting_comes(model, images):
    stream = stream_of(model, adaptive=False)
    for image in images[:-1]:
        status = stream.step(image).status
    assert (status.budget_tokens, status.budget_reason) == (status.ceiling_tokens, "")
    stream.reconfigure(replace(stream.config.cache, adaptive=True))
    status = stream.step(images[-1]).status
    assert 3 * TOKENS < status.budget_tokens < status.ceiling_tokens
    assert status.budget_reason


def test_a_limit_holds_the_ceiling(model, images):
    stream = stream_of(model)
    stream.limit(0.25)
    for image in images:
        status = stream.step(image).status
    assert status.budget_tokens == status.ceiling_tokens == 5 * TOKENS
    stream.limit(1.0)
    assert stream.step(images[0]).status.budget_tokens > 5 * TOKENS


def test_a_cache_that_finds_no_memory_to_grow_stays_as_it_is_and_does_not_try_each_time(model, images, monkeypatch):
    stream = stream_of(model)
    status = stream.step(images[0]).status
    tries = []

    def refuse(config):
        tries.append(config.budget_tokens)
        raise OutOfMemory("no memory")

    monkeypatch.setattr(stream._cache, "reconfigure", refuse)
    for i, image in enumerate(images[1:]):
        status = stream.step(image).status
        assert status.frame == 1 + i
    assert len(tries) == 1 and status.budget_tokens == 3 * TOKENS
    assert f"the cache stays at {3 * TOKENS} tokens per layer; free memory" in stream.shortage
    monkeypatch.undo()
    stream.reconfigure(stream_of(model, key_bits=8).config.cache)
    assert not stream.shortage
    assert stream.step(images[0]).status.budget_tokens > 3 * TOKENS


def test_a_step_without_memory_halves_what_is_in_force(model, images):
    stream = stream_of(model, budget_tokens=1000 * TOKENS)
    for image in [*images, images[-1]]:
        before = stream.step(image).status
    with pytest.raises(OutOfMemory, match=f"goes on with {before.budget_tokens // 2} tokens"), Shortage(1000):
        stream.step(images[-1])
    status = stream.step(images[-1]).status
    assert status.budget_tokens == status.ceiling_tokens == before.budget_tokens // 2
