# SPDX-License-Identifier: Apache-2.0
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from xsvggt_ros.cache.camera_cache import CameraCache
from xsvggt_ros.cli import main
from xsvggt_ros.config import CacheConfig, StreamConfig
from xsvggt_ros.geometry import decode_pose, inverse
from xsvggt_ros.model import load_model
from xsvggt_ros.model.attention import WholeSequence, sdpa
from xsvggt_ros.model.config import MODELS, TrackConfig
from xsvggt_ros.stream import cache_shape
from xsvggt_ros.training import lessons, losses, network
from xsvggt_ros.training import trainer as trainer_module
from xsvggt_ros.training.attention import CausalFrames, matmul_attention
from xsvggt_ros.training.losses import depth_loss, motion_loss, points_loss, pose_loss
from xsvggt_ros.training.network import Bounded, Budget, new_model, streamed_poses, whole_poses
from xsvggt_ros.training.rendering import Request, draw, held_out_batch, shoot
from xsvggt_ros.training.run import Run
from xsvggt_ros.training.supervision import Matches
from xsvggt_ros.training.trainer import Trainer, export
from xsvggt_ros.training.validation import errors

CPU = torch.device("cpu")
WIDTH, HEIGHT, PATCH = 112, 84, 14
GRID = (HEIGHT // PATCH, WIDTH // PATCH)


@pytest.fixture(scope="module", params=[False, True], ids=["as rendered", "mirrored"])
def batch(request):
    return shoot(draw(Request(3, 3, 4, WIDTH, HEIGHT)), CPU, mirrored=request.param)


def run_in(folder, steps=6, **changes):
    return Run(folder, "demo", steps, 56, 42, CPU, **changes)


@pytest.fixture
def short_sequences(monkeypatch):
    monkeypatch.setattr(trainer_module, "CURRICULUM", ((0.0, ((2, 2),)), (0.5, ((1, 3), (1, 4)))))
    monkeypatch.setattr(trainer_module, "LOG_EVERY", 1)
    monkeypatch.setattr(trainer_module, "VALIDATE_EVERY", 3)
    monkeypatch.setattr(lessons, "HELD_OUT_SEEDS", range(900_000, 900_001))
    monkeypatch.setattr(lessons, "HELD_OUT_FRAMES", 2)


def test_a_batch_is_the_same_every_time_and_no_other(batch):
    again = shoot(draw(Request(3, 3, 4, WIDTH, HEIGHT)), CPU)
    other = shoot(draw(Request(4, 3, 4, WIDTH, HEIGHT)), CPU)
    mirrored = shoot(draw(Request(3, 3, 4, WIDTH, HEIGHT)), CPU, mirrored=True)
    assert any(torch.equal(batch.images, b.images) for b in (again, mirrored))
    assert torch.equal(again.images.flip(1, -1), mirrored.images)
    assert not torch.allclose(again.images, other.images, atol=0.1)


def test_the_first_camera_is_the_world_and_the_mean_distance_the_unit(batch):
    points = batch.point_maps()
    assert torch.allclose(batch.T_first_cam[:, 0], torch.eye(4), atol=1e-6)
    assert torch.allclose(points[:, 0].norm(dim=-1).mean((1, 2)), torch.ones(3), atol=1e-5)
    assert torch.allclose(points[:, 0, ..., 2], batch.depth[:, 0], atol=1e-5)


def test_pose_encodings_are_those_of_the_poses(batch):
    lenses = batch.intrinsics.repeat_interleave(batch.pose.shape[1], 0)
    for pose, T, lens in zip(batch.pose.flatten(0, 1).numpy(), batch.T_first_cam.flatten(0, 1), lenses, strict=True):
        decoded, K = decode_pose(pose, HEIGHT, WIDTH)
        np.testing.assert_allclose(inverse(decoded), T, atol=1e-5)
        np.testing.assert_allclose(K, lens, rtol=1e-5)


def test_matching_patches_show_the_same_place(batch):
    """By colour, which knows nothing of poses and depth: matches differ less than patches paired at random."""
    matches = Matches(batch, GRID, PATCH)
    patches = torch.nn.functional.avg_pool2d(batch.images.flatten(0, 1), PATCH).flatten(2).mT.unflatten(0, (3, 4))
    there = torch.einsum("btsnm,bsmc->btsnc", matches.target, patches)  # interpolated at the place in frame s
    difference = (patches[:, :, None] - there).abs().mean(-1)
    at_random = (patches[:, :, None] - there.roll(7, 3)).abs().mean(-1)
    assert matches.weight.sum() > 100
    assert (difference * matches.weight).sum() < 0.6 * (at_random * matches.weight).sum()


def test_matches_of_a_camera_that_stands_still():
    batch = held_out_batch(range(2), frames=2, interval=1e-6, width=WIDTH, height=HEIGHT, device=CPU)
    matches = Matches(batch, GRID, PATCH)
    n = GRID[0] * GRID[1]
    torch.testing.assert_close(matches.target[:, 1, 0], torch.eye(n).expand(2, n, n), atol=1e-2, rtol=0)
    assert matches.weight[:, 1, 0].mean() > 0.95 and not matches.weight[:, 0].any()  # the first frame sees none before
    sharp = 50 * torch.eye(n).expand(2, 2, n, n)
    assert matches.loss(sharp, sharp) < 0.1 < matches.loss(sharp.roll(1, 2), sharp)


def test_losses_are_least_at_the_truth(batch):
    truth = batch.pose.expand(4, *batch.pose.shape)
    other_sign = torch.cat([truth[..., :3], -truth[..., 3:7], truth[..., 7:]], -1)
    assert pose_loss(truth, batch.pose) == pose_loss(other_sign, batch.pose) == 0
    assert pose_loss(truth + 0.1, batch.pose) > 0.1
    one = torch.ones_like(batch.depth)
    assert depth_loss(batch.depth, one, batch.depth) == 0
    assert depth_loss(batch.depth * 1.5, one, batch.depth).item() == pytest.approx(np.log(1.5), rel=1e-4)
    points = batch.point_maps()
    assert points_loss(points, one, points) == 0
    # Confidence pays where the error is below 0.1 and costs where it is above.
    assert depth_loss(batch.depth * 1.05, 1.5 * one, batch.depth) < depth_loss(batch.depth * 1.05, one, batch.depth)
    assert depth_loss(batch.depth * 1.2, 1.5 * one, batch.depth) > depth_loss(batch.depth * 1.2, one, batch.depth)


def test_motion_counts_where_it_comes_in(batch, monkeypatch):
    monkeypatch.setattr(losses, "APART", 1)
    assert motion_loss(batch.pose, batch.pose) == pytest.approx(0, abs=1e-4)
    late, once = batch.pose.clone(), batch.pose.clone()
    late[:, 2:, :3] += batch.pose.new_tensor([0.3, 0, 0])  # all cameras from the third on stand further left
    once[:, 2, :3] += batch.pose.new_tensor([0.3, 0, 0])
    assert 0.1 < motion_loss(late, batch.pose) < motion_loss(once, batch.pose)


@pytest.mark.parametrize(("sweeps", "tolerance"), [(network.SWEEPS, 1e-3), (24, 1e-5)])
def test_poses_are_trained_as_a_stream_computes_them(monkeypatch, sweeps, tolerance):
    monkeypatch.setattr(network, "SWEEPS", sweeps)
    model = new_model(MODELS["demo"], seed=0)
    head = model.camera_head
    torch.nn.init.normal_(head.pose_branch.fc2.weight, std=0.02)
    head.pose_branch.fc2.bias.data[7:] = 2.0  # fields of view stay positive: the activation has no part in this
    tokens = torch.randn(1, 6, 384, generator=torch.manual_seed(0))
    shape = cache_shape(model.config, 84, 112, torch.float32, torch.float32)
    cache = CameraCache(shape, CacheConfig(), CPU, sdpa)
    streamed = []
    with torch.no_grad():
        for frame in range(6):
            streamed.append(head(tokens[:, frame : frame + 1], cache))
            cache.end_frames(1)
    trained = streamed_poses(head, tokens)
    torch.testing.assert_close(trained, torch.cat(streamed, 2), rtol=1e-4, atol=tolerance)
    assert trained.std(2).mean() > 1e-3  # not all the same, which would prove nothing


def test_poses_of_a_teacher_are_those_of_the_whole_sequence():
    model = new_model(MODELS["demo"], seed=0)
    torch.nn.init.normal_(model.camera_head.pose_branch.fc2.weight, std=0.02)
    model.camera_head.pose_branch.fc2.bias.data[7:] = 2.0
    tokens = torch.randn(2, 5, 384, generator=torch.manual_seed(0))
    trained = whole_poses(model.camera_head, tokens)
    torch.testing.assert_close(trained, model.camera_head(tokens, WholeSequence(sdpa)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_only_a_teacher_sees_what_comes_later(causal):
    model = new_model(MODELS["demo"], seed=0)
    torch.nn.init.normal_(model.camera_head.pose_branch.fc2.weight, std=0.02)
    images = torch.rand(1, 3, 3, 42, 56, generator=torch.manual_seed(0))
    other = torch.cat([images[:, :2], images[:, :1]], 1)
    first = torch.tensor([0, 1])
    with torch.no_grad():
        one, two = (network.run(model, x, first, causal=causal).predictions for x in (images, other))
    assert torch.equal(one.pose[:, :2], two.pose[:, :2]) == causal
    assert torch.equal(one.depth, two.depth) == causal


def test_a_past_without_bounds_is_the_whole_past(monkeypatch):
    monkeypatch.setattr(network, "CODE_ERRORS", (0.0, 0.0))
    q, k, v = torch.randn(3, 2, 5 * 7, 3, 16, generator=torch.manual_seed(0))
    everything = Bounded(matmul_attention, 7, Budget(frames=5, seed=0)).attend(0, q, k, v)
    torch.testing.assert_close(everything, WholeSequence(matmul_attention, 7).attend(0, q, k, v))


def test_what_a_bounded_past_keeps(monkeypatch):
    """With values that tell tokens apart: as many as the budget has, the first and the own frame's all, none anew."""
    monkeypatch.setattr(network, "CODE_ERRORS", (0.0, 0.0))
    frames, size, budget = 9, 7, 2
    q = torch.zeros(1, frames * size, 1, frames * size)
    v = torch.eye(frames * size)[None, :, None]
    seen = Bounded(matmul_attention, size, Budget(budget, seed=0)).attend(0, q, q, v)[0, :, 0]
    before: set[int] = set()
    for frame in range(frames):
        weights = seen[frame * size]
        kept = {i for i in range(size, frame * size) if weights[i] > 1e-3}
        assert len(kept) <= budget * size and (frame <= budget or len(kept) == budget * size)
        assert kept <= before | set(range((frame - 1) * size, frame * size))
        assert weights[: frame * size].sum() == pytest.approx(frame / (frame + 1), abs=1e-3)  # as of all that were
        before = kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_is_trained_in_the_type_that_the_machine_is_fast_in(monkeypatch, dtype):
    monkeypatch.setattr(network, "compute_dtype", lambda name, device: dtype)
    images = torch.rand(1, 2, 3, 42, 56, generator=torch.manual_seed(0))
    model, types = new_model(MODELS["demo"], seed=0), set()
    model.aggregator.global_blocks[0].attn.qkv.register_forward_hook(lambda layer, x, y: types.add(y.dtype))
    network.run(model, images, torch.tensor([1]))
    assert types == {dtype}


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="needs a PyTorch with Muon")
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, True), (torch.bfloat16, False)])
def test_optimizers_too_compute_in_that_type(monkeypatch, dtype, exact):
    """Muon moves a matrix along its gradient's singular vectors: how exactly shows the type of its products."""
    monkeypatch.setattr(network, "compute_dtype", lambda name, device: dtype)
    weights = torch.nn.Parameter(torch.zeros(24, 16))
    weights.grad = torch.randn(24, 16, generator=torch.manual_seed(0))
    network.update([torch.optim.Muon([weights], lr=1.0, momentum=0, nesterov=False)], CPU)
    u, _, vh = torch.linalg.svd(weights.grad, full_matrices=False)
    moved = u.T @ weights.detach() @ vh.T
    aside = (moved - moved.diag().diag()).abs().max() / moved.abs().max()
    assert (aside < 1e-4) == exact


