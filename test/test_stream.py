# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.caches import Shortage
from support.paths import ROOT
from support.recordings import SECOND
from support.small import small_model

from xsvggt_ros import CacheConfig, GeometryStream, StreamConfig, geometry
from xsvggt_ros.config import POLICIES
from xsvggt_ros.continuity import Late
from xsvggt_ros.memory import OutOfMemory
from xsvggt_ros.model import load_model
from xsvggt_ros.rooms import stream as room_stream
from xsvggt_ros.status import SegmentStatus, StepStatus
from xsvggt_ros.stream import FAILURES, NotFinite

TOKENS = 53  # of a 112x84 frame
K = np.array([[100.0, 0, 79.5], [0, 100.0, 59.5], [0, 0, 1]])  # of the images


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
        np.testing.assert_allclose(frame.T_first_cam[:3, :3] @ frame.T_first_cam[:3, :3].T, np.eye(3), atol=1e-9)
        np.testing.assert_allclose(
            frame.points_world(), geometry.transform(frame.T_first_cam, frame.points_cam()), atol=1e-6
        )
        if index == 0:
            np.testing.assert_allclose(frame.T_first_cam, np.eye(4), atol=1e-12)
    assert not np.allclose(frame.T_first_cam, np.eye(4))


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
    changes = "policy full -> coreset, budget_tokens 0 -> 208, key_bits 16 -> 4, value_bits 16 -> 2"
    assert after.status.event.startswith("cache settings changed: ") and stream.cache_config.key_bits == 4
    for change in changes.replace("208", str(3 * TOKENS)).split(", "):
        assert change in after.status.event
    assert (after.status.policy, after.status.key_bits, after.status.value_bits) == ("coreset", 4, 2)
    assert after.status.tokens == 3 * TOKENS and after.status.evicted_tokens == 4 * TOKENS
    assert after.status.cache_bytes < before.status.cache_bytes / 3
    assert stream.step(image(7)).status.event == ""


def test_eight_bits_change_little_and_two_bits_more(model):
    depths, shots = {}, list(room_stream(3, 5, 112, 84, "robot", 4.0))
    for bits in (16, 8, 2):
        stream = stream_of(model, policy="full", key_bits=bits, value_bits=bits)
        depths[bits] = np.stack([stream.step(shot.rgb).depth for shot in shots])[-1]
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
    bad = {
        "3x3 camera matrix, got shape [4, 4]": np.eye(4),
        "3x3 camera matrix, got shape [3, 4]": np.hstack([K, np.zeros((3, 1))]),
        "3x3 camera matrix, got shape [1]": [1.0],
        "focal lengths must be above 0": np.zeros((3, 3)),
        "not finite": np.full((3, 3), np.nan),
        "intrinsics is transposed": K.T,
        "must be of the form": K / 2,  # K[2, 2] is no longer 1
        "of an image of 160 x 120 pixels: focal lengths [0.9, 0.9]": np.array(
            [[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]]
        ),
        "scale it to the image": np.diag([25, 25, 1]) @ K,  # of a photograph of 4000 columns
    }
    for words, wrong in bad.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            stream.step(image(0), wrong)
    np.testing.assert_array_equal(stream.step(image(1)).depth, twin.step(image(1)).depth)


@pytest.mark.parametrize("content", [0, 255])
def test_featureless_images_are_no_error(model, content):
    stream = stream_of(model)
    for _ in range(3):
        frame = stream.step(np.full((120, 160, 3), content, np.uint8))
    assert np.isfinite(frame.depth).all() and np.isfinite(frame.T_first_cam).all()


def test_another_image_size_starts_a_new_world_and_says_so(model):
    stream = stream_of(model)
    stream.step(image(0))
    for _ in range(2):
        with pytest.raises(ValueError, match="image size changed"):
            stream.step(image(1, height=160))
    frame = stream.step(image(2, height=160))
    assert frame.index == 0
    assert "160x120 to 160x160" in frame.status.event
    np.testing.assert_allclose(frame.T_first_cam, np.eye(4), atol=1e-12)
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


