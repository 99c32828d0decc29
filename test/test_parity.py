# SPDX-License-Identifier: Apache-2.0
"""Runs parity.py on the published code's arrays, and checks that it notices when one is off."""

import json
import shutil

import numpy as np
import parity
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.paths import SHARED

from xsvggt_ros.model import StreamVGGT

GOLDENS = SHARED / "reference/goldens"
needs_goldens = pytest.mark.skipif(not GOLDENS.exists(), reason=f"needs {GOLDENS}")


def run(folder, capsys):
    """(exit status, {case: rest of its line})."""
    status = parity.main([str(folder)])
    return status, dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())


PLAN = parity.plan(GOLDENS)
NOT_COMPARED = ("track_stream", "quant_kcvt", "uvgrid", "act_exp")  # and the camera head's cache pruned by score


@needs_goldens
def test_every_case_of_the_published_arrays_is_run():
    names = {path.parent.name: json.loads(path.read_text()) for path in GOLDENS.rglob("cases.json")}
    assert {f"{folder}/{case}" for folder, cases in names.items() for case in cases} <= PLAN.keys()
    assert all(any(name.startswith(part) for name in PLAN) for part in ("units/", "preprocess/"))


@needs_goldens
@pytest.mark.parametrize("name", PLAN)
@torch.no_grad()
def test_the_package_agrees_with_the_published_code(name):
    case = PLAN[name]()
    if case.skipped:
        own = name.split("/")[1]
        assert own.startswith(NOT_COMPARED) or own.endswith("_cam")
        pytest.skip(case.skipped)
    assert case.checks and case.ok, str(case)


@needs_goldens
def test_a_golden_set_without_a_tracker_is_compared_all_the_same(tmp_path, capsys):
    source, folder = GOLDENS / "openA", tmp_path / "openA"
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    sizes = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(sizes | {"track_head": None}))
    weights = load_file(folder / "weights.safetensors")
    kept = {name: tensor.clone() for name, tensor in weights.items() if not name.startswith("track_head.")}
    save_file(kept, folder / "weights.safetensors")
    status, lines = run(tmp_path, capsys)
    assert status == 0 and "ok" in lines["openA/prune_c100_p16"]
    tracks = {name: rest for name, rest in lines.items() if name.startswith("openA/track_")}
    assert tracks and all(rest.startswith("skipped") for rest in tracks.values())


SIZES = {
    **dict(img_size=56, embed_dim=96, depth=5, num_heads=3, mlp_ratio=2.0, patch_size=14, num_register_tokens=2),
    "patch_embed": dict(depth=1, num_heads=3, mlp_ratio=2),
    "camera_head": dict(trunk_depth=1, num_heads=4, mlp_ratio=2),
    "dpt_head": dict(features=16, out_channels=[8, 16, 24, 24], intermediate_layer_idx=[0, 1, 3, 4]),
    **dict(track_head=None, rope_freq=50),
}
SPECIALS, PATCHES, POOL = 3, 12, 4  # of a frame of 42 x 56
BUDGET = 2 * (SPECIALS + PATCHES) + 7


def published_step(network):
    """Attention of one frame to a past that fills the budget, and what is kept, by the published score's matrix."""
    per_frame, heads = SPECIALS + PATCHES, SIZES["num_heads"]
    x, past_k, past_v = torch.randn(per_frame, 96), *torch.randn(2, heads, BUDGET, 32)
    grid = torch.cartesian_prod(torch.arange(1, 4), torch.arange(1, 5))
    positions = torch.cat([torch.zeros(SPECIALS, 2, dtype=torch.int64), grid])
    attention = network.aggregator.global_blocks[2].attn
    projected = attention.project(x[None], parity.rope_of(positions, 32, SIZES["rope_freq"]))
    q, k, v = (part[0].transpose(0, 1).contiguous() for part in projected)  # [heads, P, d]
    keys, values = torch.cat([past_k, k], 1), torch.cat([past_v, v], 1)
    seen = (q @ keys.transpose(1, 2) / 32**0.5).softmax(-1) @ values
    rows = torch.cat([q[:, :SPECIALS], q[:, SPECIALS:].unflatten(1, (-1, POOL)).mean(2)], 1).mean(0)  # over heads
    scores = (rows @ past_k[:, per_frame:].transpose(1, 2)).mean((0, 1))
    middle = per_frame + scores.topk(BUDGET - 2 * per_frame).indices.sort().values
    kept = torch.cat([torch.arange(per_frame), middle, BUDGET + torch.arange(per_frame)])
    step = dict(x=x, pos=positions, past_k=past_k, past_v=past_v, q=q, k=k, v=v, keep_idx=kept)
    step |= dict(attn_out=seen.transpose(0, 1).flatten(1), new_k=keys[:, kept], new_v=values[:, kept])
    return {f"2.f4.{name}": array.contiguous() for name, array in step.items()}


