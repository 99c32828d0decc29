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
