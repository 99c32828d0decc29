# SPDX-License-Identifier: Apache-2.0
"""What is asked of the inner layers in training only: without it the pose stays constant for long.

Patches must find the same place in other frames (by their encoding, and by one attention head of some global
blocks), and linear readouts must tell where patches and cameras are. None of it is exported.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xsvggt_ros.model.attention import Context
from xsvggt_ros.model.config import ModelConfig
from xsvggt_ros.training.batches import Batch
from xsvggt_ros.training.losses import relative_pose_loss

MATCHING_BLOCKS = (1, 2, 3)  # global blocks
MATCHING_HEAD = 0
DESCRIPTOR = 64  # channels that tell patches apart
SHARPNESS = 10.0  # of the comparison of two descriptors, at first
POINT, FLOW, POSE = 3, 2, 7  # channels of a readout


class Matches:
    """Where the middle of every patch of a frame lies in the patch grid of every other.

    asked: the frames [t] whose patches are to find themselves in all others; None: all.
    """

    def __init__(self, batch: Batch, grid: tuple[int, int], patch: int, asked: Tensor | None = None):
        rows, columns = grid
        self.asked = torch.arange(batch.depth.shape[1]) if asked is None else asked
        device = batch.depth.device
        v, u = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        middle = (torch.stack([u, v], -1).flatten(0, 1) * patch + patch // 2).to(batch.depth)  # [n, 2]
        index = middle.long()
        self.points = batch.points(middle, batch.depth[..., index[:, 1], index[:, 0]])  # [B, S, n, 3]
        pixels, depth = batch.project(self.points)  # [B, S, S, n, 2], [B, S, S, n]: of frame t in frame s
        self.place = (pixels - patch // 2) / patch  # column and row in s, of patches of t
        self.visible = batch.visible(pixels, depth)  # [B, S, S, n]
        seen_before = torch.ones(self.visible.shape[1:3], device=device).tril(-1)  # t sees s < t only
        self.weight = self.visible * seen_before[:, :, None]
        self.target = hats(self.place[:, self.asked], rows, columns)  # [B, t, S, n, rows * columns]

    def loss(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Cross-entropy of softmax(queries keys^T) of patches, [B, S, n, d] both, against the true places."""
        logits = torch.einsum("btnd,bsmd->btsnm", queries[:, self.asked].float(), keys.float())
        entropy = -(self.target * logits.log_softmax(-1)).sum(-1)
        weight = self.weight[:, self.asked]
        return (entropy * weight).sum() / weight.sum().clamp(min=1)


def hats(place: Tensor, rows: int, columns: int) -> Tensor:
    """Bilinear weights of the grid's patches about each place (column, row) [..., 2] -> [..., rows * columns]."""

    def along(x: Tensor, count: int) -> Tensor:
        return (1 - (x.clamp(0, count - 1)[..., None] - torch.arange(count, device=x.device)).abs()).relu()

    horizontal, vertical = along(place[..., 0], columns), along(place[..., 1], rows)
    return (vertical[..., None] * horizontal[..., None, :]).flatten(-2)


class Supervision(nn.Module):
    """The training-only heads."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        width = 2 * config.width
        self.descriptor = nn.Linear(config.width, DESCRIPTOR)
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        self.patches = nn.ModuleList(nn.Linear(width, POINT + FLOW) for _ in config.taps)
        self.cameras = nn.ModuleList(nn.Linear(width, POSE) for _ in config.taps)

    def losses(
        self,
        batch: Batch,
        matches: Matches,
        encoded: Tensor,
        attention: list[tuple[Tensor, Tensor]],
        taps: list[Tensor],
    ) -> dict[str, Tensor]:
        """Losses by name, of what network.Output holds."""
        tokens = [F.layer_norm(tap.float(), tap.shape[-1:]) for tap in taps]
        specials = self.config.specials
        return {
            "encoder match": self._encoder_match(matches, encoded),
            "attention match": self._attention_match(matches, attention),
            "patch readout": _mean(
                _patch_loss(head(x[:, :, specials:]), matches) for head, x in zip(self.patches, tokens, strict=True)
            ),
            "camera readout": _mean(
                relative_pose_loss(head(x[:, :, 0]), batch.pose[..., :POSE]).mean()
                for head, x in zip(self.cameras, tokens, strict=True)
            ),
        }

    def _encoder_match(self, matches: Matches, encoded: Tensor) -> Tensor:
        descriptors = F.normalize(self.descriptor(encoded.float()), dim=-1)
        return matches.loss(self.sharpness * descriptors, descriptors)

    def _attention_match(self, matches: Matches, attention: list[tuple[Tensor, Tensor]]) -> Tensor:
        def patches(x: Tensor) -> Tensor:
            x = x[:, :, MATCHING_HEAD].unflatten(1, (matches.points.shape[1], -1))
            return x[:, :, self.config.specials :]

        return _mean(matches.loss(patches(q) * q.shape[-1] ** -0.5, patches(k)) for q, k in attention)


def _mean(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()


def _patch_loss(readout: Tensor, matches: Matches) -> Tensor:
    """Readout [B, S, n, 5]: the patch's world point, and its way in the grid to the first frame.

    Nothing is asked about the frame before: which of those it has seen that was, no token says.
    """
    point, flow = readout.split((POINT, FLOW), -1)
    distance = matches.points.norm(dim=-1, keepdim=True).clamp(min=1)
    own = matches.place.diagonal(dim1=1, dim2=2).movedim(-1, 1)  # [B, S, n, 2]
    weight = matches.weight[:, :, 0]
    off = (flow - (matches.place[:, :, 0] - own)).abs().sum(-1) * weight
    return ((point - matches.points) / distance).norm(dim=-1).mean() + off.sum() / weight.sum().clamp(min=1)


class Recording(NamedTuple):
    """The context of the global blocks, which also notes the queries and keys of MATCHING_BLOCKS."""

    context: Context
    noted: list[tuple[Tensor, Tensor]]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """As the context itself."""
        if layer in MATCHING_BLOCKS:
            self.noted.append((q, k))
        return self.context.attend(layer, q, k, v)

    def added(self, layer: int, scale: Tensor, residual: Tensor) -> None:
        """As the context itself."""
        self.context.added(layer, scale, residual)
