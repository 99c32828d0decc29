# SPDX-License-Identifier: Apache-2.0
"""The step of a steady stream is the same work each time, and can be recorded."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.caches import cache_of
from support.recorded import Operations, Repeated
from support.small import small_model
from support.waiting import Waiting
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._pytree import tree_leaves

from xsvggt_ros import CacheConfig, GeometryStream, StreamConfig
from xsvggt_ros.cache.policies import BY_NAME
from xsvggt_ros.model import StreamVGGT, load_model
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.step_graph import WARM, Recorded, StepGraph
from xsvggt_ros.stream import NotFinite, cache_shape

META = torch.device("meta")
TOKENS = 17  # of a 56x42 frame
SMALL = CacheConfig(budget_tokens=3 * TOKENS + 5, camera_window=2)
CONFIG = StreamConfig(dtype="float32", image_width=56, cache=SMALL)
REPEATING = [name for name, policy in BY_NAME.items() if policy.repeats and name != "full"]
QUANTIZER = {16: "rotated", 4: "channel", 2: "rotated"}
FULL = 4  # steps until all is full


@pytest.fixture(scope="module")
def model():
    return small_model(CONFIG)


@pytest.fixture(scope="module")
def model_with_tracks():
    return small_model(replace(CONFIG, track_groups=1))


def image(seed: int, height: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, 160, 3), dtype=np.uint8)


def stream_of(model, record=None, config=CONFIG, **cache) -> GeometryStream:
    """One that records its steps with `record`, or does not."""
    stream = GeometryStream(replace(config, cache=replace(config.cache, **cache)), model)
    if record:
        stream._graph = StepGraph(model, "", True, record)
    return stream


def recorded(stream) -> bool:
    return bool(stream._graph._recorded)


def same(a, b) -> None:
    """Two frames, but for their times."""
    assert (a.index, replace(a.status, seconds={})) == (b.index, replace(b.status, seconds={}))
    assert a.status.seconds.keys() == b.status.seconds.keys()
    for name in ("T_first_cam", "intrinsics", "depth", "confidence", "predicted_points"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for x, y in zip(vars(a.tracks).values(), vars(b.tracks).values(), strict=True) if a.tracks else ():
        np.testing.assert_array_equal(x, y)


def both(model, **cache):
    return stream_of(model, Repeated, **cache), stream_of(model, **cache)


# --- the same work each time ----------------------------------------------------------------------------


def asked(model, cache, frames=1) -> list[tuple]:
    """What a step asks the device for; it must not wait for it."""
    with torch.inference_mode():
        with Waiting(), Operations() as operations:
            model.step(torch.rand(frames, 3, 42, 56), cache)
        cache.end_frames(frames)
    return operations.described()


@pytest.mark.parametrize("bits", [16, 4, 2])
@pytest.mark.parametrize("policy", REPEATING)
def test_a_step_of_a_steady_cache_asks_for_the_same_each_time(model, policy, bits):
    stream = stream_of(model, policy=policy, key_bits=bits, value_bits=bits, quantizer=QUANTIZER[bits])
    for i in range(FULL):
        assert not (stream._cache and stream._cache.steady)
        stream.step(image(i))
    assert stream._cache.steady
    first, *later = [asked(model, stream._cache) for _ in range(3)]
    assert first == later[0] == later[1]


def test_so_does_one_of_a_chunk_of_heads_apart(model):
    stream = stream_of(model, chunk=3, per_head=True, budget_tokens=8 * TOKENS, policy="stac")
    for i in range(12):
        stream.take(image(i))
    assert stream._cache.steady
    assert asked(model, stream._cache, 3) == asked(model, stream._cache, 3)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("demo", dict(policy="stac", key_bits=4, quantizer="channel")), ("demo", dict()), ("streamvggt", dict())],
)
def test_on_a_device_that_is_no_cpu_it_brings_nothing_from_the_host(endurance, name, settings):
    """That device has no numbers: it is torch's meta."""
    if name == "streamvggt" and not endurance:
        pytest.skip("20 s: --endurance")
    sizes, config = MODELS[name], replace(SMALL, budget_tokens=0, budget_frames=3.3, **settings)
    with META:
        model = StreamVGGT(sizes, ["track"]).to(torch.bfloat16).requires_grad_(False)
    cache = cache_of(cache_shape(sizes, 84, 112, torch.bfloat16, torch.bfloat16), config, META)
    steps = []
    while len(steps) < 2:
        steady = cache.steady
        with torch.inference_mode(), Operations() as operations:
            model.step(torch.empty(1, 3, 84, 112, device=META), cache)
        cache.end_frames(1)
        steps += [operations] * steady
    assert steps[0].described() == steps[1].described()
    assert {x.device for x in tree_leaves(steps[0].found) if isinstance(x, torch.Tensor)} == {META}