def test_attention_by_plain_products():
    q, k, v = torch.randn(3, 2, 7, 3, 16, generator=torch.manual_seed(0))
    torch.testing.assert_close(matmul_attention(q, k, v), sdpa(q, k, v))


def test_attention_of_frames_to_those_before_and_its_gradients():
    """As autograd has them of the plain way."""
    attended, moved = [], torch.randn(2, 15, 3, 8, generator=torch.manual_seed(1))
    for context in (CausalFrames(5), WholeSequence(sdpa, 5)):
        leaves = [x.requires_grad_() for x in torch.randn(3, 2, 15, 3, 8, generator=torch.manual_seed(0)).unbind()]
        out = context.attend(0, *leaves)
        out.backward(moved)
        attended.append([out, *(x.grad for x in leaves)])
    torch.testing.assert_close(*attended)


def test_matches_of_the_frames_that_are_asked(batch):
    everything, one = Matches(batch, GRID, PATCH), Matches(batch, GRID, PATCH, torch.tensor([2]))
    queries, keys = torch.randn(2, *everything.points.shape[:3], 8, generator=torch.manual_seed(0))
    everything.weight[:, [0, 1, 3]] = 0
    torch.testing.assert_close(one.loss(queries, keys), everything.loss(queries, keys))
    assert one.target.shape[1] == 1


