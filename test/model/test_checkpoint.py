# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the forms that people have them in."""

import argparse
import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections import Counter, defaultdict, deque
from datetime import date, datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save as safetensors_bytes
from safetensors.torch import save_file
from torch import nn

from xsvggt_ros.model.checkpoint import read_checkpoint

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


LEGACY = {"_use_new_zipfile_serialization": False}
FORMS = {
    "zip": torch_bytes(WEIGHTS),
    "legacy": torch_bytes(WEIGHTS, **LEGACY),
    "safetensors": safetensors_bytes(WEIGHTS),
}


def check(path, where=""):
    found = read_checkpoint(path)[where]
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def archive(names):
    """A zip archive of empty files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, b"")
    return buffer.getvalue()


def tar(content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        entry = tarfile.TarInfo("weights.pth")
        entry.size = len(content)
        file.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.ckpt", "W.PTH", "w.SAFETENSORS", "w.safetensors", "w"])
@pytest.mark.parametrize("form", FORMS)
def test_the_content_tells_and_not_the_suffix(tmp_path, form, name):
    (tmp_path / name).write_bytes(FORMS[form])
    check(tmp_path / name)


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_data_beside_the_weights_is_left_out(tmp_path, options):
    args = argparse.Namespace(lr=1e-4, output=Path("runs/1"), nested=argparse.Namespace(x=[1]))
    best = {"loss": np.float64(0.25), "when": datetime(2026, 1, 1), "curve": np.arange(3.0), "steps": np.int64(7)}
    torch.save({"args": args, "model": WEIGHTS, "best": best, "epoch": 3}, tmp_path / "w.pth", **options)
    check(tmp_path / "w.pth", "model")


@pytest.mark.parametrize("options", [{}, LEGACY])
@pytest.mark.parametrize(
    "beside",
    [
        defaultdict(list, loss=[1.0, 0.5]),
        defaultdict(float, loss=1.0, depth=0.5),
        defaultdict(dict, train=defaultdict(list, loss=[1.0]), val={"curve": deque([1.0, 2.0])}),
        defaultdict(int),
        deque([1.0]),
        deque([0.5, 0.25, {"a": 1}], maxlen=20),
        deque(maxlen=20),
        Counter("abc"),
        SimpleNamespace(lr=1e-4, losses=deque([1.0, 2.0])),
        [date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=timezone.utc)],
        {"frozen": frozenset(["a.weight"]), "layers": range(4)},
    ],
    ids=repr,
)
def test_containers_beside_the_weights_are_left_out(tmp_path, beside, options):
    torch.save({"history": beside, "model": WEIGHTS, "last": beside}, tmp_path / "w.pth", **options)
    check(tmp_path / "w.pth", "model")


def test_weights_in_a_defaultdict(tmp_path):
    torch.save(defaultdict(list, WEIGHTS), tmp_path / "w.pth")
    check(tmp_path / "w.pth")


def test_entries_beside_the_tensors_are_left_out(tmp_path):
    torch.save(WEIGHTS | {"epoch": 3, "_metadata": {"": {"version": 1}}}, tmp_path / "w.pth")
    check(tmp_path / "w.pth")


def test_parameters_are_tensors(tmp_path):
    torch.save({name: nn.Parameter(tensor) for name, tensor in WEIGHTS.items()}, tmp_path / "w.pth")
    check(tmp_path / "w.pth")


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_a_whole_module_is_refused_by_its_name(tmp_path, options):
    torch.save(nn.Linear(2, 3), tmp_path / "w.pth", **options)
    with pytest.raises(ValueError, match=r"Python objects \(torch.nn.modules.linear.Linear\).*keep only its tensors"):
        read_checkpoint(tmp_path / "w.pth")


class Odd:
    """Pickled as a namespace that has items."""

    def __init__(self, *items):
        self.items = items

    def __reduce__(self):
        return argparse.Namespace, (), None, *map(iter, self.items)


@pytest.mark.parametrize("odd", [Odd([1]), Odd([1, 2]), Odd([], [("a", 1)])])
def test_an_object_that_cannot_be_filled_is_named(tmp_path, odd):
    torch.save({"model": WEIGHTS, "odd": odd}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"Python objects \(argparse.Namespace\).*keep only its tensors"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_a_newer_pickle_is_named(tmp_path):
    torch.save(WEIGHTS, tmp_path / "w.pth", pickle_protocol=4)
    with pytest.raises(ValueError, match=r"Python objects \(operand \d+\).*keep only its tensors"):
        read_checkpoint(tmp_path / "w.pth")


PAGE = "<!DOCTYPE html><html><body>403 Forbidden</body></html>"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty.*download or save it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer.*git lfs pull"),
        (PAGE.encode(), "a web page"),
        (f"\ufeff\n{PAGE}".encode(), "a web page"),
        ("<html><title>Zugriff verweigert, Schlüssel fehlt</title>".encode(), "a web page"),
        (b"Invalid username or password.", "is text .'Invalid username or password.'"),
        (b'{"error": "Repository not found"}', "is text .*Repository not found"),
        (gzip.compress(FORMS["zip"]), "is packed; unpack it"),
        (tar(FORMS["zip"]), "is a tar archive; unpack it"),
        (archive(["weights/model.pth", "README"]), r"zip archive of something else \(weights/model.pth, README\)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        (bytes(1000), "not a complete checkpoint"),
        (FORMS["zip"][:-100], "not a complete file of torch.save"),
        (FORMS["legacy"][:-5], "not a complete file of torch.save"),
        (FORMS["safetensors"][:-5], "not a complete safetensors file"),
        (torch_bytes([torch.ones(1)]), "holds no dict of tensors, but a list"),
        (torch_bytes({"epoch": 3}), r"holds no dict of tensors, but \['epoch'\]"),
        (pickle.dumps({"a": 1}, 2), "not a complete file of torch.save"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_what_it_is(tmp_path, content, message, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"w\{suffix} .*{message}"):
        read_checkpoint(path)


# --- where it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "best.pth", "EPOCH_3.CKPT"])
def test_the_only_checkpoint_of_a_folder(tmp_path, name):
    for other in ("config.json", "README.md", "optimizer.pt", "training_args.bin", "._best.pth"):
        (tmp_path / other).write_bytes(b"{}")
    (tmp_path / name).write_bytes(FORMS["safetensors"])
    check(tmp_path)


def test_a_published_folder_with_both_formats(tmp_path):
    (tmp_path / "model.pt").write_bytes(FORMS["zip"][:50])
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    check(tmp_path)


def test_several_checkpoints_or_none_in_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        read_checkpoint(tmp_path)
    for name in ("last.pth", "best.pth"):
        (tmp_path / name).write_bytes(FORMS["zip"])
    with pytest.raises(ValueError, match=r"several checkpoints: set `weights` to one of best.pth, last.pth"):
        read_checkpoint(tmp_path)


def write_shards(folder, suffix=".safetensors"):
    parts = {name: f"model-{i}-of-2{suffix}" for i, name in enumerate(WEIGHTS, 1)}
    for name, file in parts.items():
        form = safetensors_bytes if suffix == ".safetensors" else torch_bytes
        (folder / file).write_bytes(form({name: WEIGHTS[name]}))
    index = folder / ("model.safetensors.index.json" if suffix == ".safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_are_put_together(tmp_path, suffix):
    index = write_shards(tmp_path, suffix)
    check(tmp_path)
    check(index)


def test_a_missing_or_damaged_shard_is_named(tmp_path):
    index = write_shards(tmp_path)
    (tmp_path / "model-2-of-2.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model-2-of-2.safetensors is empty"):
        read_checkpoint(tmp_path)
    (tmp_path / "model-2-of-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-2-of-2.safetensors, which model.safetensors.index.json names"):
        read_checkpoint(tmp_path)
    for damaged in ("{", "[]", '{"weight_map": 3}', '{"metadata": {}}'):
        index.write_text(damaged)
        with pytest.raises(ValueError, match=r"index.json is no index of shards"):
            read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("weights/nothing.pth", "no weights file at weights/nothing.pth; check the setting `weights`"),
        ("facebook/VGGT-1B", "set `weights` to hf://facebook/VGGT-1B$"),
        ("https://huggingface.co/a/b", "or to hf://OWNER/NAME"),
        ("https://huggingface.co/x/resolve/main/model.pt", "is a URL: download it"),
        ("s3://bucket/model.pt", "is a URL: download it"),
    ],
)
def test_a_path_that_is_not_there(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        read_checkpoint(Path(path))


def test_what_is_neither_a_file_nor_a_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        read_checkpoint(tmp_path / "pipe")
    (tmp_path / "link.pth").symlink_to(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match=r"is a link to .*gone.pth, which does not exist"):
        read_checkpoint(tmp_path / "link.pth")


def test_a_file_of_another_user(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(FORMS["zip"])

    def refused(path, *args, **options):
        raise PermissionError(13, "Permission denied", str(path))  # what root would not get

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(PermissionError, match=r"w.pth may not be read by this user; change its permissions"):
        read_checkpoint(tmp_path / "w.pth")
