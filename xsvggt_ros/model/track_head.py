# SPDX-License-Identifier: Apache-2.0
"""Follows given pixels of the first frame through the others (VGGT, arXiv 2503.11651, section 3.3; CoTracker 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xsvggt_ros.model.blocks import Mlp
from xsvggt_ros.model.config import DPTConfig, TrackConfig
from xsvggt_ros.model.dpt_head import DPTHead

STRIDE = 2  # image pixels per pixel of the feature maps
MOTION_SCALE = 518.0


class TrackHead(nn.Module):
    """Tokens of a whole sequence -> tracks of the query points."""

    def __init__(self, width: int, config: TrackConfig):
        super().__init__()
        dpt = DPTConfig(config.features, config.out_channels)
        self.feature_extractor = DPTHead(width, dpt, outputs=None)
        self.tracker = Tracker(config)

    def forward(self, taps: list[Tensor], grid: tuple[int, int], query_points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patch tokens of the four taps, each [B, S, h*w, 2C]; pixels (x, y) of frame 0 to follow, [B, N, 2].

        Gives the pixels in every frame [B, S, N, 2], and how likely each is visible and right, both [B, S, N] in
        [0, 1].
        """
        maps = self.feature_extractor([tap.flatten(0, 1) for tap in taps], grid).unflatten(0, taps[0].shape[:2])
        tracks, visibility, confidence = self.tracker(maps, query_points)
        return tracks[-1], visibility, confidence


