# SPDX-License-Identifier: Apache-2.0
import argparse
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from xsvggt_ros.model.weights import load_weights


class Net(nn.Module):
    def __init__(self, head=True):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.head = nn.LayerNorm(3) if head else None


def on_meta(**options):
    with torch.device("meta"):
        return Net(**options)


def tensors(**changes):
    """The state dict of a Net with some tensors replaced, or left out where None."""
    return {name: tensor for name, tensor in (Net().state_dict() | changes).items() if tensor is not None}


def save(content, path):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)


def load(model, path, dtype=lambda name: torch.float32, expected=None):
    load_weights(model, path, dtype, "cpu", expected)
    return model.state_dict()


@pytest.fixture(params=[".pt", ".pth", ".safetensors"])
def path(request, tmp_path):
    return tmp_path / f"weights{request.param}"


def test_every_tensor_arrives(path):
    saved, model = tensors(), on_meta()
    save(saved, path)
    loaded = load(model, path)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert len(list(model.parameters())) == len(saved)


def test_tensors_are_cast_by_name(path):
    save(tensors(), path)
    loaded = load(on_meta(), path, lambda name: torch.float64 if name.startswith("head.") else torch.bfloat16)
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {
        "body.weight": torch.bfloat16,
        "body.bias": torch.bfloat16,
        "head.weight": torch.float64,
        "head.bias": torch.float64,
    }


def test_loaded_tensors_outlive_the_file(path):
    saved = tensors()
    save(saved, path)
    loaded = load(on_meta(), path)
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_a_head_not_built_is_required_but_not_loaded(path):
    save(tensors(), path)
    loaded = load(on_meta(head=False), path, expected=on_meta().state_dict())
    assert loaded.keys() == {"body.weight", "body.bias"}
    save(tensors(**{"head.bias": None}), path)
    with pytest.raises(ValueError, match=r"1 tensors missing \(head.bias\)"):
        load(on_meta(head=False), path, expected=on_meta().state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"body.bias": None}, r"1 tensors missing \(body.bias\)"),
        ({"extra": torch.ones(1)}, r"1 tensors unknown \(extra\)"),
        ({"body.weight": torch.ones(3, 5)}, r"body.weight \[3, 5\] instead of \[3, 4\]"),
        ({f"x{i}": torch.ones(1) for i in range(9)}, r"9 tensors unknown \(x0, x1, x2, ...\)"),
    ],
)
def test_a_mismatch_names_the_tensors_and_leaves_the_model(path, changes, message):
    save(tensors(**changes), path)
    model = on_meta()
    with pytest.raises(ValueError, match=message):
        load(model, path)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match=f"no weights file at {path}"):
        load(on_meta(), path)


def test_another_kind_of_file(tmp_path):
    path = tmp_path / "weights.onnx"
    path.touch()
    with pytest.raises(ValueError, match=r"\.pt, \.pth or \.safetensors"):
        load(on_meta(), path)


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_a_truncated_file(path, kept):
    save(tensors(), path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=r"not a complete .* download or save it again"):
        load(on_meta(), path)


def test_a_page_of_text_instead_of_weights(path):
    path.write_text("<html>404 not found</html>")
    with pytest.raises(ValueError, match="not a complete"):
        load(on_meta(), path)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    torch.save(tensors() | {"x": Malicious(str(trace))}, path)
    with pytest.raises(ValueError, match=r"Python objects.*refused"):
        load(on_meta(), path)
    assert not trace.exists()


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_the_only_state_dict_of_a_training_checkpoint_is_taken(tmp_path, key):
    path, saved = tmp_path / "weights.pth", tensors()
    torch.save({key: saved, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}, path)
    loaded = load(on_meta(), path)
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": tensors(), "ema": tensors()}, r"2 were found among \['ema', 'model'\]"),
        ({"epoch": 3}, r"0 were found among \['epoch'\]"),
        ([torch.ones(1)], "0 were found"),
    ],
)
def test_no_dict_of_tensors_or_several(tmp_path, content, message):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load(on_meta(), path)


def test_training_arguments_in_a_checkpoint_are_refused_with_the_remedy(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"model": tensors(), "args": argparse.Namespace(lr=1.0)}, path)
    with pytest.raises(ValueError, match="keep only its tensors"):
        load(on_meta(), path)
