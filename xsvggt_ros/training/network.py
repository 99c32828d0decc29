# SPDX-License-Identifier: Apache-2.0
"""The network as it is trained: where its weights start, how it runs whole sequences, which optimizer moves what."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xsvggt_ros.model.attention import WholeSequence
from xsvggt_ros.model.camera_head import ITERATIONS, CameraHead, activate_pose
from xsvggt_ros.model.config import ModelConfig
from xsvggt_ros.model.loading import FIELD_OF_VIEW, compute_dtype
from xsvggt_ros.model.streamvggt import Predictions, StreamVGGT
from xsvggt_ros.training.supervision import Recording, Supervision

TRUNK_SCALE = 0.05  # of the camera head's residuals at first: with 1 the pose saturates and stays constant
RATES = {"blocks": 2e-3, "camera trunk": 5e-4, "camera": 3e-5, "dense": 5e-4}
# The camera's is so low because tokens of all frames are alike at first: a step of every weight then adds up in the
# pose, which with 1e-4 was noisier than if it had stayed constant.
WEIGHT_DECAY = 0.01


@dataclass
class Output:
    """Predictions for chosen frames, poses of all, and what the training-only heads look at."""

    predictions: Predictions  # dense maps [B, chosen, ...], poses [iterations, B, S, 9]
    encoded: Tensor  # [B, S, n, C]
    attention: list[tuple[Tensor, Tensor]]
    taps: list[Tensor]


def new_model(config: ModelConfig, seed: int) -> StreamVGGT:
    """A network with all heads of the configuration, ready to learn."""
    torch.manual_seed(seed)
    model = StreamVGGT(config)
    model.kernel = matmul_attention
    for name, parameter in model.named_parameters():
        if "token" in name or name.endswith("pos_embed"):
            nn.init.trunc_normal_(parameter, std=0.02)
        if name.startswith("camera_head.trunk.") and name.endswith("gamma"):
            nn.init.constant_(parameter, TRUNK_SCALE)
    last = model.camera_head.pose_branch.fc2
    nn.init.trunc_normal_(last.weight, std=0.01)
    straight = torch.tensor([0, 0, 0, 0, 0, 0, 1, FIELD_OF_VIEW, FIELD_OF_VIEW])
    last.bias.data = straight / ITERATIONS  # the iterations add up
    return model


def matmul_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v. For few tokens the plain products train faster on a CPU than PyTorch's kernel."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2)


def run(model: StreamVGGT, images: Tensor, chosen: Tensor) -> Output:
    """Whole sequences [B, S, 3, H, W] as a stream sees them; the dense heads run on `chosen` frames [s] only."""
    batch, frames = images.shape[:2]
    grid = model.grid(images)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=_fast_in_bfloat16(images.device)):
        inside = WholeSequence(model.kernel)
        encoded = model.aggregator.encode(images.flatten(0, 1), inside).unflatten(0, (batch, frames))
        x = model.aggregator.with_specials(encoded, starts=True)
        attention: list[tuple[Tensor, Tensor]] = []
        across = Recording(WholeSequence(model.kernel, x.shape[2]), attention)
        taps = model.aggregator(x, grid, inside, across)
        predictions = model.dense([tap[:, chosen] for tap in taps], grid, torch.empty(0))
    predictions.pose_iterations = streamed_poses(model.camera_head, taps[-1][:, :, 0].float())
    return Output(predictions, encoded, attention, taps)


def streamed_poses(head: CameraHead, tokens: Tensor) -> Tensor:
    """Camera tokens [B, S, 2C] -> pose encodings [iterations, B, S, 9] as a stream computes them.

    There, an iteration sees all iterations of earlier frames and its frame's earlier ones (CameraCache). Every
    iteration's starting pose counts as given, hence one frame after the other gives those without gradient, and
    then all iterations of all frames are one causal sequence.
    """
    empty = head.empty_pose_tokens.expand(*tokens.shape[:2], -1)[:, :, None]
    before = _starting_poses(head, tokens)  # [B, S, iterations - 1, 9]
    given = torch.cat([empty, before], 2).flatten(1, 2)
    repeated = head.token_norm(tokens).repeat_interleave(ITERATIONS, 1)
    delta = head.delta(repeated, given, WholeSequence(_causal)).unflatten(1, (-1, ITERATIONS))
    poses = torch.cat([delta[:, :, :1], delta[:, :, 1:] + before], 2)
    return activate_pose(poses).movedim(2, 0)


@torch.no_grad()
def _starting_poses(head: CameraHead, tokens: Tensor) -> Tensor:
    """The poses from which the second and later iterations start, [B, S, iterations - 1, 9]."""
    everything = _Everything([[] for _ in head.trunk])
    poses = [head(tokens[:, frame : frame + 1], everything)[:-1] for frame in range(tokens.shape[1])]
    return torch.cat(poses, 2).permute(1, 2, 0, 3)


class _Everything(NamedTuple):
    """The context of the camera head in a stream that forgets nothing: all keys and values so far, per block."""

    seen: list[list[tuple[Tensor, Tensor]]]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.seen[layer].append((k, v))
        keys, values = (torch.cat(part, 1) for part in zip(*self.seen[layer], strict=True))
        return matmul_attention(q, keys, values)

    def added(self, layer: int, scale: Tensor, residual: Tensor) -> None:
        pass


def _causal(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def optimizers(model: StreamVGGT, supervision: Supervision) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the matrices of the transformer blocks, AdamW for the rest.

    Raises ValueError if PyTorch is too old.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"training needs PyTorch 2.9 or later, for torch.optim.Muon; this is {torch.__version__}")
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in RATES}
    for name, parameter in model.named_parameters():
        groups[_group(name, parameter)].append(parameter)
    for name, parameter in supervision.named_parameters():
        groups["camera" if name.startswith("cameras.") else "dense"].append(parameter)
    blocks, trunk, *rest = ({"params": groups[name], "lr": rate} for name, rate in RATES.items())
    return [
        torch.optim.Muon([blocks, trunk], weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
    ]


def update(optimizers: list[torch.optim.Optimizer], device: torch.device) -> None:
    """A step of each."""
    with nullcontext() if _fast_in_bfloat16(device) else _Float32():
        for optimizer in optimizers:
            optimizer.step()


def _fast_in_bfloat16(device: torch.device) -> bool:
    return compute_dtype("auto", device) == torch.bfloat16


class _Float32(TorchFunctionMode):
    """Tensors that are turned into bfloat16 become float32 instead: Muon computes in bfloat16 on every machine."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].float() if func is torch.Tensor.bfloat16 else func(*args, **(kwargs or {}))


def _group(name: str, parameter: nn.Parameter) -> str:
    """Which of RATES holds for a parameter of the network."""
    if parameter.ndim == 2 and "trunk." in name:
        return "camera trunk"
    if parameter.ndim == 2 and "blocks." in name:
        return "blocks"
    return "camera" if name.startswith("camera_head.") else "dense"