def test_predicted_intrinsics_have_their_principal_point_in_the_middle_of_the_image(model):
    np.testing.assert_array_equal(stream_of(model).step(image(0)).intrinsics[:2, 2], [55.5, 41.5])


def test_intrinsics_that_a_product_of_matrices_made_inexact_are_used(model):
    inexact = K + np.array([[0, 1e-10, 0], [-1e-11, 0, 0], [1e-17, 0, 1e-12]])
    twin = stream_of(model).step(image(0), K)
    np.testing.assert_array_equal(stream_of(model).step(image(0), inexact).intrinsics, twin.intrinsics)


def test_known_intrinsics_are_used_scaled(model):
    frame = stream_of(model).step(image(0), K)
    np.testing.assert_allclose(frame.intrinsics, [[70, 0, 55.5], [0, 70, 41.5], [0, 0, 1]])


def test_the_point_head_gives_the_points_when_asked():
    stream = GeometryStream(StreamConfig(dtype="float32", point_head=True))
    stream.step(image(0))
    frame = stream.step(image(1))
    assert frame.points_world() is frame.predicted_points
    back = geometry.transform(frame.T_first_cam, frame.points_cam())
    np.testing.assert_allclose(back, frame.points_world(), atol=1e-5)


def test_steps_are_repeatable(model):
    runs = []
    for _ in range(2):
        stream = stream_of(model, budget_tokens=2 * TOKENS + 20)
        runs.append([stream.step(image(i)) for i in range(5)])
    for one, other in zip(*runs, strict=True):
        np.testing.assert_array_equal(one.depth, other.depth)
        np.testing.assert_array_equal(one.T_first_cam, other.T_first_cam)


def test_status_has_the_fields_of_the_message():

    lines = (ROOT / "msg" / "StreamStatus.msg").read_text().splitlines()
    names = {line.split("#")[0].split()[1] for line in lines if line.split("#")[0].strip()}
    own = {field.name for kind in (StepStatus, SegmentStatus) for field in dataclasses.fields(kind)}
    own -= {"seconds", "segments"}  # whose parts are fields of their own
    assert own <= names


def indices(stream, stamps_ms):
    """Index of the frame of each image with these stamps, milliseconds; None for a late one."""
    found = []
    for stamp in stamps_ms:
        try:
            found.append(stream.step(image(0), stamp_ns=stamp * 10**6).index)
        except Late:
            found.append(None)
    return found


@pytest.mark.parametrize(
    ("stamps_ms", "frames"),
    {
        "one a little late": ([1000, 1033, 1066, 1050, 1100], [0, 1, 2, None, 3]),
        "swapped neighbours": ([1000, 1066, 1033, 1133, 1100, 1166], [0, 1, None, 2, None, 3]),
        "swapped at the start": ([1033, 1000, 1066], [0, None, 1]),
        "late by all that is allowed": ([5000, 4000, 5033], [0, None, 1]),
        "every image twice": ([1000, 1000, 1033, 1033], [0, None, 1, None]),
        "no stamps": ([0, 0, 0], [0, None, None]),
        "one far ahead": ([1000, 1100, 4_000_000, 1300, 1400], [0, 1, 2, 3, 4]),
        "two far ahead": ([1000, 1100, 4_000_000, 4_000_100, 1300], [0, 1, 2, 3, 0]),
        "time that restarts": ([5000, 5033, 4032, 4065], [0, 1, 0, 1]),
        "a short recording that starts again": ([1000, 1033, 1066, 1000, 1033, 1066], [0, 1, 2, 0, 1, 2]),
    }.values(),
)
def test_late_images_are_left_out_and_time_that_restarts_starts_a_new_world(model, stamps_ms, frames):
    assert indices(stream_of(model), stamps_ms) == frames