def test_errors_of_a_perfect_and_of_a_still_prediction(batch):
    perfect = errors(batch.depth, batch.pose, batch)
    assert perfect["abs_rel"] == 0 and perfect["delta_125"] == 1
    assert max(perfect[name] for name in ("rotation", "centre", "adjacent_rotation")) < 0.05
    still = errors(2 * batch.depth, batch.pose[:, :1].expand_as(batch.pose), batch)
    assert still["abs_rel"] == pytest.approx(1) and still["centre"] == pytest.approx(1, abs=1e-4)
    assert still["adjacent_rotation"] == pytest.approx(still["adjacent_motion"], rel=1e-3)


def test_the_loss_falls_and_the_export_loads(short_sequences, tmp_path):
    trainer = Trainer(run_in(tmp_path))
    fixed = shoot(draw(Request(0, 2, 2, 56, 42)), CPU)
    with torch.no_grad():
        before = trainer.losses([fixed])
    assert list(trainer.train()) == [1, 2, 3, 4, 5, 6]
    with torch.no_grad():
        after = trainer.losses([fixed])
    assert sum(after.values()) < 0.9 * sum(before.values())
    export(trainer.averaged, tmp_path / "model.safetensors")
    config = StreamConfig(weights=str(tmp_path / "model.safetensors"), dtype="float32")
    loaded = load_model(config, heads=("point",)).state_dict()
    assert loaded.keys() == trainer.averaged.state_dict().keys()
    for name, tensor in trainer.averaged.state_dict().items():
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-3, atol=1e-4)
    assert (tmp_path / "validation.csv").read_text().count("\n") == 3  # header, steps 3 and 6