@pytest.fixture
@torch.no_grad()
def small_set(tmp_path):
    """A golden set of other sizes than the published arrays', without a tracker."""
    torch.manual_seed(0)
    network = StreamVGGT(parity.model_config(SIZES)).eval()
    images = torch.randint(256, (3, 42, 56, 3), dtype=torch.uint8)
    arrays = parity.frame_arrays(network(images.permute(0, 3, 1, 2)[None].float() / 255))
    golden = {"dense_frames": torch.tensor([0, 2])}
    for name, x in arrays.items():
        golden[name] = x if name.startswith("pose") else x[[0, 2]]
        if not name.startswith("pose"):
            golden[f"{name}_frame_mean_f64"] = x.double().flatten(2).mean(2)
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    facts = {"full_causal": {"frames": 3}, "prune_small": {"frames": 3, "cache_size": BUDGET, "pool_size": POOL}}
    (tmp_path / "cases.json").write_text(json.dumps(facts))
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    save_file({"frames3": images}, tmp_path / "inputs.safetensors")
    save_file({name: x.contiguous() for name, x in golden.items()}, tmp_path / "full_causal.safetensors")
    save_file(published_step(network), tmp_path / "steps_prune_small.safetensors")
    return tmp_path


@torch.no_grad()
def test_a_set_of_other_sizes_without_a_tracker_is_compared(small_set):
    plan = parity.plan(small_set)
    for name in ("full_causal", "steps_prune_small"):
        case = plan[f"{small_set.name}/{name}"]()
        assert case.checks and case.ok, str(case)


@needs_goldens
def test_sets_of_one_name_in_two_folders_are_both_compared(one_case, tmp_path, capsys):
    path, arrays = one_case
    arrays["depth"] += 1
    save_file(arrays, path)
    shutil.copytree(path.parent, tmp_path / "later" / path.parent.name)
    shutil.copy(GOLDENS / "openA" / path.name, tmp_path / "later" / path.parent.name)
    status, lines = run(tmp_path, capsys)
    assert status == 1
    assert "FAIL" in lines["openA/prune_c100_p16"]
    assert "ok" in lines["later/openA/prune_c100_p16"]


def test_a_case_without_anything_to_compare_is_a_failure():
    case = parity.Case("openA/empty", [])
    assert not case.ok and "FAIL" in str(case)


def test_nothing_to_compare_is_a_failure(tmp_path, capsys):
    assert parity.main([str(tmp_path)]) == 1
    assert f"no golden case found below {tmp_path}" in capsys.readouterr().out


@pytest.fixture
def one_case(tmp_path):
    """A golden set cut down to one case that prunes; and its arrays, to be changed."""
    source, folder = GOLDENS / "openA", tmp_path / "openA"
    folder.mkdir()
    for name in ("config.json", "weights.safetensors", "inputs.safetensors"):
        shutil.copy(source / name, folder)
    cases = json.loads((source / "cases.json").read_text())
    (folder / "cases.json").write_text(json.dumps({"prune_c100_p16": cases["prune_c100_p16"]}))
    return folder / "prune_c100_p16.safetensors", load_file(source / "prune_c100_p16.safetensors")


@needs_goldens
@pytest.mark.parametrize(
    ("array", "place", "change"),
    [
        ("depth", (1, 20, 20), 1e-4),
        ("world_points", (0, 5, 5, 1), 1e-3),
        ("pose_enc_f64", (7, 3), 1e-4),
        ("depth_frame_mean_f64", (4,), 1e-4),
        ("kept_global", (2, 9, 40), 1),
        ("kept_global", (3, 11, 60), 1),
    ],
)
def test_one_wrong_number_is_noticed(one_case, capsys, array, place, change):
    path, arrays = one_case
    save_file(arrays, path)
    assert run(path.parent, capsys)[0] == 0
    arrays[array][place] += change
    save_file(arrays, path)
    status, lines = run(path.parent, capsys)
    assert status == 1
    assert "FAIL" in lines["openA/prune_c100_p16"]


@needs_goldens
@pytest.mark.parametrize(
    ("array", "case"),
    [
        ("rope32_out", "rope"),
        ("posemb_21x37", "position_table"),
        ("uvemb_8x10_W70_H56", "uv"),
        ("fusion_out_x2", "fusion"),
        ("pose_enc_back", "poses"),
        ("unproj_points", "unprojection"),
        ("prune_P53_T300_cache200_pool16.scores", "pruning"),
    ],
)
def test_a_wrong_unit_is_noticed(tmp_path, capsys, array, case):
    arrays = load_file(GOLDENS / "units.safetensors")
    arrays[array].view(-1)[5] += 1e-3
    save_file(arrays, tmp_path / "units.safetensors")
    status, lines = run(tmp_path, capsys)
    assert status == 1
    assert [name for name, rest in lines.items() if "FAIL" in rest] == [f"units/{case}"]


@needs_goldens
def test_a_pixel_off_by_one_is_noticed(tmp_path, capsys):
    folder = tmp_path / "preprocess"
    shutil.copytree(GOLDENS / "preprocess", folder, copy_function=shutil.copyfile)
    pixels = np.array(Image.open(folder / "out_crop_d_0.png"))
    pixels[3, 4, 1] ^= 1
    Image.fromarray(pixels).save(folder / "out_crop_d_0.png")
    status, lines = run(tmp_path, capsys)
    assert status == 1
    assert [name for name, rest in lines.items() if "FAIL" in rest] == ["preprocess/crop_d"]
