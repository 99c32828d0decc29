# SPDX-License-Identifier: Apache-2.0
"""Dense prediction head: tokens of four depths -> one map at the image's resolution (DPT, arXiv 2103.13413)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xsvggt_ros.config import PATCH_SIZE
from xsvggt_ros.fusing import Fusing, as_written
from xsvggt_ros.model.config import DPTConfig

HIDDEN = 32  # channels before the last convolution
Embedding = Callable[..., tuple[Tensor, Tensor]]


@torch.inference_mode(False)
def uv_embedding(
    rows: int, columns: int, channels: int, aspect: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """0.1 x sine/cosine embedding of the position in the image plane, of the column and of the row.

    They are [1, channels, 1, columns] and [1, channels, rows, 1], each 0 where the other is not, to be added: a table
    of both would be as large as the features. `aspect` is the image's width / height; the plane's half diagonal is 1.
    """
    diagonal = (aspect**2 + 1) ** 0.5
    u = _centres(columns, aspect / diagonal)
    v = _centres(rows, 1 / diagonal)
    frequencies = 100 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    u_part, v_part = (
        0.1 * torch.cat([a.sin(), a.cos()], dim=-1).float().to(device, dtype)
        for a in (u[:, None] * frequencies, v[:, None] * frequencies)
    )
    # Channels last in memory, as features are.
    of_column = torch.cat([u_part, torch.zeros_like(u_part)], dim=-1).T[None, :, None]
    of_row = torch.cat([torch.zeros_like(v_part), v_part], dim=-1).T[None, :, :, None]
    return of_column, of_row


def _centres(count: int, half: float) -> Tensor:
    edge = half * (count - 1) / count
    return torch.linspace(-edge, edge, count, dtype=torch.float64)


class ResidualUnit(nn.Module):
    """conv(ReLU(conv(r))) + r with r = ReLU(x): the published network's skip carries the rectified input."""

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return self.conv2(self.conv1(x).relu()) + x


class Fusion(nn.Module):
    """Adds one resolution's features to the running ones and enlarges to the next."""

    def __init__(self, features: int, skip: bool = True):
        super().__init__()
        if skip:
            self.resConfUnit1 = ResidualUnit(features)
        self.resConfUnit2 = ResidualUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor, skip: Tensor | None, size: tuple[int, int]) -> Tensor:
        """x and skip [S, F, a, b] -> [S, F, *size]."""
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        # A 1x1 convolution commutes with interpolation; before it, it costs a quarter.
        return enlarge(self.out_conv(self.resConfUnit2(x)), size)


def enlarge(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


class Scratch(nn.Module):
    """Everything after the four resolutions are made; the name is the checkpoint's."""

    def __init__(self, config: DPTConfig, outputs: int | None):
        super().__init__()
        features = config.features
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            nn.Conv2d(channels, features, 3, padding=1, bias=False) for channels in config.out_channels
        )
        self.refinenet1 = Fusion(features)
        self.refinenet2 = Fusion(features)
        self.refinenet3 = Fusion(features)
        self.refinenet4 = Fusion(features, skip=False)
        if outputs is None:
            self.output_conv1 = nn.Conv2d(features, features, 3, padding=1)
        else:
            self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
            self.output_conv2 = nn.Sequential(
                nn.Conv2d(features // 2, HIDDEN, 3, padding=1), nn.ReLU(), nn.Conv2d(HIDDEN, outputs, 1)
            )


class DPTHead(nn.Module):
    """`outputs` channels at full resolution, or feature maps at half of it if `outputs` is None.

    `embed` is `uv_embedding`, or what remembers it: constant per shape.
    """

    def __init__(self, width: int, config: DPTConfig, outputs: int | None, embed: Embedding = uv_embedding):
        super().__init__()
        channels = config.out_channels
        self.outputs = outputs
        self._embed = embed
        self._channels = (*channels, config.features // 2)  # of what positions are added to
        self.norm = nn.LayerNorm(width)
        self.projects = nn.ModuleList(nn.Conv2d(width, c, 1) for c in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = Scratch(config, outputs)

    def forward(self, taps: list[Tensor], grid: tuple[int, int], fused: Fusing = as_written) -> Tensor:
        """Patch tokens of the four taps, each [S, h*w, 2C] -> [S, outputs, 14h, 14w], not activated.

        Without `outputs`: feature maps [S, features, 7h, 7w].
        """
        return fused(DPTHead._decoded)(self, taps, grid, self._positions(grid) if self.outputs else None)

    def _positions(self, grid: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
        """What is added to the four levels, and before the last convolutions: tables, made once."""
        (rows, columns), weight, (*channels, last) = grid, self.norm.weight, self._channels
        sizes = [*((rows, columns, c) for c in channels), (PATCH_SIZE * rows, PATCH_SIZE * columns, last)]
        return [self._embed(*size, columns / rows, weight.device, weight.dtype) for size in sizes]

    def _decoded(
        self, taps: list[Tensor], grid: tuple[int, int], positions: list[tuple[Tensor, Tensor]] | None
    ) -> Tensor:
        s = self.scratch
        at: Sequence[tuple[Tensor, Tensor] | None] = positions or [None] * len(self._channels)
        l1, l2, l3, l4 = (self._level(j, tap, grid, at[j]) for j, tap in enumerate(taps))
        x = s.refinenet4(s.layer4_rn(l4), None, l3.shape[-2:])
        x = s.refinenet3(x, s.layer3_rn(l3), l2.shape[-2:])
        x = s.refinenet2(x, s.layer2_rn(l2), l1.shape[-2:])
        x = s.refinenet1(x, s.layer1_rn(l1), (8 * grid[0], 8 * grid[1]))
        x = s.output_conv1(x)
        if self.outputs is None:
            return enlarge(x, (PATCH_SIZE // 2 * grid[0], PATCH_SIZE // 2 * grid[1]))
        x = _added(enlarge(x, (PATCH_SIZE * grid[0], PATCH_SIZE * grid[1])), at[4])
        first, relu, last = s.output_conv2
        # The last layer's output is an exponent: it may be kept in float32 while the rest is bf16.
        return last(relu(first(x)).to(last.weight.dtype))

    def _level(self, j: int, tap: Tensor, grid: tuple[int, int], position: tuple[Tensor, Tensor] | None) -> Tensor:
        x = self.norm(tap.to(self.norm.weight.dtype))
        x = x.unflatten(1, grid).permute(0, 3, 1, 2)  # [S, 2C, h, w], channels last in memory
        return self.resize_layers[j](_added(self.projects[j](x), position))


def _added(x: Tensor, position: tuple[Tensor, Tensor] | None) -> Tensor:
    """In place: x is large, and nobody else's."""
    for part in position or ():
        x.add_(part)
    return x
