# SPDX-License-Identifier: Apache-2.0
"""Several images taken in at once: none is lost or out of order, whatever comes between."""

import dataclasses
import logging

import numpy as np
import pytest
from support.caches import Shortage
from support.recordings import SECOND, picture, raw_image

from xsvggt_ros import CacheConfig, GeometryStream, StreamConfig
from xsvggt_ros.config import POLICIES, NodeConfig
from xsvggt_ros.continuity import Late
from xsvggt_ros.memory import OutOfMemory
from xsvggt_ros.model import load_model
from xsvggt_ros.pipeline import Pipeline, Rejected, Unplaced
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.settings import changed
from xsvggt_ros.stream import NotFinite

CHUNK = 3
TOKENS = 17  # of a 56x42 frame
K = np.array([[100.0, 0, 79.5], [0, 100.0, 59.5], [0, 0, 1]])  # of the images
NODE = changed(NodeConfig(), {"image_width": 56, "dtype": "float32", "cache.chunk": CHUNK})
LOG = logging.getLogger("pipeline under test")


@pytest.fixture(scope="module")
def model():
    return load_model(StreamConfig(dtype="float32"))


@pytest.fixture
def poison(model, monkeypatch):
    """From here on the model's numbers are none."""

    def overflow(*arguments):
        return (yield from encode(*arguments)) * float("nan")

    encode = model.aggregator.encode_parts
    return lambda: monkeypatch.setattr(model.aggregator, "encode_parts", overflow)


def stream_of(model, chunk=CHUNK, **cache) -> GeometryStream:
    config = StreamConfig(dtype="float32", image_width=56, cache=CacheConfig(chunk=chunk, **cache))
    return GeometryStream(config, model)


def image(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def taken(stream, seeds, **options):
    return [frame for seed in seeds for frame in stream.take(image(seed), **options)]


# --- stream -------------------------------------------------------------------------------------------


def test_the_frames_of_a_chunk_come_when_it_is_full_each_with_what_is_its_own(model):
    stream, alone = stream_of(model), stream_of(model, chunk=1)
    for first in (0, CHUNK):
        for seed in range(first, first + CHUNK - 1):
            assert stream.take(image(seed), seed * np.diag([1, 1, 0]) + K) == []
        assert stream.waiting == CHUNK - 1
        frames = stream.take(image(first + CHUNK - 1))
        assert (len(frames), stream.waiting) == (CHUNK, 0)
        for i, frame in enumerate(frames, first):
            assert frame.index == frame.status.frame == i
            np.testing.assert_array_equal(frame.image, alone.step(image(i)).image)
            assert np.isfinite(frame.depth).all()
        assert [f.intrinsics[0, 0] for f in frames[:2]] == pytest.approx([0.35 * (100 + i) for i in (first, first + 1)])
        assert frames[2].status == stream.status
        assert {f.status.tokens for f in frames} == {TOKENS * (first + CHUNK)}
    assert not np.shares_memory(frames[0].depth, frames[1].depth)


def test_the_frames_of_a_chunk_see_each_other_and_the_past(model):
    frames, alone = taken(stream_of(model), range(6)), taken(stream_of(model, chunk=1), range(6))
    other = taken(stream_of(model), [0, 1, 9, 3, 4, 5])
    np.testing.assert_allclose(frames[0].T_first_cam, np.eye(4), atol=1e-12)
    assert not np.allclose(frames[0].depth, alone[0].depth, rtol=1e-4)
    for i in range(6):  # whatever the third is
        assert not np.array_equal(frames[i].depth, other[i].depth)


def test_a_chunk_that_is_flushed_is_a_shorter_one(model):
    stream, short = stream_of(model, policy="full"), stream_of(model, chunk=2, policy="full")
    assert stream.flush() == []
    assert taken(stream, range(2)) == []
    frames, expected = stream.flush(), taken(short, range(2))
    for frame, same in zip(frames, expected, strict=True):
        assert frame.index == same.index
        np.testing.assert_array_equal(frame.depth, same.depth)
    assert [f.index for f in taken(stream, range(2, 5))] == [2, 3, 4]


def test_what_waits_belongs_to_the_world_before(model):
    stream = stream_of(model)
    taken(stream, range(CHUNK))
    assert stream.take(image(3)) == []
    for _ in range(2):
        with pytest.raises(ValueError, match="image size changed"):
            stream.take(image(4, height=160))
    (last,) = stream.take(image(4, height=160))
    assert (last.index, last.depth.shape, stream.waiting) == (3, (42, 56), 1)
    (first,) = stream.flush()
    assert (first.index, first.depth.shape) == (0, (56, 56))
    assert "160x120 to 160x160" in first.status.event


def test_what_stamps_have_to_say_is_said_with_their_image(model):
    stream = stream_of(model)
    frames = []
    for seconds in (1, 2, 30, 31, 60, 61, 5):
        frames += stream.take(image(0), stamp_ns=seconds * SECOND)
    assert [f.status.event for f in frames] == [
        "", "", "28.000 s passed without an image", "", "29.000 s passed without an image", "",
    ]  # fmt: skip
    (restarted,) = stream.flush()
    assert (restarted.index, restarted.status.event) == (0, "the stamp went back by 56.000 s")


def test_a_late_image_leaves_those_that_wait(model):
    stream = stream_of(model)
    for seconds in (2, 3):
        assert stream.take(image(seconds), stamp_ns=seconds * SECOND) == []
    with pytest.raises(Late):
        stream.take(image(4), stamp_ns=3 * SECOND)
    assert stream.waiting == 2
    assert len(stream.take(image(4), stamp_ns=4 * SECOND)) == 3


def test_one_frame_for_one_image_there_is_not(model):
    stream = stream_of(model)
    with pytest.raises(ValueError, match=r"frames of 3 images come together: call take and flush .* cache\.chunk to 1"):
        stream.step(image(0))
    assert stream.waiting == 0


def test_another_chunk_is_refused_while_images_wait(model):
    stream = stream_of(model)
    taken(stream, range(1))
    single = CacheConfig(chunk=1)
    with pytest.raises(ValueError, match="1 images wait for the rest of their chunk: call flush"):
        stream.reconfigure(single)
    stream.reconfigure(CacheConfig(chunk=CHUNK, key_bits=8))  # which is no matter of theirs
    assert [f.index for f in stream.flush()] == [0]
    stream.reconfigure(single)
    assert stream.step(image(1)).index == 1


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "full"])
def test_the_budget_holds_whatever_the_chunk(model, policy):
    for chunk in (1, 2, 5):
        stream = stream_of(model, chunk, policy=policy, budget_tokens=7 * TOKENS)
        for frame in taken(stream, range(11)) + stream.flush():
            assert frame.status.tokens <= frame.status.budget_tokens == 7 * TOKENS
            assert np.isfinite(frame.depth).all()
        assert frame.index == 10


