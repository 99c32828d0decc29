# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import torch
from support.caches import CPU, cache_of
from torch.profiler import ProfilerActivity, profile

from xsvggt_ros.cache import KVCache
from xsvggt_ros.config import CacheConfig, StreamConfig
from xsvggt_ros.model import StreamVGGT, load_model, loading
from xsvggt_ros.model.attention import MANY, WholeSequence, attention_backend, flash, matmul_by_head, sdpa
from xsvggt_ros.model.config import MODELS, TrackConfig
from xsvggt_ros.model.dpt_head import uv_embedding
from xsvggt_ros.model.loading import RANDOM, compute_dtype
from xsvggt_ros.stream import cache_shape

EXACT = CacheConfig(policy="full", key_bits=16, value_bits=16, camera_window=0)


@pytest.fixture(scope="module")
def model() -> StreamVGGT:
    return load_model(StreamConfig(weights=RANDOM, dtype="float32"), heads=("point",))


def images(frames: int, height: int = 84, width: int = 112) -> torch.Tensor:
    return torch.rand(1, frames, 3, height, width, generator=torch.Generator().manual_seed(0))


def cache_for(model: StreamVGGT, frames: torch.Tensor, config: CacheConfig = EXACT) -> KVCache:
    rows, columns = model.grid(frames)
    return cache_of(cache_shape(model.config, 14 * rows, 14 * columns, torch.float32, torch.float32), config)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(84, 112), (56, 70), (112, 112)])