@pytest.mark.parametrize("settings", [dict(), dict(policy="stac", key_bits=4, quantizer="channel")])
def test_it_needs_no_numbers_of_the_device(model, settings):
    """Nor have any tensors sizes that depend on such: there are none here."""
    stream = stream_of(model, **settings)
    for i in range(FULL):
        stream.step(image(i))
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True):
        predictions = model.step(torch.rand(1, 3, 42, 56), stream._cache)
    assert predictions.depth.shape == (1, 1, 42, 56)


@pytest.mark.parametrize(
    "needs", [lambda x: x.sum().item(), lambda x: x[x > 0], torch.nonzero, lambda x: bool(x.any())]
)
def test_what_needs_them_is_an_error_there(needs):
    with (
        pytest.raises((DataDependentOutputException, DynamicOutputShapeException)),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        needs(torch.arange(3))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (dict(policy="frame_bank"), "policy frame_bank decides on the host what stays"),
        (dict(policy="random"), "policy random decides on the host what stays"),
        (dict(policy="full"), "the cache grows without end"),
        (dict(camera_window=0), "the cache grows without end"),
    ],
)
def test_what_cannot_be_recorded_is_said_once(model, settings, reason):
    graph, plain = both(model, **settings)
    for i in range(FULL + WARM + 2):
        frame = graph.step(image(i))
        assert frame.status.event == (f"steps are not recorded as a CUDA graph: {reason}" if i == 0 else "")
        np.testing.assert_array_equal(frame.depth, plain.step(image(i)).depth)
    assert graph.summary().endswith(f"; no CUDA graph: {reason}")


# --- a stream with a graph ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 4, 2])
@pytest.mark.parametrize("policy", REPEATING)
def test_frames_of_a_graph_are_those_of_a_stream_without(model, policy, bits):
    graph, plain = both(model, policy=policy, key_bits=bits, value_bits=bits, quantizer=QUANTIZER[bits])
    for i in range(FULL + WARM + 6):
        same(graph.step(image(i)), plain.step(image(i)))
        assert recorded(graph) == (i >= FULL + WARM)
    assert graph.status.evicted_tokens == TOKENS
    for mine, theirs in zip(graph._cache.tensors, plain._cache.tensors, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "settings",
    [dict(chunk=3, budget_tokens=8 * TOKENS), dict(per_head=True), dict(layer_budgets="adaptive")],
    ids=lambda settings: next(iter(settings)),
)
def test_so_are_those_of_chunks_of_heads_apart_and_of_layers_of_different_budgets(model, settings):
    graph, plain = both(model, **settings)
    for i in range(30):
        for mine, theirs in zip(graph.take(image(i)), plain.take(image(i)), strict=True):
            same(mine, theirs)
    assert recorded(graph)


def test_points_and_tracks_come_from_a_graph_too(model_with_tracks):
    config = replace(CONFIG, track_groups=1, track_grid=2)
    graph, plain = (stream_of(model_with_tracks, record, config) for record in (Repeated, None))
    for i in range(FULL + WARM + 4):
        same(graph.step(image(i)), plain.step(image(i)))
    assert recorded(graph) and len(graph.step(image(0)).tracks.ids) == 4


def test_steps_that_take_nothing_in_and_steps_without_depth_have_graphs_of_their_own(model):
    graph, plain = both(model)
    for i in range(40):
        for stream in (graph, plain):
            stream.dense = i % 4 < 2
            stream._intake.due = lambda config, i=i: i < FULL or i % 2 == 0
        same(graph.step(image(i)), plain.step(image(i)))
    assert set(graph._graph._recorded) == {(True, True), (True, False), (False, True), (False, False)}
    assert graph.status.frames_taken_in == plain.status.frames_taken_in == FULL + 18
    for mine, theirs in zip(graph._cache.layers, plain._cache.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.tensors.values(), theirs.tensors.values(), strict=True))


def test_a_kind_of_step_that_cannot_be_recorded_leaves_those_that_are(model):
    replayed = []

    class WithDepth(Repeated):
        def __init__(self, model, images, cache, dense):
            super().__init__(model, images, cache, dense)
            if not dense:
                raise RuntimeError("CUDA out of memory")

        def replay(self, images):
            replayed.append(i)
            return super().replay(images)

    graph, plain = stream_of(model, WithDepth), stream_of(model)
    begin = FULL + WARM
    for i in range(begin + 12):
        for stream in (graph, plain):
            stream.dense = i < begin or i % 2 == 0
        np.testing.assert_array_equal(graph.step(image(i)).depth, plain.step(image(i)).depth)
    assert replayed == [i for i in range(begin, begin + 12) if i % 2 == 0]


def test_a_frame_is_its_own(model):
    """Also where the next step overwrites what it was made of."""
    stream = stream_of(model, Repeated)
    frames = [stream.step(image(i)) for i in range(FULL + WARM + 3)]
    depth = frames[-1].depth.copy()
    stream.step(image(99))
    np.testing.assert_array_equal(frames[-1].depth, depth)