def test_an_image_says_how_late_it_is_or_how_far_time_went_back(model):
    stream = stream_of(model)
    for stamp in (100, 2 * SECOND):
        stream.step(image(0), stamp_ns=stamp)
    with pytest.raises(Late, match="2000000000 ns, is that of the image before"):
        stream.step(image(0), stamp_ns=2 * SECOND)
    with pytest.raises(Late, match=r"it is 0\.250 s older than the image before it"):
        stream.step(image(0), stamp_ns=2 * SECOND - SECOND // 4)
    frame = stream.step(image(0), stamp_ns=SECOND // 2)
    assert (frame.index, frame.status.event) == (0, "the stamp went back by 1.500 s")


def test_how_late_is_late_can_be_set(model):
    strict = GeometryStream(StreamConfig(dtype="float32", image_width=56, max_lateness=0.0), model)
    assert indices(strict, [1000, 1033, 1032, 1032, 1065]) == [0, 1, 0, None, 1]


@pytest.fixture
def poison(model, monkeypatch):
    """Makes a step find, or find no longer, an activation of the encoder that is not finite."""
    encode = model.aggregator.encode_parts

    def overflow(*arguments):
        tokens = (yield from encode(*arguments)).clone()
        tokens[0, 7, 3] = float("inf")
        return tokens

    return lambda there: monkeypatch.setattr(model.aggregator, "encode_parts", overflow if there else encode)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bits", [4, 16])
def test_an_image_whose_numbers_are_not_finite_is_left_out_and_the_stream_goes_on(model, poison, policy, bits):
    stream = stream_of(model, policy=policy, budget_tokens=4 * TOKENS, key_bits=bits, value_bits=bits)
    for seed in range(5):
        stream.step(image(seed))
    for _ in range(2):  # twice as many as there are, one after the other
        poison(True)
        for _ in range(FAILURES - 1):
            with pytest.raises(NotFinite, match=r"not finite in torch\.float32: the stream goes on without"):
                stream.step(image(9))
        poison(False)
        before = stream.status.frame
        frame = stream.step(image(before + 1))
        assert frame.index == before + 1
        assert frame.status.event == "the model's numbers for an image were not finite: left out"
        assert np.isfinite(frame.depth).all() and np.isfinite(frame.T_first_cam).all()
        check_cache(stream)
    assert frame.index == 6
    kept = {int(i) // TOKENS for i in stream._cache.token_ids(0)}
    assert {0, 6} <= kept  # though the scores by a query that is not finite are none
    assert stream.step(image(7)).status.event == ""


@pytest.mark.parametrize("name", ["pose_iterations", "depth", "depth_confidence", "points"])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_frame_of_which_one_number_is_not_finite_is_left_out(model, monkeypatch, name, number):
    """Whichever it is: a policy that goes by geometry would be led astray by it."""
    step = model.step_parts

    def spoiled(*arguments):
        predictions = yield from step(*arguments)
        predictions = dataclasses.replace(predictions, points=torch.ones(*predictions.depth.shape, 3))
        getattr(predictions, name)[-1, ..., 0] = number
        return predictions

    stream = stream_of(model, policy="ghost")
    stream.step(image(0))
    monkeypatch.setattr(model, "step_parts", spoiled)
    with pytest.raises(NotFinite, match="goes on without"):
        stream.step(image(1))
    monkeypatch.setattr(model, "step_parts", step)
    assert stream.step(image(2)).index == 1


def test_an_image_that_was_left_out_leaves_no_trace_where_nothing_had_to_go_for_it(model, poison):
    stream, twin = (stream_of(model, policy="full", key_bits=16, value_bits=16) for _ in range(2))
    for seed in range(3):
        stream.step(image(seed))
        twin.step(image(seed))
    poison(True)
    with pytest.raises(NotFinite):
        stream.step(image(9))
    poison(False)
    for seed in range(3, 6):
        np.testing.assert_allclose(stream.step(image(seed)).depth, twin.step(image(seed)).depth, rtol=1e-4)


@pytest.mark.parametrize(("before", "failures"), [(0, 1), (2, FAILURES)])
def test_numbers_that_are_never_finite_or_not_at_first_start_a_new_world(model, poison, before, failures):
    stream = stream_of(model)
    for seed in range(before):
        stream.step(image(seed))
    poison(True)
    for _ in range(failures - 1):
        with pytest.raises(NotFinite, match="goes on"):
            stream.step(image(9))
    with pytest.raises(NotFinite, match="a new world starts; if that comes again, set dtype to float32"):
        stream.step(image(9))
    poison(False)
    frame = stream.step(image(4))
    assert (frame.index, frame.status.event) == (0, "the model's numbers for an image were not finite")
    np.testing.assert_array_equal(frame.depth, stream_of(model).step(image(4)).depth)


def test_a_long_time_without_images_is_an_event(model):
    stream = stream_of(model)
    events = [stream.step(image(0), stamp_ns=s * SECOND).status.event for s in (0, 5, 11, 12)]
    assert events == ["", "", "6.000 s passed without an image", ""]
    astray = stream.step(image(0), stamp_ns=100 * SECOND), stream.step(image(0), stamp_ns=13 * SECOND)
    assert [frame.status.event for frame in astray] == [
        "88.000 s passed without an image", "the stamp of the image before was of another time",
    ]  # fmt: skip
    assert [frame.index for frame in astray] == [4, 5]


def other_size():
    return np.zeros((84, 84, 3), np.uint8)


def test_a_stray_image_of_another_size_is_refused(model):
    stream = stream_of(model)
    sizes = []
    for stray in (False, True, False, True, True, False):
        try:
            sizes.append(stream.step(other_size() if stray else image(0)).index)
        except ValueError as error:
            assert "3 such images in a row start a new world" in str(error)
            sizes.append(None)
    assert sizes == [0, None, 1, None, None, 2]


def test_strays_of_different_sizes_do_not_add_up(model):
    stream = stream_of(model)
    stream.step(image(0))
    for width in (84, 98, 84, 98):
        with pytest.raises(ValueError, match="image size changed"):
            stream.step(np.zeros((84, width, 3), np.uint8))
    assert stream.step(image(0)).index == 1


SMALL = 17  # tokens of a 56x42 frame


def small_stream_of(model, **cache) -> GeometryStream:
    config = StreamConfig(dtype="float32", image_width=56, cache=CacheConfig(**cache))
    return GeometryStream(config, model)


@pytest.fixture(scope="module")
def untrained():
    return small_model(StreamConfig(dtype="float32"))


def at_frame_eight(model, **cache):
    """Makes streams that have had eight frames: copies of one."""
    stream = small_stream_of(model, **cache)
    for seed in range(8):
        stream.step(image(seed))
    return lambda: copy.deepcopy(stream, {id(model): model})


def check_cache(stream) -> None:
    cache, per_frame = stream._cache, stream._cache.shape.tokens_per_frame
    assert cache.nbytes == sum(tensor.nbytes for tensor in cache.tensors)
    assert cache.budget is None or cache.tokens <= cache.budget
    for layer in range(cache.shape.layers):
        ids = cache.token_ids(layer)
        assert ids.unique().numel() == cache.tokens
        assert ids[0] >= 0 and ids[-1] < cache.frames * per_frame


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["xstream", "sliding_window", "random", "full"])
@pytest.mark.parametrize("bits", [4, 16])
def test_a_step_that_finds_no_memory_halves_the_cache_and_the_stream_goes_on(untrained, policy, bits):
    """Memory runs out at calls spread over a whole step, so in each of its stages."""
    config = CacheConfig(policy=policy, budget_tokens=6 * SMALL, key_bits=bits, value_bits=bits)
    # Of a full cache half of what it held: of 8 frames, or of 9 if the failed one was kept already.
    halves = {8 * SMALL // 2, 9 * SMALL // 2} if policy == "full" else {3 * SMALL}

    after_eight_frames = at_frame_eight(untrained, **dataclasses.asdict(config))
    stream, whole = after_eight_frames(), Shortage()
    with whole:
        stream.step(image(8))
    for at in range(0, whole.calls, whole.calls // 9):
        stream = after_eight_frames()
        with pytest.raises(OutOfMemory, match="goes on with"), Shortage(at):
            stream.step(image(8))
        check_cache(stream)
        half = stream._cache.budget
        assert half in halves and f"{half} tokens" in stream.shortage
        for index in range(3):
            frame = stream.step(image(9 + index))
            assert 8 <= frame.index - index <= 9  # 9 if the failed frame was kept already
            assert (frame.status.event == stream.shortage) == (index == 0)
            assert np.isfinite(frame.depth).all() and np.isfinite(frame.T_first_cam).all()
            check_cache(stream)
        assert frame.status.budget_tokens == half
        assert frame.status.policy == (CacheConfig().policy if policy == "full" else policy)
        stream.reconfigure(config)
        status = stream.step(image(12)).status
        assert (stream.shortage, status.policy) == ("", policy)
        assert status.budget_tokens == (0 if policy == "full" else 6 * SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["xstream", "full"])
def test_a_shortage_that_lasts_starts_a_new_world(untrained, policy):
    """Not even the smaller cache finds memory. The new world is what a fresh stream with that budget says."""
    config = dict(policy=policy, budget_tokens=6 * SMALL)
    halves = {4 * SMALL, 9 * SMALL // 2} if policy == "full" else {3 * SMALL}  # as above
    bounded = CacheConfig().policy if policy == "full" else policy
    fresh = small_stream_of(untrained, policy=bounded, budget_tokens=3 * SMALL).step(image(9))

    after_eight_frames = at_frame_eight(untrained, **config)
    stream, whole = after_eight_frames(), Shortage()
    with whole:
        stream.step(image(8))
    for at in range(0, whole.calls, whole.calls // 8):
        stream = after_eight_frames()
        with pytest.raises(OutOfMemory, match="a new world starts, with half the cache budget"), Shortage(at, True):
            stream.step(image(8))
        frame = stream.step(image(9))
        assert (frame.index, frame.status.event) == (0, stream.shortage)
        np.testing.assert_array_equal(frame.depth, fresh.depth)
        assert frame.status.budget_tokens in halves


def test_a_first_image_that_finds_no_memory_is_as_if_it_had_never_come(untrained):
    fresh = small_stream_of(untrained, budget_tokens=3 * SMALL)
    expected = [fresh.step(image(seed)).depth for seed in (1, 2)]
    stream, whole = small_stream_of(untrained), Shortage()
    with whole:  # a step that finds the model's tables made, as all below do
        stream.step(image(0))
    for at in range(0, whole.calls, whole.calls // 9):
        stream = small_stream_of(untrained, budget_tokens=6 * SMALL)
        with pytest.raises(OutOfMemory, match="a new world starts"), Shortage(at):
            stream.step(image(0))
        for seed, depth in zip((1, 2), expected, strict=True):
            frame = stream.step(image(seed))
            assert frame.index == seed - 1
            np.testing.assert_array_equal(frame.depth, depth)


def test_again_and_again_out_of_memory_the_budget_ends_at_the_least(untrained):
    stream = small_stream_of(untrained, budget_tokens=12 * SMALL, camera_window=0)
    budgets, windows = [], []
    for seed in range(24):
        stream.step(image(seed))
    for seed in range(5):
        with pytest.raises(OutOfMemory), Shortage(1000):
            stream.step(image(seed))
        status = stream.step(image(seed)).status
        budgets.append(status.budget_tokens)
        windows.append(status.camera_frames)
    assert budgets == [6 * SMALL, 3 * SMALL] + 3 * [2 * SMALL]
    assert set(windows) == {1 + 12}  # it kept all 24 before; the window then stays


def test_other_errors_of_a_step_are_not_taken_for_a_shortage(model, monkeypatch):
    stream = small_stream_of(model)
    error = RuntimeError("mat1 and mat2 shapes")
    monkeypatch.setattr(stream.model, "step_parts", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        stream.step(image(0))
    assert not stream.shortage


def test_a_budget_beyond_the_memory_that_is_free_is_the_settings_fault(model, monkeypatch):
    monkeypatch.setattr("xsvggt_ros.stream.memory_in_reach", lambda *_: 2**62)
    stream = small_stream_of(model, budget_tokens=10**12)
    for _ in range(2):  # nothing is halved
        with pytest.raises(OutOfMemory, match=r"no memory for a cache of 1000000000000 .* lower cache\.budget_frames"):
            stream.step(image(0))
        assert not stream.shortage


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize(
    ("change", "lower"),
    [
        ({"budget_tokens": 10**12}, "budget_tokens"),
        ({"budget_frames": 1e6}, "budget_frames"),
        ({"budget_mib": 1e6}, "budget_mib"),
        ({"budget_tokens": 10**12, "budget_mib": 1e6}, "budget_mib"),
        ({"camera_window": 1_000_000}, "camera_window"),
        ({"budget_tokens": 10**12, "adaptive": True}, "budget_tokens"),
    ],
)
def test_a_cache_larger_than_the_memory_there_is_is_refused_when_it_is_set(model, monkeypatch, change, lower, started):
    monkeypatch.setattr("xsvggt_ros.stream.memory_in_reach", lambda *_: 2**30)
    words = rf"takes \d+ MiB, and cpu has room for 1024 MiB; lower cache\.{lower}"
    with pytest.raises(ValueError, match=words):
        small_stream_of(model, **change)
    stream, twin = small_stream_of(model), small_stream_of(model)
    if started:
        stream.step(image(0)), twin.step(image(0))
    with pytest.raises(ValueError, match=words):
        stream.reconfigure(dataclasses.replace(CacheConfig(), **change))
    frame = stream.step(image(1))
    same = twin.step(image(1))
    assert (frame.status.event, frame.status.budget_tokens) == ("", same.status.budget_tokens)
    np.testing.assert_array_equal(frame.depth, same.depth)


def test_a_setting_without_effect_is_named(model):
    stream = small_stream_of(model, budget_tokens=5 * SMALL)
    stream.step(image(0))
    stream.reconfigure(dataclasses.replace(stream.cache_config, budget_frames=3.0))
    event = stream.step(image(1)).status.event
    assert event.endswith("budget_frames 16.0 -> 3.0 (no effect while budget_tokens or budget_mib is set)")


def test_a_cache_may_grow_into_what_is_free_and_into_what_it_holds(model, monkeypatch):
    """Of the memory that it has asked for, only what it has written to is taken."""
    stream = small_stream_of(model, budget_tokens=400 * SMALL)
    for i in range(3):
        stream.step(image(i))
    taken = stream._cache.filled_nbytes
    assert 0 < taken < stream._cache.nbytes / 10
    monkeypatch.setattr("xsvggt_ros.stream.memory_in_reach", lambda device, held: 2**20 + held)
    with pytest.raises(ValueError, match="has room for"):
        stream.reconfigure(stream.cache_config)


def test_a_cache_that_just_fits_the_memory_there_is_is_taken(model, monkeypatch):
    status = small_stream_of(model, budget_tokens=400 * SMALL).step(image(0)).status
    needed = status.cache_bytes + status.scratch_bytes
    monkeypatch.setattr("xsvggt_ros.stream.memory_in_reach", lambda *_: needed)
    assert small_stream_of(model, budget_tokens=400 * SMALL).step(image(0)).index == 0
    with pytest.raises(ValueError, match="has room for"):
        small_stream_of(model, budget_tokens=400 * SMALL + 1)


def test_a_limit_is_a_fraction_of_whatever_budget_there_is(model):
    stream = small_stream_of(model, budget_tokens=16 * SMALL)

    def budget(seed: int) -> int:
        return stream.step(image(seed)).status.budget_tokens // SMALL

    assert budget(0) == 16
    stream.limit(0.5)
    assert budget(1) == 8
    stream.limit(0.25)
    assert budget(2) == 4
    stream.reconfigure(CacheConfig(budget_tokens=40 * SMALL))
    assert budget(3) == 10
    with pytest.raises(OutOfMemory), Shortage(1000):
        stream.step(image(4))
    assert budget(5) == 5
    stream.limit(1.0)
    assert budget(6) == 20
    stream.reset("asked for")
    stream.limit(0.01)
    assert budget(7) == 2  # the least
    stream.reconfigure(CacheConfig(budget_tokens=40 * SMALL))
    stream.limit(1.0)
    assert budget(8) == 40


def test_a_limit_holds_for_mib_and_leaves_full_alone(model):
    stream = small_stream_of(model, budget_tokens=0, budget_mib=4.0)
    assert 0.9 < stream.step(image(0)).status.cache_bytes / (4 * 2**20) <= 1
    stream.limit(0.5)
    status = stream.step(image(1)).status
    assert 0.9 < status.cache_bytes / (2 * 2**20) <= 1
    assert status.event == "cache held to 50% of its budget"
    stream.reconfigure(CacheConfig(policy="full"))
    stream.limit(0.25)
    status = stream.step(image(2)).status
    assert (status.budget_tokens, status.tokens) == (0, 3 * SMALL)
    for wrong in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            stream.limit(wrong)


def test_the_summary_says_what_the_cache_will_be(model):
    stream = stream_of(model, budget_tokens=4 * TOKENS)
    summary = stream.summary()
    status = stream.step(image(0)).status
    for part in (
        "demo with the package's own weights",
        "cpu, torch.float32, attention by",
        f"4:3 is {TOKENS} tokens",
        f"(coreset) keeps {4 * TOKENS} tokens per layer = 4.0 frames = {status.cache_bytes / 2**20:.1f} MiB",
    ):
        assert part in summary
    stream.limit(0.5)
    assert "= 2.0 frames" in stream.summary()
    assert "keeps all frames" in stream_of(model, policy="full").summary()


REAL_SHORTAGE = """
import resource
import numpy as np, torch
from xsvggt_ros import CacheConfig, GeometryStream, StreamConfig
from xsvggt_ros.memory import OutOfMemory

torch.set_num_threads(1)
cache = CacheConfig(policy="full", key_bits=16, value_bits=16)
stream = GeometryStream(StreamConfig(dtype="float32", image_width=112, cache=cache))
rng = np.random.default_rng(0)
image = lambda: rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)
for _ in range(3):
    stream.step(image())
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 50 * 2**20, resource.RLIM_INFINITY))
shortages = frames = 0
while frames < 60:
    try:
        frame = stream.step(image())
    except OutOfMemory as error:
        shortages += 1
        print(error)
        assert shortages < 5
    else:
        frames += bool(shortages)
        assert np.isfinite(frame.depth).all()
status = frame.status
assert status.policy == CacheConfig().policy and 0 < status.tokens <= status.budget_tokens, status
print("went on to frame", frame.index)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' limit of the address space")
def test_a_stream_that_grows_until_memory_really_ends_goes_on():
    done = subprocess.run([sys.executable, "-c", REAL_SHORTAGE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    # In a new world where what is left does not even suffice to move a layer of the cache to a smaller one.
    same_world = f"out of memory: {CacheConfig().policy} goes on with" in done.stdout
    assert same_world or "out of memory: a new world starts, with half the cache budget" in done.stdout
    assert int(done.stdout.split()[-1]) >= 60 * same_world