def test_an_unbounded_exact_cache_equals_the_whole_sequence(model, size):
    frames = images(5, *size)
    whole = model(frames)
    cache = cache_for(model, frames)
    for t in range(5):
        step = model.step(frames[0, t : t + 1], cache)
        cache.end_frames(1)
        for name in ("depth", "depth_confidence", "points", "points_confidence"):
            torch.testing.assert_close(getattr(step, name)[:, 0], getattr(whole, name)[:, t], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_frames_of_a_chunk_see_each_other_and_all_before(model, chunk):
    """Streamed in chunks, the last of them shorter, equals the whole sequence masked by chunks."""
    frames = images(5)
    grid, inside = model.grid(frames), WholeSequence(model.kernel)
    patches = model.aggregator.encode(frames[0], inside)
    x = model.aggregator.with_specials(patches[None], starts=True)
    taps = model.aggregator(x, grid, inside, WholeSequence(model.kernel, chunk * x.shape[2]))
    whole = model.dense(taps, grid, model.camera_head(taps[-1][:, :, 0], WholeSequence(sdpa, chunk)))
    cache = cache_for(model, frames, replace(EXACT, chunk=chunk, camera_passes="apart"))
    steps = []
    for new in frames[0].split(chunk):
        steps.append(model.step(new, cache))
        cache.end_frames(len(new))
    for name in ("pose_iterations", "depth", "depth_confidence", "points", "points_confidence"):
        across = 2 if name == "pose_iterations" else 1
        streamed = torch.cat([getattr(step, name) for step in steps], across)
        torch.testing.assert_close(streamed, getattr(whole, name), rtol=1e-4, atol=2e-5)


@torch.inference_mode()
def test_passes_apart_give_the_poses_of_the_whole_sequence_and_shared_do_not(model):
    frames = images(4)
    poses = {}
    for passes in ("apart", "shared"):
        cache = cache_for(model, frames, replace(EXACT, camera_passes=passes))
        poses[passes] = []
        for t in range(4):
            poses[passes].append(model.step(frames[0, t : t + 1], cache).pose_iterations)
            cache.end_frames(1)
    whole = model(frames).pose_iterations
    torch.testing.assert_close(torch.cat(poses["apart"], 2), whole, rtol=1e-4, atol=2e-5)
    assert (torch.cat(poses["shared"], 2) - whole).abs().max() > 1e-3


@torch.inference_mode()
def test_a_frame_does_not_see_the_future_and_does_see_the_past(model):
    frames = images(4)
    other_end = torch.cat([frames[:, :3], 1 - frames[:, 3:]], dim=1)
    other_start = torch.cat([1 - frames[:, :1], frames[:, 1:]], dim=1)
    depth = model(frames).depth[:, :3]
    torch.testing.assert_close(model(other_end).depth[:, :3], depth)
    assert (model(other_start).depth[:, 2] - depth[:, 2]).abs().max() > 1e-4
    assert (model(other_end, causal=False).depth[:, 0] - model(frames, causal=False).depth[:, 0]).abs().max() > 1e-4


@torch.inference_mode()
def test_sequences_of_a_batch_do_not_mix(model):
    both = torch.cat([images(3), images(3).flip(1)])
    together = model(both)
    for b in range(2):
        torch.testing.assert_close(together.depth[b], model(both[b : b + 1]).depth[0], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_tracks_of_a_batch_do_not_mix():
    track = TrackConfig(features=8, out_channels=(8, 8, 16, 16), iterations=2, corr_levels=3, corr_radius=2, width=48)
    torch.manual_seed(0)
    model = StreamVGGT(replace(MODELS["demo"], track=track), heads=("track",)).eval()
    both = torch.cat([images(3), images(3).flip(1)])
    points = torch.tensor([[[10.0, 20.0]], [[30.0, 40.0]]])
    together = model(both, query_points=points).tracks
    for b in range(2):
        alone = model(both[b : b + 1], query_points=points[b : b + 1]).tracks
        torch.testing.assert_close(together[b], alone[0], rtol=1e-3, atol=1e-3)


def test_heads_that_are_not_needed_are_not_there():
    small = load_model(StreamConfig())
    assert small.point_head is None and small.track_head is None
    with pytest.raises(ValueError, match="track head"):
        small(images(1).bfloat16(), query_points=torch.zeros(1, 1, 2))


def test_random_weights_are_the_same_every_time():
    first, second = (load_model(StreamConfig(weights=RANDOM)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_nothing_is_left_uninitialised():
    model = load_model(StreamConfig(weights=RANDOM, dtype="float32"), heads=("point",))
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all() and tensor.abs().max() < 10, name


def test_sides_must_be_multiples_of_the_patch(model):
    with pytest.raises(ValueError, match="multiples of 14"):
        model(images(1, 84, 100))


@pytest.mark.parametrize("kernel", [sdpa, matmul_by_head])
def test_attention_kernels_are_softmax_attention(kernel):
    q, k, v = (torch.randn(2, n, 3, 16, dtype=torch.float64) for n in (MANY + 1, 300, 300))
    scores = torch.einsum("bthd,bnhd->bhtn", q, k) / 4
    expected = torch.einsum("bhtn,bnhd->bthd", scores.softmax(-1), v)
    torch.testing.assert_close(kernel(q, k, v), expected)


@pytest.mark.parametrize("kernel", [sdpa, matmul_by_head, flash])
@pytest.mark.parametrize("queries", [7, MANY + 1])
def test_a_bias_repeats_keys_and_hides_them(kernel, queries):
    """log n is as if a key were there n times, -inf as if it were not there."""
    q, k, v = (torch.randn(1, n, 2, 16, dtype=torch.float64) for n in (queries, 30, 30))
    bias = torch.zeros(2, 30, dtype=torch.float64)
    bias[0, 3], bias[1, 5] = math.log(4), -math.inf
    out = kernel(q, k, v, bias)
    times = torch.tensor([[4 if j == 3 else 1 for j in range(30)], [0 if j == 5 else 1 for j in range(30)]])
    for head in range(2):
        one = slice(head, head + 1)
        repeated = (x[:, :, one].repeat_interleave(times[head], 1) for x in (k, v))
        torch.testing.assert_close(out[:, :, one], sdpa(q[:, :, one], *repeated))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_with_a_bias_is_one_fused_kernel_too(dtype):
    """Which keeps no logits of all queries and keys."""
    q, k, v = torch.randn(3, 1, 40, 2, 64, dtype=dtype)
    for bias in (None, torch.zeros(2, 40)):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            sdpa(q, k, v, bias)
        assert any("flash_attention" in event.key for event in profiled.key_averages())


def test_frame_causal_is_a_block_triangular_mask():
    q, k, v = torch.randn(3, 1, 12, 2, 8)
    frame = torch.arange(12) // 4
    scores = torch.einsum("bthd,bnhd->bhtn", q, k) / 8**0.5
    scores = scores.masked_fill(frame[:, None] < frame, float("-inf"))
    expected = torch.einsum("bhtn,bnhd->bthd", scores.softmax(-1), v)
    torch.testing.assert_close(WholeSequence(sdpa, 4).attend(0, q, k, v), expected)


def test_flash_attention_that_cannot_run_says_why():
    with pytest.raises(ValueError, match="needs a CUDA device"):
        attention_backend("flash", CPU, torch.bfloat16)


def test_a_device_that_is_not_there_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="device:=auto"):
        load_model(StreamConfig(device="cuda:99"))
    with pytest.raises(ValueError, match="device:=auto"):
        load_model(StreamConfig(device="toaster"))


@pytest.mark.parametrize(
    ("features", "auto", "warned"),
    [({"amx_tile", "avx512_bf16"}, torch.bfloat16, False), ({"avx512_bf16"}, torch.bfloat16, False),
     (set(), torch.float32, True)],
)  # fmt: skip
def test_bfloat16_is_for_processors_that_have_it(monkeypatch, caplog, features, auto, warned):
    monkeypatch.setattr(loading, "cpu_supports", lambda feature: feature in features)
    assert compute_dtype("auto", CPU) == auto
    assert compute_dtype("float32", CPU) == torch.float32
    assert compute_dtype("bfloat16", torch.device("meta")) == torch.bfloat16
    assert not caplog.messages
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16
    assert ["dtype:=float32 is about 20 times faster" in message for message in caplog.messages] == [True] * warned


def test_precise_parts_stay_float32():
    types = {name: tensor.dtype for name, tensor in load_model(StreamConfig(dtype="bfloat16")).state_dict().items()}
    assert {t for name, t in types.items() if name.startswith("camera_head.")} == {torch.float32}
    assert types["depth_head.scratch.output_conv2.2.weight"] == torch.float32
    assert types["aggregator.global_blocks.0.attn.qkv.weight"] == torch.bfloat16
    assert types["aggregator.camera_token"] == types["aggregator.global_blocks.0.attn.q_norm.weight"] == torch.bfloat16
    summed = [name for name in types if name.startswith("aggregator.") and (".ls" in name or ".norm" in name)]
    assert len(summed) == 4 * 6 + 2 * 6 * 6 + 2 and {types[name] for name in summed} == {torch.float32}


class Noting:
    """The context of tokens that all see each other, which keeps what it is given."""

    def __init__(self):
        self.types, self.additions = set(), []

    def attend(self, layer, q, k, v):
        self.types |= {q.dtype, k.dtype, v.dtype}
        return sdpa(q, k, v)

    def added(self, layer, scale, residual):
        self.additions.append((layer, scale * residual))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_half_precision_is_for_products_and_for_keys_and_not_for_the_residual_stream(name):
    half, context = load_model(StreamConfig(weights=RANDOM, dtype=name)).aggregator, Noting()
    x = half.with_specials(half.encode(images(2)[0], context)[None], starts=True)
    taps = half(x, (6, 8), context, context)
    assert context.types == {getattr(torch, name)}
    assert {x.dtype, *(tap.dtype for tap in taps)} == {torch.float32}


@torch.inference_mode()
def test_a_context_is_told_what_the_mlp_adds(model):
    block, context = model.aggregator.global_blocks[0], Noting()
    x = torch.randn(1, 20, model.config.width, generator=torch.manual_seed(0))
    out = block(x, context, 3)
    ((layer, added),) = context.additions
    assert layer == 3 and added.abs().mean() > 1e-2
    attended = context.attend(3, *block.entering(x, None))
    torch.testing.assert_close(out - added, block.ls1(x, block.attn.proj(attended.flatten(2))))


def test_full_size_steps_on_the_meta_device():
    """Every shape of a full-size budgeted step, without its memory or time."""
    with torch.device("meta"), torch.inference_mode():
        full = StreamVGGT(MODELS["streamvggt"], heads=("point",)).bfloat16()
        full.camera_head.float()
        shape = cache_shape(full.config, 392, 518, torch.bfloat16, torch.float32)
        cache = cache_of(shape, CacheConfig(budget_tokens=2082), torch.device("meta"))
        for _ in range(4):
            prediction = full.step(torch.empty(1, 3, 392, 518), cache)
            cache.end_frames(1)
    assert prediction.depth.shape == (1, 1, 392, 518)
    assert prediction.points.shape == (1, 1, 392, 518, 3)
    assert prediction.pose.shape == (1, 1, 9)
    assert cache.tokens == 2082


def test_a_model_can_be_trained_after_it_has_streamed():
    """Tables made in inference mode must not get into a graph; weights that changed must be seen."""
    network = load_model(StreamConfig(weights=RANDOM, dtype="float32")).requires_grad_(True)
    frames = images(2)
    with torch.inference_mode():
        before = network.step(frames[0, :1], cache_for(network, frames)).depth
    network(frames).depth.log().square().mean().backward()
    with torch.no_grad():
        network.aggregator.patch_embed.pos_embed.add_(1.0)
    with torch.inference_mode():
        assert not torch.equal(network.step(frames[0, :1], cache_for(network, frames)).depth, before)


def test_positions_take_a_row_and_a_column_and_are_at_the_corners_what_the_plane_has_there():
    of_column, of_row = uv_embedding(30, 40, 8, 4 / 3, CPU, torch.float64)
    assert of_column.shape == (1, 8, 1, 40) and of_row.shape == (1, 8, 30, 1)
    assert not of_column[:, 4:].any() and not of_row[:, :4].any()
    for found, half, count in ((of_column[0, :4].flatten(), 0.8, 40), (of_row[0, 4:].flatten(), 0.6, 30)):
        edge = half * (count - 1) / count
        waves = torch.tensor([-edge, -edge / 10], dtype=torch.float64)  # frequencies 1 and 100 ** -1/2
        expected = 0.1 * torch.cat([waves.sin(), waves.cos()])
        torch.testing.assert_close(found.unflatten(0, (4, count))[:, 0], expected, atol=1e-7, rtol=0)
