# SPDX-License-Identifier: Apache-2.0
"""Weights of huggingface.co, from an endpoint on loopback that answers like it."""

import errno
import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save
from support.hub import COMMIT, serving

from xsvggt_ros.cli import main
from xsvggt_ros.config import StreamConfig
from xsvggt_ros.model import load_model, loading
from xsvggt_ros.model.hub import download
from xsvggt_ros.model.licence import say_licence
from xsvggt_ros.model.loading import BUNDLED, has_track_head

pytest.importorskip("huggingface_hub")
DEMO = BUNDLED / "demo.safetensors"


def setenv(monkeypatch, **variables):
    """Which the library reads as it is imported, so that this is done anew."""
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub, which the library asks; with an empty cache and without a token."""
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serving() as served:
        setenv(monkeypatch, HF_ENDPOINT=served.endpoint, HF_HOME=tmp_path / "home")
        say_licence.cache_clear()
        yield served


def test_the_one_checkpoint_of_a_repository_is_loaded_and_kept(hub, caplog, capfd):
    hub.repositories["me/net"] = {"README.md": b"", "optimizer.pt": b"", "old/w.pth": b"", "w.pth": DEMO.read_bytes()}
    hub.cards["me/net"] = {"license": "cc-by-nc-4.0"}
    config = StreamConfig(weights="hf://me/net", device="cpu", dtype="float32")
    assert has_track_head(config)
    model = load_model(config)
    assert model.state_dict()["camera_head.pose_branch.fc2.bias"].equal(
        load_file(DEMO)["camera_head.pose_branch.fc2.bias"].float()
    )
    assert hub.served == ["w.pth"]
    assert [("cc-by-nc-4.0" in line, "downloading w.pth of me/net" in line) for line in caplog.messages] == [
        (False, True),
        (True, False),
    ]
    assert "%|" not in "".join(capfd.readouterr())  # a bar


@pytest.mark.parametrize("what", [["--init"], ["--teacher-model", "demo", "--teacher"]])
def test_training_takes_them(hub, tmp_path, what):
    hub.repositories["me/net"] = {"w.pth": DEMO.read_bytes()}
    run = ["train", "--output", str(tmp_path / "run"), "--device", "cpu", "--workers", "1", "--model", "demo"]
    assert main([*run, "--steps", "1", "--width", "28", "--height", "28", *what, "hf://me/net"]) == 0
    assert hub.served == ["w.pth"]
    assert main([*run, "--steps", "2", "--width", "28", "--height", "28", *what, "hf://me/net"]) == 0  # goes on


def test_a_file_of_a_revision(hub):
    hub.repositories["me/net"] = {"a.pth": b"a", "sub/b.pth": b"b"}
    assert download(f"hf://me/net@{COMMIT}/sub/b.pth").read_bytes() == b"b"
    assert download("hf://me/net@main/a.pth").read_bytes() == b"a"
    with pytest.raises(ValueError, match=r"has no revision v2$"):
        download("hf://me/net@v2/a.pth")


@pytest.mark.parametrize("weights", ["hf://me/net", "hf://me/net/", "hf://me/net/model.safetensors.index.json"])
def test_shards_come_with_their_index(hub, weights, monkeypatch, tmp_path):
    tensors = load_file(DEMO)
    names = list(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    files = {file: save({name: tensors[name] for name in part}) for file, part in parts.items()}
    hub.repositories["me/net"] = {"model.safetensors.index.json": json.dumps(index).encode(), "x.pth": b"", **files}
    load_model(StreamConfig(weights=weights, device="cpu"))
    assert sorted(hub.served) == [*parts, "model.safetensors.index.json"]
    del hub.repositories["me/net"]["model-2.safetensors"]
    setenv(monkeypatch, HF_HOME=tmp_path / "another")
    with pytest.raises(ValueError, match=r"lacks model-2.safetensors, which model.safetensors.index.json names"):
        load_model(StreamConfig(weights=weights, device="cpu"))


def test_what_was_downloaded_is_there_offline(hub, monkeypatch, caplog):
    hub.repositories["me/net"] = {"w.pth": b"w", "v.safetensors": b"v"}
    path = download("hf://me/net/w.pth")
    hub.repositories.clear()
    assert download("hf://me/net/w.pth") == path  # as long as it is not there, or not to be had
    hub.broken = True
    assert download("hf://me/net") == path
    setenv(monkeypatch, HF_HUB_OFFLINE=1)
    caplog.clear()
    say_licence.cache_clear()
    assert download("hf://me/net") == path and download("hf://me/net/w.pth") == path
    assert ["see https://huggingface.co/me/net" in line for line in caplog.messages] == [True, True]
    with pytest.raises(FileNotFoundError, match=r"me/net/v.safetensors is not in the cache .*HF_HUB_OFFLINE forbids"):
        download("hf://me/net/v.safetensors")
    with pytest.raises(FileNotFoundError, match=r"hf://me/other is not in the cache .*unset that once, or set HF_HOME"):
        download("hf://me/other")


def test_a_token_opens_what_is_gated(hub, monkeypatch):
    hub.repositories["me/net"], hub.tokens["me/net"] = {"w.pth": b"w"}, "hf_secret"
    with pytest.raises(
        ValueError, match=rf"ask for it on {hub.endpoint}/me/net, then `hf auth login`, or set HF_TOKEN"
    ):
        download("hf://me/net")
    setenv(monkeypatch, HF_TOKEN="hf_secret")
    assert download("hf://me/net").read_bytes() == b"w"


@pytest.mark.parametrize(
    ("weights", "files", "message"),
    [
        ("hf://me/other", {}, r"there is no repository .*/me/other, or it is private: check the name, or"),
        ("hf://me/net@v9", {"w.pth": b""}, r"/me/net has no revision v9"),
        (
            "hf://me/net/x.pth",
            {"w.pth": b"", "a/v.bin": b""},
            r"has no file x.pth; it has (w.pth, a/v.bin|a/v.bin, w.pth)",
        ),
        ("hf://me/net/x.pth", {"README.md": b""}, r"has no file x.pth; it has no checkpoint"),
        ("hf://me/net", {"b.pth": b"", "a.pt": b""}, r"several checkpoints: set `weights` to one of a.pt, b.pth"),
        ("hf://me/net", {"README.md": b""}, r"hf://me/net has no checkpoint"),
        ("hf://net", {}, r"is not of the form hf://OWNER/NAME or hf://OWNER/NAME/FILE"),
        ("hf://", {}, r"is not of the form hf://OWNER/NAME"),
        ("hf://me/..", {}, r"hf://me/.. is not the name of a repository"),
        ("hf://me/net/../../x.pth", {"w.pth": b""}, r"has no file ../../x.pth"),
    ],
)
def test_what_cannot_be_had_says_why_in_a_line(hub, weights, files, message):
    hub.repositories["me/net"] = files
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        load_model(StreamConfig(weights=weights))
    assert "\n" not in str(raised.value)


def test_no_network_and_no_hub(hub, monkeypatch):
    hub.broken = True
    with pytest.raises(OSError, match=r"could not be downloaded from .*503.* check the network, or set HF_ENDPOINT"):
        download("hf://me/net")
    setenv(monkeypatch, HF_ENDPOINT="http://127.0.0.1:9")
    with pytest.raises(
        OSError, match=r"could not be downloaded from http://127.0.0.1:9 .* check the network"
    ) as raised:
        download("hf://me/net")
    assert "\n" not in str(raised.value)


def test_a_cache_that_cannot_be_written(hub, monkeypatch):
    hub.repositories["me/net"] = {"w.pth": b"w"}

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(
        OSError, match=r"cannot be kept in .*hub \(No space left on device\): free space, or set HF_HOME"
    ):
        download("hf://me/net")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"need its library: pip install huggingface_hub"):
        load_model(StreamConfig(weights="hf://me/net"))


@pytest.mark.parametrize(
    ("repository", "file", "bidirectional"),
    [
        ("facebook/VGGT-1B", "model.safetensors", True),
        ("facebook/VGGT-1B", "sub/folder/model.safetensors", True),
        ("me/nets", "VGGT-1B.pt", True),
        ("me/StreamVGGT", "checkpoints.pth", False),
        ("me/nets", "model.pt", False),
    ],
)
def test_a_bidirectional_checkpoint_is_told_by_its_name(hub, repository, file, bidirectional, monkeypatch, caplog):
    monkeypatch.setattr(loading, "PUBLISHED", "demo")
    hub.repositories[repository] = {file: DEMO.read_bytes()}
    load_model(StreamConfig(weights=f"hf://{repository}" + f"/{file}" * ("/" in file)))
    assert ("VGGT, which is bidirectional" in caplog.text) is bidirectional
    assert caplog.text.count("licence of their own") == 1


def test_a_command_says_it_in_a_line(hub, tmp_path):
    hub.repositories["me/net"] = {"w.pth": DEMO.read_bytes()}

    def convert(**variables):
        command = [sys.executable, "-m", "xsvggt_ros.cli", "convert", "hf://me/net", tmp_path / "net.safetensors"]
        command += ["--model", "demo"]
        return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)

    done = convert(HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and done.stderr.startswith("xsvggt convert: hf://me/net is not in the cache")
    done = convert()
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 2, done.stderr  # the download, the licence
    assert load_file(tmp_path / "net.safetensors").keys() == load_file(DEMO).keys()
