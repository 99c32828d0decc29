# SPDX-License-Identifier: Apache-2.0
import dataclasses

import numpy as np
import pytest

from xsvggt_ros import CacheConfig, GeometryStream, StreamConfig, geometry
from xsvggt_ros.model import load_model

TOKENS = 53  # of a 112x84 frame


@pytest.fixture(scope="module")
def model():
    return load_model(StreamConfig(dtype="float32"))


def stream_of(model, **cache) -> GeometryStream:
    return GeometryStream(StreamConfig(dtype="float32", cache=CacheConfig(**cache)), model)


def image(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_frame_is_what_it_says(model):
    stream = stream_of(model)
    for index in range(3):
        frame = stream.step(image(index))
        assert frame.index == frame.status.frame == index
        assert frame.depth.shape == frame.confidence.shape == frame.image.shape[:2] == (84, 112)
        assert (frame.depth.dtype, frame.image.dtype) == (np.float32, np.uint8)
        assert np.isfinite(frame.depth).all() and (frame.confidence >= 1).all()
        np.testing.assert_allclose(frame.T_world_cam[:3, :3] @ frame.T_world_cam[:3, :3].T, np.eye(3), atol=1e-9)
        np.testing.assert_allclose(
            frame.points_world(), geometry.transform(frame.T_world_cam, frame.points_cam()), atol=1e-6
        )
        if index == 0:
            np.testing.assert_allclose(frame.T_world_cam, np.eye(4), atol=1e-12)
    assert not np.allclose(frame.T_world_cam, np.eye(4))


def test_status_counts_tokens_bytes_and_evictions(model):
    stream = stream_of(model, budget_tokens=3 * TOKENS, camera_window=2)
    tokens, evicted = [], []
    for i in range(6):
        status = stream.step(image(i)).status
        assert status == stream.status
        assert status.cache_bytes == sum(tensor.nbytes for tensor in stream._cache.tensors)
        assert status.budget_tokens == 3 * TOKENS and status.floor_tokens == 2 * TOKENS
        assert {"preprocess", "encoder", "aggregator", "camera", "dense", "step"} == set(status.seconds)
        tokens.append(status.tokens)
        evicted.append(status.evicted_tokens)
    assert tokens == [TOKENS, 2 * TOKENS] + 4 * [3 * TOKENS]
    assert evicted == [0, 0, 0] + 3 * [TOKENS]
    assert status.camera_frames == 3


def test_settings_change_between_two_steps_and_the_stream_goes_on(model):
    stream = stream_of(model, policy="full", key_bits=16, value_bits=16)
    for i in range(6):
        before = stream.step(image(i))
    stream.reconfigure(CacheConfig(budget_tokens=3 * TOKENS, key_bits=4, value_bits=2))
    after = stream.step(image(6))
    assert after.index == before.index + 1
    assert after.status.event == "cache settings changed"
    assert (after.status.policy, after.status.key_bits, after.status.value_bits) == ("xstream", 4, 2)
    assert after.status.tokens == 3 * TOKENS and after.status.evicted_tokens == 4 * TOKENS
    assert after.status.cache_bytes < before.status.cache_bytes / 3
    assert stream.step(image(7)).status.event == ""


def test_eight_bits_change_little_and_two_bits_more(model):
    depths = {}
    for bits in (16, 8, 2):
        stream = stream_of(model, policy="full", key_bits=bits, value_bits=bits)
        depths[bits] = np.stack([stream.step(image(i)).depth for i in range(5)])[-1]
    errors = {bits: np.abs(np.log(depths[bits] / depths[16])).max() for bits in (8, 2)}
    assert 0 < errors[8] < errors[2] / 5
    assert errors[8] < 1e-3


def test_bad_images_are_refused_and_the_stream_stays_usable(model):
    stream, twin = stream_of(model), stream_of(model)
    stream.step(image(0))
    twin.step(image(0))
    bad = [image(0).astype(np.float32), image(0)[..., 0], image(0)[..., :2], image(0)[:0], image(0)[:2], None, "image"]
    for wrong in bad:
        with pytest.raises(ValueError):
            stream.step(wrong)
    np.testing.assert_array_equal(stream.step(image(1)).depth, twin.step(image(1)).depth)


def test_bad_intrinsics_are_refused_and_the_stream_stays_as_it_was(model):
    stream, twin = stream_of(model), stream_of(model)
    for K in (np.eye(4), np.zeros((3, 3)), np.full((3, 3), np.nan), [1.0]):
        with pytest.raises(ValueError, match="camera matrix"):
            stream.step(image(0), K)
    np.testing.assert_array_equal(stream.step(image(1)).depth, twin.step(image(1)).depth)


@pytest.mark.parametrize("content", [0, 255])
def test_featureless_images_are_no_error(model, content):
    stream = stream_of(model)
    for _ in range(3):
        frame = stream.step(np.full((120, 160, 3), content, np.uint8))
    assert np.isfinite(frame.depth).all() and np.isfinite(frame.T_world_cam).all()


def test_another_image_size_starts_a_new_world_and_says_so(model):
    stream = stream_of(model)
    stream.step(image(0))
    stream.step(image(1))
    frame = stream.step(image(2, height=160))
    assert frame.index == 0
    assert "160x120 to 160x160" in frame.status.event
    np.testing.assert_allclose(frame.T_world_cam, np.eye(4), atol=1e-12)
    fresh = stream_of(model).step(image(2, height=160))
    np.testing.assert_array_equal(frame.depth, fresh.depth)


def test_reset_forgets(model):
    stream = stream_of(model, policy="random", budget_tokens=3 * TOKENS)
    first = [stream.step(image(i)).depth for i in range(5)]
    stream.reset("asked for")
    again = [stream.step(image(i)) for i in range(5)]
    assert again[0].status.event == "asked for"
    for depth, frame in zip(first, again, strict=True):
        np.testing.assert_array_equal(frame.depth, depth)


def test_known_intrinsics_are_used_scaled(model):
    K = np.array([[100.0, 0, 79.5], [0, 100.0, 59.5], [0, 0, 1]])
    frame = stream_of(model).step(image(0), K)
    np.testing.assert_allclose(frame.intrinsics, [[70, 0, 55.5], [0, 70, 41.5], [0, 0, 1]])


def test_the_point_head_gives_the_points_when_asked():
    stream = GeometryStream(StreamConfig(dtype="float32", point_head=True))
    stream.step(image(0))
    frame = stream.step(image(1))
    assert frame.points_world() is frame.predicted_points
    back = geometry.transform(frame.T_world_cam, frame.points_cam())
    np.testing.assert_allclose(back, frame.points_world(), atol=1e-5)


def test_steps_are_repeatable(model):
    runs = []
    for _ in range(2):
        stream = stream_of(model, budget_tokens=2 * TOKENS + 20)
        runs.append([stream.step(image(i)) for i in range(5)])
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one.depth, other.depth)
        np.testing.assert_array_equal(one.T_world_cam, other.T_world_cam)


def test_status_has_the_fields_of_the_message():
    from pathlib import Path

    lines = (Path(__file__).parent.parent / "msg" / "StreamStatus.msg").read_text().splitlines()
    names = {line.split("#")[0].split()[1] for line in lines if line.split("#")[0].strip()}
    own = {field.name for field in dataclasses.fields(GeometryStream.__init__.__globals__["Status"])} - {"seconds"}
    assert own <= names


def test_stamps_that_repeat_are_refused_and_that_go_back_start_a_new_world(model):
    stream = stream_of(model)
    for stamp in (100, 200):
        stream.advance(stamp)
        stream.step(image(0))
    with pytest.raises(ValueError, match="200 ns, is that of the image before"):
        stream.advance(200)
    stream.advance(50)
    frame = stream.step(image(0))
    assert (frame.index, frame.status.event) == (0, "the stamp went back by 0.000 s")
    stream.advance(60)
    assert stream.step(image(0)).index == 1