def test_a_run_goes_on_as_if_it_had_not_been_interrupted(short_sequences, tmp_path):
    whole = Trainer(run_in(tmp_path / "whole"))
    list(whole.train())
    parts = Trainer(run_in(tmp_path / "parts"))
    for step in parts.train():
        parts.stop = step == 2  # takes effect after one more, when all workers know
    assert parts.step == 3
    parts = Trainer(run_in(tmp_path / "parts"))
    assert parts.step == 3 and list(parts.train()) == [4, 5, 6]
    for one, other in ((whole.model, parts.model), (whole.averaged, parts.averaged)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name


def test_a_seed_is_another_run(short_sequences, tmp_path):
    trainers = [Trainer(run_in(tmp_path / str(i), seed=n)) for i, n in enumerate((0, 0, 1))]
    seen = []
    same = [shoot(draw(Request(0, 2, 2, 56, 42)), CPU)]
    for trainer in trainers:
        trainer.lessons = SimpleNamespace(training=lambda number, *_: seen.append(number) or same)
    once, again, other = (trainer.train_step() for trainer in trainers)
    assert once == again
    assert all(once[name] != other[name] for name in ("pose", "depth", "points"))  # by other weights
    assert seen[0] == seen[1] != seen[2]


def test_a_run_goes_on_as_it_was_begun_or_not_at_all(short_sequences, tmp_path):
    Trainer(run_in(tmp_path)).save()
    with pytest.raises(ValueError, match="begun with seed 0, not 1: give the same, or another --output"):
        Trainer(run_in(tmp_path, seed=1))
    assert Trainer(run_in(tmp_path, steps=7)).run.steps == 7


def test_a_step_without_finite_gradients_changes_nothing(short_sequences, tmp_path, monkeypatch):
    trainer = Trainer(run_in(tmp_path))
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    losses = trainer.losses
    monkeypatch.setattr(trainer, "losses", lambda *given: {n: x * torch.nan for n, x in losses(*given).items()})
    trainer.train_step()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.model.state_dict().items())
    monkeypatch.setattr(trainer_module, "MOST_LOST", 1)
    with pytest.raises(ValueError, match="gradients of 2 steps in a row are not finite"):
        trainer.train_step()


