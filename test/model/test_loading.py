# SPDX-License-Identifier: Apache-2.0
"""What the settings `weights` and `model` may be, and what is said when they do not go together."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xsvggt_ros.config import StreamConfig
from xsvggt_ros.model import load_model, loading
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.model.loading import BUNDLED, has_track_head, is_bidirectional, weights_path

DEMO = BUNDLED / "demo.safetensors"


def test_weights_of_another_model_say_which_it_is(monkeypatch):
    with pytest.raises(ValueError, match=r"does not fit the model: .*; it fits the model demo: set `model` to that$"):
        load_model(StreamConfig(weights=str(DEMO), model="streamvggt"))
    monkeypatch.delitem(MODELS, "demo")
    with pytest.raises(ValueError, match=r"; check the setting `model`$"):
        load_model(StreamConfig(weights=str(DEMO), model="streamvggt"))


def test_weights_without_a_track_head_are_loaded_where_none_is_needed(tmp_path):
    path = tmp_path / "model.safetensors"
    weights = load_file(DEMO)
    save_file({name: tensor for name, tensor in weights.items() if not name.startswith("track_head.")}, path)
    assert load_model(StreamConfig(weights=str(path))).track_head is None
    assert [has_track_head(StreamConfig(weights=w)) for w in (str(path), "", "random")] == [False, True, True]
    assert not has_track_head(StreamConfig(weights="random", model="small"))
    with pytest.raises(ValueError, match=r"model.safetensors has no track head: set track_groups to 0, or train one"):
        load_model(StreamConfig(weights=str(path), track_groups=1))
    save_file({name: tensor for name, tensor in weights.items() if name != "track_head.tracker.fmap_norm.weight"}, path)
    with pytest.raises(ValueError, match=r"1 tensors missing \(track_head.tracker.fmap_norm.weight\)"):
        load_model(StreamConfig(weights=str(path)))


def test_a_single_part_says_that_it_is_one(tmp_path):
    weights = dict(list(load_file(DEMO).items())[::2])
    save_file(weights, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"it is one of several parts: set `weights` to their folder"):
        load_model(StreamConfig(weights=str(tmp_path / "model-00001-of-00002.safetensors")))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("weights/VGGT-1B/model.safetensors", True),
        ("models--facebook--VGGT-1B/snapshots/0a1b/model.pt", True),
        ("vggt_1b.pt", True),
        ("VGGT.pth", True),
        ("streamvggt.pth", False),
        ("Stream_VGGT.pth", False),
        ("xsvggt.pth", False),
        ("vggt_ws/checkpoints.pth", False),
        ("VGGT-1B/streamvggt.pth", False),
        ("VGGT-1B/streamvggt/model.pt", False),
        ("VGGT-1B/streamvggt_from_vggt-1b.pt", False),
        ("StreamVGGT/VGGT-1B.pt", True),
        ("StreamVGGT/ckpt/VGGT-1B/model.pt", True),
        ("vggt_finetuned.pt", True),
        ("StreamVGGT/vggt_finetuned.pt", False),
        ("StreamVGGT-1B/model.pt", False),
        ("my-stream-vggt-1b/model.safetensors", False),
        ("Stream_VGGT_1B.pt", False),
        ("stream vggt/vggt.pth", False),
        ("models--lch01--StreamVGGT/snapshots/0a1b/vggt.pt", False),
        ("models--me--streamvggt-1b/snapshots/0a1b/model.pt", False),
        ("xsvggt-1b/model.pt", False),
    ],
)
def test_a_bidirectional_checkpoint_is_told_by_its_name(path, expected):
    """Names and shapes of its tensors are the same."""
    assert is_bidirectional(Path("/a/b") / path) is expected


def test_a_bidirectional_checkpoint_is_said_to_be_one(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loading, "PUBLISHED", "demo")
    for name in ("VGGT-1B.safetensors", "streamvggt.safetensors"):
        caplog.clear()
        (tmp_path / name).symlink_to(DEMO)
        load_model(StreamConfig(weights=str(tmp_path / name)))
        assert ("VGGT, which is bidirectional" in caplog.text) is name.startswith("VGGT")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("StreamVGGT/checkpoints.pth", 1),
        ("VGGT-1B.safetensors", 1),
        ("xsvggt/net.pth", 0),
        ("run/model.safetensors", 0),
    ],
)
def test_published_weights_are_said_once_to_have_a_licence_of_their_own(tmp_path, path, said, monkeypatch, caplog):
    monkeypatch.setattr(loading, "PUBLISHED", "demo")
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).symlink_to(DEMO)
    for _ in range(2):
        load_model(StreamConfig(weights=str(tmp_path / path)))
        load_model(StreamConfig())  # our own
    assert caplog.text.count("these weights have a licence of their own") == said


def test_a_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_path(StreamConfig(weights="~/x.pth")) == tmp_path / "x.pth"
    with pytest.raises(ValueError, match="there is no user ~nobody-of-that-name; write the whole path"):
        weights_path(StreamConfig(weights="~nobody-of-that-name/x.pth"))


def test_weights_in_another_type_are_the_same(tmp_path):
    save_file({k: tensor.double() for k, tensor in load_file(DEMO).items()}, tmp_path / "w.safetensors")
    config = StreamConfig(dtype="float32", device="cpu")
    expected = load_model(config).state_dict()
    found = load_model(StreamConfig(dtype="float32", device="cpu", weights=str(tmp_path / "w.safetensors")))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())


def test_weights_of_the_camera_head_lie_by_their_longer_side_and_are_the_same():
    weights = load_file(DEMO)
    model = load_model(StreamConfig(dtype="float32", device="cpu"))
    layers = {name: layer for name, layer in model.camera_head.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert len(layers) == 12
    for name, layer in layers.items():
        assert torch.equal(layer.weight, weights[f"camera_head.{name}.weight"])
        wide = layer.out_features > layer.in_features
        assert layer.weight.stride() == ((1, layer.out_features) if wide else (layer.in_features, 1))
