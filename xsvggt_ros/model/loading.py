# SPDX-License-Identifier: Apache-2.0
"""A model ready to run: built without memory, then given weights on its device in its compute type."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from xsvggt_ros.config import StreamConfig
from xsvggt_ros.model.attention import attention_backend, cpu_supports
from xsvggt_ros.model.camera_head import ITERATIONS
from xsvggt_ros.model.checkpoint import read_checkpoint
from xsvggt_ros.model.compact import COMPACT, assign_compact
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.model.hub import HUB, download
from xsvggt_ros.model.licence import say_licence
from xsvggt_ros.model.streamvggt import OPTIONAL_HEADS, StreamVGGT
from xsvggt_ros.model.weights import DoesNotFit, View, assign, chosen, give

FIELD_OF_VIEW = 1.0  # radians; what a camera head without training says
RANDOM, SEED = "random", 0  # weights
BUNDLED = Path(__file__).parents[1] / "weights"
PUBLISHED = "streamvggt"  # of MODELS
# VGGT, which StreamVGGT is trained from, has the same tensor names and shapes: only what the file is called tells, or
# the folder that it was downloaded into.
STREAM = re.compile(r"stream[-_. ]*vggt", re.IGNORECASE)
VGGT_1B = re.compile(r"(?<![a-z])vggt[-_. ]?1b", re.IGNORECASE)
VGGT = re.compile(r"(?<![a-z])vggt", re.IGNORECASE)

# Weights whose type the residual stream of encoder and aggregator takes.
EXACT = ("camera_head.", "track_head.tracker.")
RESIDUAL = re.compile(r"^aggregator\..*\.(norm[12]?\.|ls[12]\.|pos_embed$)")

logger = logging.getLogger(__name__)


def load_model(config: StreamConfig, heads: tuple[str, ...] | None = None, causal: bool = True) -> StreamVGGT:
    """The model of a configuration, in evaluation mode; by default with the heads that a stream needs.

    causal: it is to see the past only; warns of weights that were not trained for that.

    Raises ValueError or OSError if device, attention or weights cannot be had, naming the remedy.
    """
    device = open_device(config.device)
    dtype = compute_dtype(config.dtype, device)
    kernel = attention_backend(config.attention, device, dtype)
    if heads is None:
        heads = ("point",) * config.point_head + ("track",) * bool(config.track_groups)
    if config.track_groups and MODELS[config.model].track is None:
        raise ValueError(f"model {config.model} has no track head: set track_groups to 0")
    model = without_numbers(config.model)
    expected = model.state_dict()
    for head in set(OPTIONAL_HEADS).difference(heads):
        setattr(model, f"{head}_head", None)
    form = _Form(dtype, device, config.weight_bits)
    if config.weights == RANDOM:
        _random_weights(model, form)
    else:
        path = weights_path(config)
        _load(model, path, form, config.model, expected)
        if config.model == PUBLISHED:
            _say_what_they_are(config, path, causal)
    model.kernel = kernel
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    if device.type == "cpu":
        _favour_vectors(model.camera_head)
    return model.eval().requires_grad_(False)


def _favour_vectors(head: nn.Module) -> None:
    """Lays weights out by their longer side: vectors, as the camera head has, are multiplied twice as fast by them."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear) and layer.out_features > layer.in_features:
            layer.weight = nn.Parameter(layer.weight.T.contiguous().T)


@dataclass(frozen=True)
class _Form:
    """What weights are kept as."""

    compute: torch.dtype
    device: torch.device
    bits: int

    def dtype(self, name: str) -> torch.dtype:
        """Of a weight before it is kept."""
        return torch.float32 if self.bits < 16 and COMPACT.match(name) else weight_dtype(name, self.compute)

    def keep(self, model: nn.Module, name: str, tensor: Tensor) -> None:
        """The tensor, of `dtype`, becomes the model's of that name."""
        if self.bits < 16:
            assign_compact(model, name, tensor, self.bits, weight_dtype(name, self.compute))
        else:
            assign(model, name, tensor)


def _load(model: StreamVGGT, path: Path, form: _Form, name: str, expected: Mapping[str, Tensor]) -> None:
    """Weights from a file, which may lack the track head, into the model of that name; expected: of all its heads."""
    view = fitting(path, read_checkpoint(path), name, expected)
    if model.track_head is not None and not _has_track_head(view.tensors):
        raise ValueError(
            f"{path} has no track head: set track_groups to 0, or train one (xsvggt train --tracks --init)"
        )
    give(model, path, view, form.dtype, form.device, form.keep)


def fitting(
    path: Path, found: Mapping[str, Mapping[str, Tensor]], name: str, expected: Mapping[str, Tensor] | None = None
) -> View:
    """The tensors of a checkpoint that fit the model of that name, with or without a track head.

    expected: the state dict of that model with all heads, if it is at hand. Raises ValueError, with a remedy, if none
    do.
    """
    expected = without_numbers(name).state_dict() if expected is None else expected
    try:
        return chosen(path, found, expected)
    except DoesNotFit as error:
        without = {n: tensor for n, tensor in expected.items() if not n.startswith("track_head.")}
        if not error.would_fit(without):
            raise ValueError(f"{error}; {_advice(error, path, name)}") from error
        return chosen(path, found, without)


def _say_what_they_are(config: StreamConfig, path: Path, causal: bool) -> None:
    """What the name of published weights tells: whose they are, and whether they were trained for streams."""
    of_hub = config.weights.startswith(HUB)
    written = Path("/", config.weights.removeprefix(HUB))
    called = path if not of_hub else written if written.name == path.name else written / path.name
    if not of_hub and is_published(path):
        say_licence(str(path), "VGGT's original checkpoint: for non-commercial use only; see where you downloaded them")
    if causal and is_bidirectional(called):
        logger.warning(
            "%s is called like a checkpoint of VGGT, which is bidirectional: it fits, but was not trained to see the "
            "past only, so its poses and depth drift; take StreamVGGT's checkpoint",
            path,
        )