def test_a_larger_network_sees_shorter_sequences(short_sequences, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "MOST_TOKENS", 17 * 3)
    assert Trainer(run_in(tmp_path))._batch_shape(0.6, 0)[1] == 3
    assert Trainer(run_in(tmp_path, batch=5))._batch_shape(0.6, 0)[0] == 5


def test_points_are_followed_through_short_sequences(short_sequences, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "CURRICULUM", ((0.0, ((1, 2),)), (0.3, ((1, 96),))))
    trainer = Trainer(run_in(tmp_path))
    trainer.run = replace(trainer.run, tracks=True)
    assert trainer._batch_shape(0.1, 0) == (1, 2)
    assert trainer._batch_shape(0.9, 0) == (1, trainer_module.MOST_TRACKED)


def test_a_track_head_that_nothing_has_trained_is_not_exported(short_sequences, tmp_path, monkeypatch):
    sizes = TrackConfig(8, (8, 8, 16, 16), iterations=1, corr_levels=1, corr_radius=1, width=16, layers=1, heads=2)
    monkeypatch.setitem(MODELS, "demo", replace(MODELS["demo"], track=sizes))
    assert Trainer(run_in(tmp_path / "without")).model.track_head is None
    without = tmp_path / "without.safetensors"
    export(Trainer(run_in(tmp_path / "without")).model, without)
    with_head = Trainer(run_in(tmp_path / "with", init=without, tracks=True))
    export(with_head.model, tmp_path / "with.safetensors")
    goes_on = Trainer(run_in(tmp_path / "on", init=tmp_path / "with.safetensors")).model.track_head
    for one, other in zip(goes_on.parameters(), with_head.model.track_head.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_teachers_confidence_weighs_errors_and_is_learned():
    depth, truth = torch.ones(1, 8, 8), torch.ones(1, 8, 8)
    truth[0, 0, 0] = 2.0
    sure_there, sure_elsewhere = torch.ones(1, 8, 8), torch.full((1, 8, 8), 5.0)
    sure_there[0, 0, 0], sure_elsewhere[0, 0, 0] = 5.0, 1.0
    heavy = depth_loss(depth, sure_there, truth, sure_there)
    light = depth_loss(depth, sure_elsewhere, truth, sure_elsewhere)
    assert heavy > light
    assert depth_loss(truth, sure_there, truth, sure_there) == 0 < depth_loss(truth, 2 * sure_there, truth, sure_there)


def test_weights_to_start_from(short_sequences, tmp_path):
    first = Trainer(run_in(tmp_path / "first", steps=1))
    list(first.train())
    export(first.model, tmp_path / "first.safetensors")
    second = Trainer(run_in(tmp_path / "second", init=tmp_path / "first.safetensors"))
    for name, tensor in first.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_another_run_to_start_from(short_sequences, tmp_path):
    first = Trainer(run_in(tmp_path / "first", steps=2))
    list(first.train())
    second = Trainer(run_in(tmp_path / "second", init=first.run.checkpoint, seed=1))
    assert second.step == 0
    for one, other in ((first.averaged, second.model), (first.supervision, second.supervision)):
        for name, tensor in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name


def test_a_checkpoint_of_an_earlier_version_is_only_begun_from(short_sequences, tmp_path, caplog):
    first = Trainer(run_in(tmp_path / "first"))
    first.save()
    state = torch.load(first.run.checkpoint)
    state["average"] = state.pop("latest")
    state["supervision"]["sharpness"] = torch.zeros(2)
    torch.save(state, first.run.checkpoint)
    with pytest.raises(ValueError, match="is of an earlier version: begin another --output with --init and this file"):
        Trainer(run_in(tmp_path / "first"))
    second = Trainer(run_in(tmp_path / "second", init=first.run.checkpoint, seed=1))
    assert "its training-only heads are of another version, and begin anew" in caplog.text
    weight = "aggregator.camera_token"
    torch.testing.assert_close(second.model.state_dict()[weight], state["model"][weight])


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--width", "100"], "multiples of 14"),
        (["--steps", "0"], "at least 1"),
        (["--rate", "0"], "rate must be above 0"),
        (["--batch", "41"], "batch must be at most 40"),
        (["--tracks", "--init", "x", "--model", "small"], "needs a model that has a track head"),
        (["--tracks", "--init", "x", "--model", "streamvggt"], "images at least 128 wide and 256 high"),
        (["--seed", "1000"], "seed must be from 0 to 999"),
        (["--device", "cuda:99"], "device cuda:99 cannot be used"),
        (["--init", "no/such.safetensors", "--workers", "1"], "no weights file"),
        (["--data", "images"], "give a --teacher"),
        (["--no-truth"], "give a --teacher"),
    ],
)
def test_bad_settings(flags, reason, tmp_path, capsys):
    assert main(["train", "--output", str(tmp_path), *flags]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.slow
def test_two_workers_stop_together_when_the_first_is_told_to(tmp_path):
    """In a process of its own, as a user would run it; the second worker hears nothing of the signal."""
    command = [sys.executable, "-m", "xsvggt_ros.cli", "train", "--output", tmp_path, "--width", "28", "--height", "28"]
    process = subprocess.Popen([*command, "--workers", "2"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        progress = ""
        while "1/10000" not in progress:
            character = process.stderr.read(1)
            assert character, progress
            progress += character
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "of 10000" in out
    assert {path.name for path in tmp_path.iterdir()} >= {"checkpoint.pt", "model.safetensors"}


def test_noise_keeps_the_dtype_where_autocast_computes_norms_in_float32(monkeypatch):
    """As on CUDA."""
    norm = torch.Tensor.norm
    monkeypatch.setattr(torch.Tensor, "norm", lambda x, *given, **named: norm(x.float(), *given, **named))
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    noisy = network._noisy(x, 0.5, torch.Generator().manual_seed(1))
    assert noisy.dtype == torch.bfloat16 and not torch.equal(noisy, x)