CHANGES = {
    "bits": lambda stream: stream.reconfigure(replace(SMALL, key_bits=4)),
    "policy": lambda stream: stream.reconfigure(replace(SMALL, policy="xstream")),
    "budget": lambda stream: stream.reconfigure(replace(SMALL, budget_tokens=4 * TOKENS)),
    "window": lambda stream: stream.reconfigure(replace(SMALL, camera_window=4)),
    "limit": lambda stream: stream.limit(0.7),
    "reset": lambda stream: stream.reset("for a test"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_recorded_anew(model, change):
    graph, plain = both(model)
    for i in range(30):
        if i in (10, 20):
            assert recorded(graph)
            for stream in (graph, plain):
                CHANGES[change](stream) if i == 10 else stream.reconfigure(SMALL)
        same(graph.step(image(i)), plain.step(image(i)))
        assert recorded(graph) or i < FULL + WARM or i % 10 < FULL + WARM + 2
    assert recorded(graph)


def test_images_of_another_size_and_a_chunk_cut_short_are_no_matter(model):
    graph, plain = both(model, chunk=2, budget_tokens=8 * TOKENS)
    for stream in (graph, plain):
        frames = [frame for i in range(20) for frame in stream.take(image(i))]
        frames += [*stream.take(image(20)), *stream.flush()]
        frames += [frame for i in range(20) for frame in stream.take(image(i))]
        for i in range(24):
            try:
                frames += stream.take(image(i, height=160))
            except ValueError:
                assert i < 2
        stream.all = frames
    assert len(graph.all) == 63 and recorded(graph)
    for mine, theirs in zip(graph.all, plain.all, strict=True):
        same(mine, theirs)


def test_an_image_that_is_left_out_is_left_out(model, monkeypatch):
    graph, plain = both(model)
    for i in range(FULL + WARM + 2):
        same(graph.step(image(i)), plain.step(image(i)))
    for stream in (graph, plain):
        frames = stream._frames
        with monkeypatch.context() as patched, pytest.raises(NotFinite):
            patched.setattr(stream, "_frames", lambda *args, f=frames: spoiled(*f(*args)))
            stream.step(image(50))
    for i in range(FULL + WARM + 4):
        same(graph.step(image(i)), plain.step(image(i)))
    assert recorded(graph)


def spoiled(T_first_model, frames):
    return T_first_model, [replace(frame, depth=frame.depth * np.float32(np.nan)) for frame in frames]


def test_what_fails_while_it_is_recorded_costs_nothing_and_is_said_once(model):
    class Failing:
        def __init__(self, model, images, cache, dense):
            try:
                Repeated(model, images, cache, dense)  # the host's part of a step
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore of it")
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    graph, plain = stream_of(model, Failing), stream_of(model)
    events = []
    for i in range(FULL + WARM + 5):
        mine, theirs = graph.step(image(i)), plain.step(image(i))
        events.append(mine.status.event)
        np.testing.assert_array_equal(mine.depth, theirs.depth)
        assert mine.status.evicted_tokens == theirs.status.evicted_tokens
    said = "steps are not recorded as a CUDA graph: CUDA error: operation not permitted when stream is capturing"
    assert events == [""] * (FULL + WARM) + [said] + [""] * 4


def test_without_a_gpu_there_is_no_graph_and_whoever_insists_is_told(model):
    assert stream_of(model)._graph.why_not == "needs a CUDA device, this is cpu"
    assert stream_of(model, config=replace(CONFIG, compile="none"))._graph.why_not == "compile is none"
    with pytest.raises(ValueError, match="compile graph needs a CUDA device, this is cpu; use compile:=auto"):
        stream_of(model, config=replace(CONFIG, compile="graph"))


# --- on a GPU -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("bits", [16, 4, 2])
@pytest.mark.parametrize("policy", REPEATING)
def test_on_a_gpu_a_graph_gives_what_a_stream_without_does(policy, bits):
    config = replace(CONFIG, device="cuda", cache=replace(SMALL, policy=policy, key_bits=bits, value_bits=bits))
    model = load_model(config)
    graph, plain = (GeometryStream(replace(config, compile=name), model) for name in ("graph", "none"))
    for i in range(FULL + WARM + 6):
        mine, theirs = graph.step(image(i)), plain.step(image(i))
        np.testing.assert_allclose(mine.depth, theirs.depth, rtol=1e-4)
        np.testing.assert_allclose(mine.T_first_cam, theirs.T_first_cam, atol=1e-4)
        assert mine.status.event == "" and mine.status.seconds.keys() == theirs.status.seconds.keys()
    assert isinstance(graph._graph._recorded[True, True], Recorded)
