# SPDX-License-Identifier: Apache-2.0
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


@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_a_truncated_file(path, kept):
    save(tensors(), path)
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(ValueError, match=r"not a complete .*download or save it again"):
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


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "net.generator."])
def test_a_prefix_of_all_names_is_taken_off_and_said_once(path, prefix, caplog):
    saved = tensors()
    save({prefix + name: tensor for name, tensor in saved.items()}, path)
    loaded = load(on_meta(), path)
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert [f"prefix `{prefix}` is taken off" in line for line in caplog.messages] == [True]


def test_a_prefix_that_the_model_has_itself_stays(path, caplog):
    saved = nn.ModuleDict({"model": Net()}).state_dict()
    with torch.device("meta"):
        model = nn.ModuleDict({"model": Net()})
    save(saved, path)
    assert load(model, path).keys() == saved.keys() and not caplog.messages
    save({f"module.{name}": tensor for name, tensor in saved.items()}, path)
    assert load(model, path).keys() == saved.keys() and "prefix `module.`" in caplog.text


def test_a_mismatch_under_a_prefix_names_only_what_differs(path):
    save({f"module.{name}": tensor for name, tensor in tensors(**{"body.bias": None}).items()}, path)
    with pytest.raises(ValueError, match=r"model: 1 tensors missing \(body.bias\)$"):
        load(on_meta(), path)


def test_what_counts_the_average_is_left_out_and_named(tmp_path, caplog):
    averaged = torch.optim.swa_utils.AveragedModel(Net())
    torch.save(averaged.state_dict(), tmp_path / "swa.pt")
    assert load(on_meta(), tmp_path / "swa.pt").keys() == tensors().keys()
    assert "1 tensors without `module.` (n_averaged)" in caplog.text


def lightning(weights, average):
    """As a LightningModule is saved that keeps both."""
    parts = {"model.": weights, "model_ema.": average}
    return {"state_dict": {f"{prefix}{k}": v for prefix, part in parts.items() for k, v in part.items()}, "epoch": 3}


@pytest.mark.parametrize(
    "several",
    [
        lambda weights, average: {"ema": average, "model": weights},
        lambda weights, average: {"ema_state_dict": average, "model_state_dict": weights, "loss": torch.ones(1)},
        lambda weights, average: {"state": {"model": weights, "ema": average}},
        lightning,
    ],
)
def test_of_weights_and_their_average_the_weights_are_taken_and_that_is_said(tmp_path, several, caplog):
    saved, path = tensors(), tmp_path / "weights.pth"
    torch.save(several(saved, {name: tensor + 1 for name, tensor in saved.items()}), path)
    if "state" in several(saved, saved):
        with pytest.raises(ValueError, match=r"several weights that fit, state\.model, state\.ema; save one alone"):
            load(on_meta(), path)
        return
    loaded = load(on_meta(), path)
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    assert "several weights that fit" in caplog.text


def test_of_weights_with_other_names_none_is_preferred(tmp_path):
    torch.save({"student": tensors(), "teacher": tensors()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"several weights that fit, student, teacher; save one alone"):
        load(on_meta(), tmp_path / "weights.pth")


def test_the_only_dict_that_fits_is_taken(tmp_path):
    saved, path = tensors(), tmp_path / "weights.pth"
    discriminator = {f"d.{name}": tensor for name, tensor in saved.items() if name != "body.bias"}
    torch.save({"discriminator": discriminator, "generator": saved}, path)
    assert load(on_meta(), path).keys() == saved.keys()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(path, number):
    save(tensors(**{"head.bias": torch.tensor([0.0, number, 0.0])}), path)
    with pytest.raises(ValueError, match=r"tensor head.bias is NaN or infinite"):
        load(on_meta(), path)
    load(on_meta(head=False), path, expected=on_meta().state_dict())  # a head that is not read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_single_one_among_many_is_found(tmp_path, number, dtype):
    """Wherever it stands; a least and a greatest number alone would not have to see a NaN."""
    with torch.device("meta"):
        model = nn.Linear(1009, 211, bias=False)
    for place in (0, 7, 1009 * 100 + 3, 1009 * 211 - 1):
        weight = torch.randn(211, 1009, generator=torch.Generator().manual_seed(0))
        weight.view(-1)[place] = number
        save_file({"weight": weight}, tmp_path / "w.safetensors")
        with pytest.raises(ValueError, match="tensor weight is NaN or infinite"):
            load(model, tmp_path / "w.safetensors", lambda name: dtype)


def test_numbers_that_the_compute_type_lacks_are_refused(path):
    save(tensors(**{"head.bias": torch.full((3,), 1e6)}), path)
    with pytest.raises(ValueError, match=r"tensor head.bias is too large for float16; set dtype to"):
        load(on_meta(), path, lambda name: torch.float16)
    load(on_meta(), path, lambda name: torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.complex64, torch.bool])
def test_quantised_weights_are_refused(tmp_path, dtype):
    torch.save(tensors(**{"body.weight": torch.ones(3, 4).to(dtype)}), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"tensor body.weight is not of floating-point numbers"):
        load(on_meta(), tmp_path / "weights.pt")


def test_sparse_and_absent_weights_are_refused(tmp_path):
    for tensor in (torch.ones(3, 4).to_sparse(), torch.ones(3, 4, device="meta")):
        torch.save(tensors(**{"body.weight": tensor}), tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=r"tensor body.weight is not of floating-point numbers"):
            load(on_meta(), tmp_path / "weights.pt")


def test_float8_is_taken_with_a_warning(path, caplog):
    saved = tensors(**{"body.weight": torch.tensor([[0.1, 1, 2, 3]] * 3).to(torch.float8_e4m3fn)})
    save(saved, path)
    assert torch.equal(load(on_meta(), path)["body.weight"], saved["body.weight"].float())
    assert "1 tensors in float8 (body.weight)" in caplog.text