def test_a_chunk_whose_numbers_are_not_finite_is_left_out_whole(model, poison, monkeypatch):
    stream = stream_of(model)
    taken(stream, range(CHUNK))
    poison()
    with pytest.raises(NotFinite, match=r"a chunk of 3 images are not finite in .*: the stream goes on without"):
        taken(stream, range(CHUNK))
    assert stream.waiting == 0
    monkeypatch.undo()
    frames = taken(stream, range(CHUNK, 2 * CHUNK))
    assert [f.index for f in frames] == [3, 4, 5]
    assert [bool(f.status.event) for f in frames] == [True, False, False]


def test_a_new_world_begins_though_the_end_of_the_one_before_fails(model, poison, monkeypatch):
    stream = stream_of(model)
    for seconds in (10, 11, 12, 13, 14):
        stream.take(image(0), stamp_ns=seconds * SECOND)
    poison()
    with pytest.raises(NotFinite, match="2 images"):
        stream.take(image(1), stamp_ns=0)
    monkeypatch.undo()
    assert stream.waiting == 1
    (frame,) = stream.flush()
    assert (frame.index, frame.status.event) == (0, "the stamp went back by 14.000 s")


def test_a_chunk_that_finds_no_memory_is_lost_whole(model):
    stream = stream_of(model, budget_tokens=8 * TOKENS)
    taken(stream, range(CHUNK + 2))
    with pytest.raises(OutOfMemory, match=f"goes on with {4 * TOKENS} tokens"), Shortage(1000):
        stream.take(image(5))
    assert stream.waiting == 0
    assert [f.index for f in taken(stream, range(CHUNK))] == [3, 4, 5]


def test_a_reset_forgets_what_waits(model):
    stream = stream_of(model)
    taken(stream, range(2))
    stream.reset()
    assert (stream.waiting, stream.flush()) == (0, [])


def test_the_seconds_of_a_chunk_are_shared_by_its_frames(model):
    stream = stream_of(model)
    frames = taken(stream, range(CHUNK))
    assert all(f.status.seconds == frames[0].status.seconds for f in frames)
    assert set(frames[0].status.seconds) == {"preprocess", "encoder", "aggregator", "camera", "dense", "step"}