class Tracker(nn.Module):
    """Refines all tracks together, starting from points that do not move or where they are known to have been."""

    def __init__(self, config: TrackConfig):
        super().__init__()
        features = config.features
        token = 3 * features + 4  # motion (features + 4), correlation (features), appearance (features)
        self.levels, self.radius, self.iterations = config.corr_levels, config.corr_radius, config.iterations
        self.query_ref_token = nn.Parameter(torch.zeros(1, 2, token))  # frame 0; all others
        self.corr_mlp = Mlp(self.levels * (2 * self.radius + 1) ** 2, config.width, features)
        self.updateformer = UpdateFormer(token, config, 2 + features)
        self.fmap_norm = nn.LayerNorm(features)
        self.ffeat_norm = nn.GroupNorm(1, features)
        self.ffeat_updater = nn.Sequential(nn.Linear(features, features), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(features, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(features, 1))

    def forward(self, maps: Tensor, query_points: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """As TrackHead, for B sequences side by side, the pixels of every iteration: [iterations, B, S, N, 2].

        Feature maps [B, S, F, H/2, W/2] and query points [B, N, 2]. start [B, S, N, 2]: the pixels from which the
        search starts, by default the query's; of frame 0 they are that.
        """
        maps = self.fmap_norm(maps.movedim(2, -1).to(self.fmap_norm.weight.dtype)).movedim(-1, 2)
        frames, _, rows, columns = maps.shape[1:]
        query = query_points.to(maps)[:, None] / STRIDE  # [B, 1, N, 2]
        points = query.expand(-1, frames, -1, -1) if start is None else start.to(maps) / STRIDE  # [B, S, N, 2]
        appearance = sample(maps[:, 0], query[:, 0], "border")[:, None].expand(-1, frames, -1, -1)  # [B, S, N, F]
        place = position_embedding(query, (columns, rows), self.query_ref_token.shape[-1])  # [B, 1, N, token]
        role = self.query_ref_token[0, (torch.arange(frames) > 0).long()]  # [S, token]
        pyramid, found = self._pyramid(maps.flatten(0, 1)), []
        for _ in range(self.iterations):
            points = points.detach()  # an iteration learns from where it starts, not through it
            correlation = self.corr_mlp(self._correlate(pyramid, points.flatten(0, 1), appearance.flatten(0, 1)))
            motion = motion_embedding(points - points[:, :1], maps.shape[2])
            tokens = torch.cat([motion, correlation.view_as(appearance), appearance], dim=-1) + place + role[:, None]
            shift, change = self.updateformer(tokens).tensor_split([2], dim=-1)  # [B, S, N, 2], [B, S, N, F]
            appearance = appearance + self.ffeat_updater(self.ffeat_norm(change.flatten(0, 2))).view_as(change)
            points = torch.cat([query, (points + shift)[:, 1:]], 1)
            found.append(STRIDE * points)
        visibility, confidence = (
            predictor(appearance)[..., 0].sigmoid() for predictor in (self.vis_predictor, self.conf_predictor)
        )
        return torch.stack(found), visibility, confidence

    def _pyramid(self, maps: Tensor) -> list[Tensor]:
        pyramid = [maps]
        while len(pyramid) < self.levels:
            pyramid.append(F.avg_pool2d(pyramid[-1], 2))
        return pyramid

    def _correlate(self, pyramid: list[Tensor], points: Tensor, appearance: Tensor) -> Tensor:
        """Scaled products of each point's appearance with the maps around it: [S, N, levels * side * side].

        Of all frames S of all sequences, maps [S, F, h, w] and appearance [S, N, F], points [S, N, 2].
        """
        steps = torch.arange(-self.radius, self.radius + 1, device=points.device, dtype=points.dtype)
        around = torch.cartesian_prod(steps, steps)  # [side * side, 2], x outer
        scaled = appearance / appearance.shape[-1] ** 0.5
        products = []
        for level, maps in enumerate(pyramid):
            volume = (scaled @ maps.flatten(2)).unflatten(2, maps.shape[2:])  # [S, N, h, w]
            places = points[:, :, None] / 2**level + around  # [S, N, side * side, 2]
            near = sample(volume.flatten(0, 1)[:, None], places.flatten(0, 1), "zeros")  # [S * N, side * side, 1]
            products.append(near.view(*points.shape[:2], -1))
        return torch.cat(products, dim=-1)


def sample(maps: Tensor, points: Tensor, padding: str) -> Tensor:
    """Bilinear samples of maps [S, F, a, b] at points [S, M, 2] (x, y; pixel centres at integers): [S, M, F]."""
    rows, columns = maps.shape[-2:]
    last = points.new_tensor([max(columns - 1, 1), max(rows - 1, 1)])
    samples = F.grid_sample(maps, (2 * points / last - 1)[:, None], padding_mode=padding, align_corners=True)
    return samples[:, :, 0].transpose(1, 2)


def motion_embedding(motion: Tensor, channels: int) -> Tensor:
    """Displacements [..., 2] -> [..., channels + 4]: sines and cosines of x, then of y, then x, y, x, y scaled.

    The frequencies grow linearly, as in the published model, not geometrically.
    """
    half = channels // 2
    frequencies = torch.arange(0, half, 2, device=motion.device, dtype=motion.dtype) * (1000 / half)
    angles = motion[..., None] * frequencies  # [..., 2, channels / 4]
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)
    scaled = motion / MOTION_SCALE
    return torch.cat([waves, scaled, scaled], dim=-1)


def position_embedding(points: Tensor, size: tuple[int, int], channels: int) -> Tensor:
    """Sine/cosine table of a `size` (columns, rows) plane, sampled at points [..., 2]: [..., channels], x then y.

    The 2-D table of the published model is separable, so each axis is interpolated alone.
    """
    halves = [_axis_embedding(points[..., i], size[i], channels // 2) for i in range(2)]
    return torch.cat(halves, dim=-1).to(points.dtype)


def _axis_embedding(position: Tensor, size: int, channels: int) -> Tensor:
    frequencies = 10000 ** -(torch.arange(channels // 2, device=position.device, dtype=torch.float64) / (channels // 2))
    position = position.double().clamp(0, size - 1)[..., None]
    low = position.floor()
    angles = torch.stack([low, low + 1]) * frequencies  # [2, ..., channels / 2]
    before, after = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return torch.lerp(before, after, position - low)


class UpdateFormer(nn.Module):
    """Attention over time for each track, and over tracks in each frame through a few virtual tracks."""

    def __init__(self, width_in: int, config: TrackConfig, width_out: int):
        super().__init__()
        width, heads, layers = config.width, config.heads, range(config.layers)
        self.input_norm = nn.LayerNorm(width_in)
        self.input_transform = nn.Linear(width_in, width)
        self.virual_tracks = nn.Parameter(torch.zeros(1, config.virtual_tracks, 1, width))  # spelt as in the checkpoint
        self.time_blocks = nn.ModuleList(SelfBlock(width, heads) for _ in layers)
        self.space_virtual_blocks = nn.ModuleList(SelfBlock(width, heads) for _ in layers)
        self.space_point2virtual_blocks = nn.ModuleList(CrossBlock(width, heads) for _ in layers)
        self.space_virtual2point_blocks = nn.ModuleList(CrossBlock(width, heads) for _ in layers)
        self.output_norm = nn.LayerNorm(width)
        self.flow_head = nn.Linear(width, width_out)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of N points in S frames [B, S, N, width_in] -> their updates [B, S, N, width_out]."""
        start = self.input_transform(self.input_norm(tokens))
        virtual = self.virual_tracks[0].transpose(0, 1).expand(*start.shape[:2], -1, -1)  # [B, S, V, width]
        points, sizes = start, (start.shape[2], virtual.shape[2])
        for i in range(len(self.time_blocks)):
            tracks = torch.cat([points, virtual], dim=2).transpose(1, 2)  # [B, N + V, S, width]
            tracks = self.time_blocks[i](tracks.flatten(0, 1)).view(tracks.shape).transpose(1, 2).flatten(0, 1)
            points, virtual = tracks.split(sizes, dim=1)  # [B * S, N, width] and [B * S, V, width]
            virtual = self.space_virtual2point_blocks[i](virtual, points)
            virtual = self.space_virtual_blocks[i](virtual)
            points = self.space_point2virtual_blocks[i](points, virtual)
            points, virtual = points.view(start.shape), virtual.unflatten(0, start.shape[:2])
        return self.flow_head(self.output_norm(points + start))


class SelfBlock(nn.Module):
    """Transformer block whose residual is the normalised input, as in the published model."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, width] -> [B, T, width]."""
        x = self.norm1(x)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class CrossBlock(nn.Module):
    """As SelfBlock, attending to another set of tokens."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, T, width] attends to context [B, M, width] -> [B, T, width]."""
        x, context = self.norm1(x), self.norm_context(context)
        x = x + self.cross_attn(x, context, context, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))