def _advice(error: DoesNotFit, path: Path, name: str) -> str:
    if others := [other for other in MODELS if other != name and error.would_fit(without_numbers(other).state_dict())]:
        return f"it fits the model {others[0]}: set `model` to that"
    if re.search(r"-\d+-of-\d+\.", path.name):
        return "it is one of several parts: set `weights` to their folder, with the index that names them"
    return "check the setting `model`"


def has_track_head(config: StreamConfig) -> bool:
    """Whether the model of a configuration has one and so have its weights. Raises what reading these raises."""
    if MODELS[config.model].track is None or config.weights == RANDOM:
        return MODELS[config.model].track is not None
    found = read_checkpoint(weights_path(config))
    return any(map(_has_track_head, found.values()))


def _has_track_head(tensors: Mapping[str, Tensor]) -> bool:
    return any("track_head." in name for name in tensors)


def is_published(path: Path) -> bool:
    """Whether a checkpoint, or one of the nearest folders, is called VGGT or StreamVGGT."""
    return any(STREAM.search(called) or VGGT.search(called) for called in path.absolute().parts[-4:])


def is_bidirectional(path: Path) -> bool:
    """Whether a checkpoint, or else the nearest folder that says it, is called VGGT-1B rather than StreamVGGT.

    Where neither is said, a file called VGGT is one.
    """
    for called in reversed(path.absolute().parts[-4:]):  # a cache has models--facebook--VGGT-1B/snapshots/.../model.pt
        if STREAM.search(called):
            return False
        if VGGT_1B.search(called):
            return True
    return VGGT.search(path.name) is not None


def without_numbers(name: str) -> StreamVGGT:
    """A named model with all its heads, which takes no memory: half a second's work at full size."""
    with torch.device("meta"):
        return StreamVGGT(MODELS[name])


def weight_nbytes(config: StreamConfig, device: torch.device) -> int:
    """Bytes that the weights of a configuration take, all heads included: at most."""
    compute = compute_dtype(config.dtype, device)

    def bits(name: str) -> int:
        compact = config.weight_bits < 16 and COMPACT.match(name)
        return config.weight_bits if compact else 8 * weight_dtype(name, compute).itemsize

    return sum(bits(name) * tensor.numel() for name, tensor in without_numbers(config.model).state_dict().items()) // 8


def weights_path(config: StreamConfig) -> Path:
    """The checkpoint of a configuration, downloaded if it is to be.

    Raises ValueError if none is given and none comes with the model, and what `hub.download` raises.
    """
    if config.weights.startswith(HUB):
        return download(config.weights)
    if config.weights:
        try:
            return Path(config.weights).expanduser()
        except RuntimeError:
            raise ValueError(
                f"weights: there is no user {config.weights.split('/')[0]}; write the whole path"
            ) from None
    bundled = BUNDLED / f"{config.model}.safetensors"
    if not bundled.is_file():
        raise ValueError(
            f"no weights come with model {config.model}: set weights to its checkpoint, or to {RANDOM} to time it"
        )
    return bundled


def weight_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The type of a weight when computing in `dtype`.

    The camera head stays in float32: a robot's pose needs more than bf16's 8 bits. So do the tracker, as pixels do, the
    last layers of the dense heads, whose outputs are exponents, and the residual stream of the blocks, a sum of many
    terms.
    """
    exact = name.startswith(EXACT) or ".output_conv2.2." in name or RESIDUAL.match(name)
    return torch.float32 if exact else dtype


def open_device(name: str) -> torch.device:
    """The device of that name, or for "auto" the fastest. Raises ValueError if it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # not that of "meta", which has no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name} cannot be used ({reason}); use device:=auto or device:=cpu") from None
    return device


def compute_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of that name, or for "auto" bfloat16 where the device has instructions for it, else float32.

    Warns of bfloat16 on a CPU without them.
    """
    bf16_cpu = cpu_supports("amx_tile") or cpu_supports("avx512_bf16")
    if name == "auto":
        fast = device.type == "cuda" or (device.type == "cpu" and bf16_cpu)
        return torch.bfloat16 if fast else torch.float32
    if name == "bfloat16" and device.type == "cpu" and not bf16_cpu:
        logger.warning("this CPU has no bfloat16 instructions: dtype:=float32 is about 20 times faster")
    return getattr(torch, name)


def _random_weights(model: StreamVGGT, form: _Form) -> None:
    """Weights that keep activations at unit scale, from a fixed seed, and a camera that looks straight ahead."""
    generator = torch.Generator(form.device).manual_seed(SEED)

    def initial(name: str, shape: torch.Size) -> Tensor:
        tensor = torch.empty(shape, dtype=form.dtype(name), device=form.device)
        if "token" in name or name.endswith("pos_embed"):
            return tensor.normal_(std=0.02, generator=generator)
        if len(shape) > 1:
            return tensor.normal_(std=shape[1:].numel() ** -0.5, generator=generator)
        return tensor.fill_(name.endswith(("weight", "gamma")))

    for name, tensor in model.state_dict().items():
        form.keep(model, name, initial(name, tensor.shape))
    straight = torch.tensor([0, 0, 0, 0, 0, 0, 1, FIELD_OF_VIEW, FIELD_OF_VIEW], device=form.device)
    form.keep(model, "camera_head.pose_branch.fc2.bias", straight / ITERATIONS)  # the iterations add up
