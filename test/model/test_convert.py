# SPDX-License-Identifier: Apache-2.0
"""`xsvggt convert`: what it writes loads as what it read, and it leaves nothing half."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.full_disk import limited

from xsvggt_ros.cli import main
from xsvggt_ros.config import StreamConfig
from xsvggt_ros.model import load_model
from xsvggt_ros.model.loading import BUNDLED

DEMO = BUNDLED / "demo.safetensors"


@pytest.fixture(scope="module")
def weights():
    return load_file(DEMO)


def convert(source, target, *more):
    return main(["convert", str(source), str(target), "--model", "demo", *more])


def same(found, expected):
    return found.keys() == expected.keys() and all(
        tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]) for name, tensor in found.items()
    )


@pytest.mark.parametrize("legacy", [False, True])
def test_a_training_checkpoint_becomes_plain_weights(tmp_path, weights, legacy, capsys):
    content = {
        "model": {f"module.{name}": tensor for name, tensor in weights.items()} | {"steps": torch.ones(1)},
        "ema": {name: tensor.clone() for name, tensor in list(weights.items())[:3]},
        "epoch": 3,
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    assert convert(tmp_path / "w.pth", tmp_path / "w.safetensors") == 0
    assert same(load_file(tmp_path / "w.safetensors"), weights)
    printed = capsys.readouterr().out
    assert f"{len(weights)} tensors" in printed and "left out: 1 tensors of model, 3 tensors of ema" in printed
    assert "keep the licence" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.pth", "w.safetensors"]


def test_the_converted_model_is_the_model(tmp_path):
    assert convert(DEMO, tmp_path / "w.safetensors") == 0
    config = StreamConfig(dtype="float32", device="cpu")
    expected = load_model(config).state_dict()
    assert same(
        load_model(StreamConfig(**vars(config) | {"weights": str(tmp_path / "w.safetensors")})).state_dict(), expected
    )
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_those_may_read_it_who_may_read_other_new_files(tmp_path):
    (tmp_path / "other").touch()
    assert convert(DEMO, tmp_path / "w.safetensors") == 0
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_another_type(tmp_path, weights, dtype):
    assert convert(DEMO, tmp_path / "w.safetensors", "--dtype", dtype) == 0
    wanted = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    assert same(load_file(tmp_path / "w.safetensors"), wanted)


def test_tensors_that_share_memory_and_ones_that_are_turned(tmp_path, weights):
    shared = dict(weights)
    biases = [name for name, tensor in weights.items() if name.endswith("norm1.bias") and "track" not in name]
    shared[biases[1]] = shared[biases[0]]
    matrix = next(name for name, tensor in weights.items() if tensor.ndim == 2)
    shared[matrix] = weights[matrix].t().contiguous().t()
    torch.save(shared, tmp_path / "w.pth")
    assert convert(tmp_path / "w.pth", tmp_path / "w.safetensors") == 0
    assert same(load_file(tmp_path / "w.safetensors"), shared)


def test_float8_becomes_float16(tmp_path, weights):
    name = next(iter(weights))
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, tmp_path / "w8.safetensors")
    assert convert(tmp_path / "w8.safetensors", tmp_path / "w.safetensors") == 0
    assert load_file(tmp_path / "w.safetensors")[name].equal(weights[name].to(torch.float8_e4m3fn).half())


def test_weights_without_a_track_head(tmp_path, weights):
    without = {name: tensor for name, tensor in weights.items() if not name.startswith("track_head.")}
    save_file(without, tmp_path / "in.safetensors")
    assert convert(tmp_path / "in.safetensors", tmp_path / "w.safetensors") == 0
    assert same(load_file(tmp_path / "w.safetensors"), without)


def test_what_cannot_be_converted_says_why_and_leaves_nothing(tmp_path, weights, capsys):
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    name = next(iter(weights))
    save_file(weights | {name: torch.full_like(weights[name], torch.nan)}, tmp_path / "nan.safetensors")
    save_file(weights | {name: torch.full_like(weights[name].float(), 1e6)}, tmp_path / "large.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for arguments, message in [
        ((DEMO, "there.safetensors"), "exists already: choose another name, or remove it"),
        ((DEMO, "out.pth"), "out.pth must end with .safetensors"),
        ((DEMO, "none/out.safetensors"), "there is no folder"),
        ((tmp_path / "none.pth", "out.safetensors"), "no weights file at"),
        ((tmp_path / "nan.safetensors", "out.safetensors"), f"tensor {name} is NaN or infinite"),
        ((tmp_path / "large.safetensors", "out.safetensors", "--dtype", "float16"), "is too large for float16"),
        ((tmp_path / "other.safetensors", "out.safetensors"), "does not fit the model"),
    ]:
        source, target, *more = arguments
        assert convert(source, tmp_path / target, *more) == 2
        said = capsys.readouterr().err
        assert message in said and len(said.splitlines()) == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_nothing(tmp_path, capsys):
    with limited(100_000):
        assert convert(DEMO, tmp_path / "w.safetensors") == 2
    assert "cannot be written" in (said := capsys.readouterr().err) and "free space" in said
    assert not list(tmp_path.iterdir())
