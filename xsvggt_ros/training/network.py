# SPDX-License-Identifier: Apache-2.0
"""The network as it is trained: where its weights start, how it runs whole sequences, which optimizer moves what."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from xsvggt_ros.model.attention import Context, Kernel, WholeSequence
from xsvggt_ros.model.camera_head import ITERATIONS, CameraHead, activate_pose
from xsvggt_ros.model.config import ModelConfig
from xsvggt_ros.model.loading import FIELD_OF_VIEW, compute_dtype
from xsvggt_ros.model.streamvggt import Predictions, StreamVGGT
from xsvggt_ros.training.attention import CausalFrames, matmul_attention
from xsvggt_ros.training.supervision import Recording, Supervision

TRUNK_SCALE = 0.05  # of the camera head's residuals at first: with 1 the pose saturates and stays constant
RATES = {"blocks": 2e-3, "camera trunk": 5e-4, "camera": 3e-5, "dense": 5e-4}
# The camera's is so low because tokens of all frames are alike at first: a step of every weight then adds up in the
# pose, which with 1e-4 was noisier than if it had stayed constant.
BY_OPTIMIZER = (("blocks", "camera trunk"), ("camera", "dense"))  # Muon's, AdamW's
WEIGHT_DECAY = 0.01
SWEEPS = 6  # after which poses to start from are right to 1e-3
CODE_ERRORS = (0.365, 0.755)  # of keys at 2 bits and values at 1: an unbiased quantiser's of a normal distribution


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


def run(model: StreamVGGT, images: Tensor, chosen: Tensor, budget: Budget | None = None, causal: bool = True) -> Output:
    """Whole sequences [B, S, 3, H, W] as a stream sees them; the dense heads run on `chosen` frames [s] only.

    budget: of what the global blocks see of the past; None: everything. causal: otherwise frames see all others.
    """
    batch, frames = images.shape[:2]
    grid = model.grid(images)
    with autocast(images.device):
        inside = WholeSequence(model.kernel)
        encoded = model.aggregator.encode(images.flatten(0, 1), inside).unflatten(0, (batch, frames))
        x = model.aggregator.with_specials(encoded, starts=True)
        attention: list[tuple[Tensor, Tensor]] = []
        across = Recording(_across(model.kernel, x.shape[2], budget, causal), attention)
        taps = model.aggregator(x, grid, inside, across)
        predictions = model.dense([tap[:, chosen] for tap in taps], grid, torch.empty(0))
    poses = streamed_poses if causal else whole_poses
    predictions.pose_iterations = poses(model.camera_head, taps[-1][:, :, 0].float())
    return Output(predictions, encoded, attention, taps)


def _across(kernel: Kernel, tokens_per_frame: int, budget: Budget | None, causal: bool) -> Context:
    """What the global blocks see."""
    if budget is not None:
        return Bounded(kernel, tokens_per_frame, budget)
    return CausalFrames(tokens_per_frame) if causal else WholeSequence(kernel)


class Budget(NamedTuple):
    """What a stream keeps of its past in training, by chance."""

    frames: int  # of tokens, beside the first and the newest frame's
    seed: int


class Bounded(NamedTuple):
    """WholeSequence of frames that see the first one, themselves, and a part of what lies between, as from a cache.

    A token that is gone for one frame is gone for all later ones. Those that are left stand for those that are not,
    and are as noisy as codes of CODE_ERRORS.
    """

    kernel: Kernel
    tokens_per_frame: int
    budget: Budget

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As Context."""
        size, total = self.tokens_per_frame, q.shape[1]
        generator = torch.Generator(q.device).manual_seed(self.budget.seed + layer)
        chance = torch.rand(total, generator=generator, device=q.device)
        stored = [_noisy(x, error, generator) for x, error in zip((k, v), CODE_ERRORS, strict=True)]
        seen = [self.kernel(q[:, :size], k[:, :size], v[:, :size])]
        for start in range(size, total, size):
            kept = size + chance[size:start].topk(min(self.budget.frames * size, start - size)).indices.sort().values
            rows = torch.cat([torch.arange(size, device=q.device), kept])
            own = slice(start, start + size)
            keys, values = (torch.cat([old[:, rows], x[:, own]], 1) for old, x in zip(stored, (k, v), strict=True))
            bias = q.new_zeros(q.shape[2], keys.shape[1])
            bias[:, size : size + len(kept)] = math.log(max(1, start - size) / max(1, len(kept)))
            seen.append(self.kernel(q[:, own], keys, values, bias))
        return torch.cat(seen, 1)

    def added(self, layer: int, scale: Tensor, residual: Tensor) -> None:
        """As Context: of no interest here."""


def _noisy(x: Tensor, error: float, generator: torch.Generator) -> Tensor:
    """x [..., d] and noise of `error` times its length."""
    noise = torch.randn(x.shape, generator=generator, device=x.device).to(x)
    return x + noise * x.detach().norm(dim=-1, keepdim=True).to(x) * (error * x.shape[-1] ** -0.5)


def streamed_poses(head: CameraHead, tokens: Tensor) -> Tensor:
    """Camera tokens [B, S, 2C] -> pose encodings [iterations, B, S, 9] as a stream computes them.

    There, an iteration sees all iterations of earlier frames and its frame's earlier ones (CameraCache). With the
    poses that iterations start from, which count as given, all of them are one causal sequence. Those poses are what
    such a sequence gives when it is computed again and again: early frames and iterations are right first.
    """
    normalised = head.token_norm(tokens).repeat_interleave(ITERATIONS, 1)
    empty = head.empty_pose_tokens.expand(*tokens.shape[:2], -1)[:, :, None]

    def poses(given: Tensor) -> Tensor:  # [B, S, iterations - 1, 9] -> [B, S, iterations, 9]
        delta = head.delta(normalised, torch.cat([empty, given], 2).flatten(1, 2), WholeSequence(_causal))
        delta = delta.unflatten(1, (-1, ITERATIONS))
        return torch.cat([delta[:, :, :1], delta[:, :, 1:] + given], 2)

    given = tokens.new_zeros(*tokens.shape[:2], ITERATIONS - 1, head.empty_pose_tokens.shape[-1])
    with torch.no_grad():
        for _ in range(SWEEPS):
            given = poses(given)[:, :, :-1]
    return activate_pose(poses(given)).movedim(2, 0)


def whole_poses(head: CameraHead, tokens: Tensor) -> Tensor:
    """As `streamed_poses`, of frames that all see each other."""
    normalised, context = head.token_norm(tokens), WholeSequence(matmul_attention)
    pose, poses = head.empty_pose_tokens.expand(*tokens.shape[:2], -1), []
    for iteration in range(ITERATIONS):
        given = pose.detach() if iteration else pose
        pose = head.delta(normalised, given, context) + (given if iteration else 0)
        poses.append(activate_pose(pose))
    return torch.stack(poses)


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
        if parameter.requires_grad:
            groups[_group(name, parameter)].append(parameter)
    for name, parameter in supervision.named_parameters():
        if parameter.requires_grad:
            groups["camera" if name.startswith("cameras.") else "dense"].append(parameter)
    matrices, rest = ([{"params": groups[n], "lr": RATES[n]} for n in names if groups[n]] for names in BY_OPTIMIZER)
    return [
        torch.optim.Muon(matrices, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY),
    ]


def update(optimizers: list[torch.optim.Optimizer], device: torch.device) -> None:
    """A step of each."""
    with nullcontext() if _fast_in_bfloat16(device) else _Float32():
        for optimizer in optimizers:
            optimizer.step()


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the machine is fast in it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=_fast_in_bfloat16(device))


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
