# SPDX-License-Identifier: Apache-2.0
"""Which images the cache takes in, and that it is as it was after the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from support.small import small_model

from xsvggt_ros import CacheConfig, GeometryStream, StreamConfig
from xsvggt_ros.cache.policies import BY_NAME
from xsvggt_ros.config import SegmentConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import rigid
from xsvggt_ros.intake import Intake
from xsvggt_ros.model import load_model
from xsvggt_ros.rooms import stream as room
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.status import StepStatus

TOKENS = 17  # of a 56x42 frame
MOVED = CacheConfig(intake="moved", intake_degrees=5.0)


def frame(turn=0.0, forward=0.0, depth=2.0, dense=True):
    ones = np.ones((2, 3), np.float32)
    T = rigid(Rotation.from_rotvec([0, turn, 0], degrees=True).as_matrix(), np.array([0, 0, forward]))
    return Frame(0, T, np.eye(3), depth * ones, ones, np.zeros((2, 3, 3), np.uint8), StepStatus(dense=dense))


def taken(frames, config=MOVED):
    """Whether each is taken in."""
    intake, found = Intake(), []
    for each in frames:
        found.append(intake.due(config))
        intake.add(each, found[-1])
    return found


def test_of_a_camera_that_stands_still_two_images_are_taken_in():
    assert taken([frame()] * 10) == [True] * 2 + [False] * 8
    assert taken([frame()] * 10, CacheConfig()) == [True] * 10
    jitter = np.random.default_rng(0).uniform(-0.5, 0.5, 100)
    assert sum(taken([frame(turn=angle) for angle in jitter])) == 2


def test_a_camera_that_turns_or_moves_is_taken_in_as_often_as_its_view_is_new():
    assert taken([frame(turn=2.6 * i) for i in range(9)]) == [True, True, *[False, True] * 3, False]
    parallax = 2 * np.tan(np.radians(2.6))  # of what is 2 away
    assert sum(taken([frame(forward=parallax * i) for i in range(9)])) == 5
    assert sum(taken([frame(forward=parallax * i, depth=200.0) for i in range(9)])) == 2
    assert sum(taken([frame(turn=1.3 * i, forward=parallax * i / 2) for i in range(9)])) == 5


def test_one_that_moves_fast_is_not_a_frame_late():
    assert taken([frame(turn=6.0 * i) for i in range(9)]) == [True] * 9
    still_then_fast = [*[frame()] * 4, *(frame(turn=6.0 * i) for i in range(1, 5))]
    assert taken(still_then_fast)[4:] == [False, True, True, True]


def test_without_a_depth_that_of_the_last_frame_with_one_is_taken():
    near = [frame(depth=2.0), *(frame(forward=0.1 * i, depth=np.nan, dense=False) for i in range(1, 20))]
    assert taken(near) == taken([frame(forward=0.1 * i) for i in range(20)])


# --- stream -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return load_model(StreamConfig(dtype="float32"))


@pytest.fixture(scope="module")
def untrained():
    return small_model(StreamConfig(dtype="float32"))


@pytest.fixture(scope="module")
def images():
    return [each.rgb for each in room(3, 24, 64, 48, rate=3.0)]


def config_of(**cache):
    settings = dict(budget_tokens=6 * TOKENS, intake="moved", intake_degrees=8.0) | cache
    return StreamConfig(dtype="float32", image_width=56, cache=CacheConfig(**settings))


def stream_of(model, **cache) -> GeometryStream:
    return GeometryStream(config_of(**cache), model)


def views(stream):
    """The tokens that are cached, of every layer and lane."""
    cache = stream._cache
    lanes = range(cache.policy.lanes)
    return [cache.token_ids(layer, lane).tolist() for layer in range(cache.shape.layers) for lane in lanes]


def held(stream):
    """All that the layers' caches keep for steps to come, and the camera head's."""
    cache = stream._cache
    stores = [tensor.clone() for store in cache.layers for tensor in store.tensors.values()]
    camera = cache.camera.buffer[:, :, : cache.camera.frames].clone()
    return [*stores, camera, torch.tensor(cache.camera.numbers)]


def test_a_robot_that_stands_still_keeps_the_views_of_its_way(model, images):
    stream, every = stream_of(model), stream_of(model, intake="every")
    for image in [*images[:12], *[images[11]] * 8]:  # until the poses say that the camera stands
        status = stream.step(image).status
        every.step(image)
    before, all_before = views(stream), views(every)
    numbers = list(stream._cache.camera.numbers)
    for i in range(200):
        frame = stream.step(images[11])
        assert (frame.index, frame.status.taken_in) == (20 + i, False)
        assert np.isfinite(frame.depth).all()
    assert frame.status.frames_taken_in == status.frames_taken_in > 4
    assert views(stream) == before and stream._cache.camera.numbers == numbers
    for _ in range(20):
        every.step(images[11])
    assert views(every) != all_before
    assert [stream.step(image).status.taken_in for image in images[12:]].count(True) > 3


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("policy", list(BY_NAME))
def test_images_that_are_not_taken_in_leave_no_trace(untrained, images, policy, chunk):
    bits = dict(key_bits=4, value_bits=4, quantizer="channel") if policy in ("xstream", "infinite") else {}
    with_looks, without = (stream_of(untrained, policy=policy, chunk=chunk, intake="every", **bits) for _ in range(2))

    def take(stream, some, due=True):
        stream._intake.due = lambda config: due
        return [frame for image in some for frame in stream.take(image)]

    for stream in (with_looks, without):
        take(stream, images[:9])
    before = held(with_looks)
    looks = take(with_looks, images[9:15], due=False)
    assert len(looks) == 6 and not any(each.status.taken_in or each.status.evicted_tokens for each in looks)
    assert all(torch.equal(a, b) for a, b in zip(held(with_looks), before, strict=True))
    for mine, theirs in zip(take(with_looks, images[15:21]), take(without, images[15:21]), strict=True):
        np.testing.assert_array_equal(mine.depth, theirs.depth)
        np.testing.assert_array_equal(mine.T_first_cam, theirs.T_first_cam)
        assert (mine.index, mine.status.frames_taken_in) == (theirs.index + 6, theirs.status.frames_taken_in)
    assert all(torch.equal(a, b) for a, b in zip(held(with_looks), held(without), strict=True))


def test_it_sees_what_is_cached_and_itself(model, images):
    """As the frame that is taken in would be seen, the first time."""
    stream, every = stream_of(model), stream_of(model, intake="every")
    for image in images[:2]:
        stream.step(image), every.step(image)
    stream._intake.due = lambda config: False
    for image in (images[3], images[3]):  # the second sees no trace of the first
        looked = stream.step(image)
    taken_in = every.step(images[3])
    np.testing.assert_array_equal(looked.depth, taken_in.depth)
    np.testing.assert_array_equal(looked.T_first_cam, taken_in.T_first_cam)
    assert (looked.index, taken_in.index) == (3, 2)


def test_it_changes_live_and_a_new_world_begins_anew(model, images):
    stream = stream_of(model)
    for _ in range(5):
        assert stream.step(images[0]).status.frame >= 0
    assert not stream.status.taken_in
    stream.reconfigure(replace(stream.cache_config, intake="every"))
    assert stream.step(images[0]).status.taken_in
    stream.reconfigure(replace(stream.cache_config, intake="moved"))
    assert not stream.step(images[0]).status.taken_in
    stream.reset()
    first = stream.step(images[0])
    assert (first.index, first.status.taken_in, first.status.frames_taken_in) == (0, True, 1)


def test_an_adaptive_budget_and_segments_go_on(model, images):
    stream = stream_of(model, adaptive=True, budget_tokens=20 * TOKENS)
    segments = replace(config_of(budget_tokens=30 * TOKENS), segment=SegmentConfig(enabled=True))
    chain = SegmentedStream(segments, model)
    for image in [*images, *[images[-1]] * 10]:
        status, of_chain = stream.step(image).status, chain.step(image).status
    assert not status.taken_in and not of_chain.taken_in
    assert int(status.budget_reason.split()[0]) > 4 and of_chain.frame == 33