# --- pipeline -----------------------------------------------------------------------------------------


def pipeline_of(model, config=NODE):
    return Pipeline(GeometryStream(config.stream, model), config, LOG)


def send(pipeline, *seconds, config=NODE, **message):
    """What became of images by now: [(seconds of the stamp, index of the frame or cause)]."""
    answers = [
        answer
        for second in seconds
        for answer in pipeline.process(raw_image(picture(0), second * SECOND, **message), config, float(second))
    ]
    return outcome(answers)


def outcome(answers):
    found = []
    for answer in answers:
        result = answer.result
        if not isinstance(result, Rejected):
            assert answer.status.step == result.frame.status
            assert result.stamp_ns == answer.image.stamp_ns
        found.append((int(answer.image.time), result.cause if isinstance(result, Rejected) else result.frame.index))
    return found


def counts(pipeline):
    return {k: n for k, n in dataclasses.asdict(pipeline.status.images).items() if n}


def test_answers_come_in_order_and_every_image_is_counted(model):
    pipeline = pipeline_of(model)
    assert send(pipeline, 1, 2) == []
    assert counts(pipeline) == {"frames_received": 2, "frames_waiting": 2}
    assert send(pipeline, 3) == [(1, 0), (2, 1), (3, 2)]
    assert send(pipeline, 4, 4) == [(4, "frames_late")]
    assert send(pipeline, 5, encoding="secret8") == [(5, "frames_rejected")]
    assert send(pipeline, 6, frame_id="another") == [(6, "frames_rejected")]
    assert counts(pipeline) == {"frames_received": 7, "frames_waiting": 1, "frames_late": 1, "frames_rejected": 2}
    assert outcome(pipeline.flush()) == [(4, 3)]
    assert counts(pipeline) == {"frames_received": 7, "frames_late": 1, "frames_rejected": 2}
    assert pipeline.flush() == []


def test_a_reset_another_chunk_and_another_camera_take_in_what_waits(model):
    pipeline = pipeline_of(model)
    assert send(pipeline, 1, 2, 3, 4) == [(1, 0), (2, 1), (3, 2)]
    pipeline.reset()
    assert send(pipeline, 5) == [(4, 3)]
    assert send(pipeline, 6, config=changed(NODE, {"cache.chunk": 1})) == [(5, 0), (6, 1)]
    assert send(pipeline, 7, 8) == []
    other = changed(NODE, {"camera_frame": "other"})
    assert send(pipeline, 9, config=other, frame_id="other") == [(7, 2), (8, 3)]
    assert outcome(pipeline.flush()) == [(9, 0)]
    assert counts(pipeline) == {"frames_received": 9, "resets": 2}


def test_time_that_restarts_takes_in_what_waits(model):
    pipeline = pipeline_of(model)
    assert send(pipeline, 10, 11) == []
    assert send(pipeline, 1) == [(10, 0), (11, 1)]
    assert outcome(pipeline.flush()) == [(1, 0)]


def test_every_image_of_a_chunk_that_fails_is_counted(model, poison):
    pipeline = pipeline_of(model)
    send(pipeline, 1, 2, 3, 4, 5)
    with Shortage(1000):
        assert send(pipeline, 6) == [(4, "frames_failed"), (5, "frames_failed"), (6, "frames_failed")]
    poison()
    assert send(pipeline, 7, 8, 9) == [(s, "frames_abandoned") for s in (7, 8, 9)]
    assert counts(pipeline) == {"frames_received": 9, "frames_failed": 3, "frames_abandoned": 3}
    assert "not finite" in pipeline.status.unused["frames_abandoned"]


def test_each_frame_of_a_chunk_is_placed_at_its_own_stamp(model):
    config = changed(NODE, {"base_frame": "base_link"})
    pipeline = pipeline_of(model, config)
    answers = [a for s in (1, 2, 3) for a in pipeline.process(raw_image(picture(0), s * SECOND), config)]
    assert [type(a.result) for a in answers] == 3 * [Unplaced]
    assert [a.result.stamp_ns for a in answers] == [s * SECOND for s in (1, 2, 3)]
    answers = [a for s in (4, 5, 6) for a in pipeline.process(raw_image(picture(0), s * SECOND), NODE)]
    assert [(type(a.result), a.result.stamp_ns) for a in answers] == [(Placed, s * SECOND) for s in (4, 5, 6)]
