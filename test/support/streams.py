# SPDX-License-Identifier: Apache-2.0
"""Random frames, fed to a cache as the network does, and all that they were."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from support.caches import cache_of, shape_of
from xsvggt_ros.cache.policies import Geometry
from xsvggt_ros.config import CacheConfig

PATCH = 14  # pixels a side


@dataclass
class NewFrames:
    """What a step brings: S frames of N tokens together."""

    q: Tensor  # [layers, N, heads, d]
    k: Tensor
    v: Tensor
    patches: Tensor  # [S, n, C]
    residual: Tensor  # [layers, N, C]
    geometry: Geometry

    @property
    def count(self) -> int:
        return self.patches.shape[0]


class RandomStream:
    """A cache and its frames. Lists hold one entry per step, of the new tokens: [layers, N, ...]."""

    def __init__(self, config: CacheConfig, tokens_per_frame: int = 25, layers: int = 2, seed: int = 0):
        self.shape = shape_of(tokens_per_frame, layers)
        self.cache = cache_of(self.shape, config)
        self.generator = torch.Generator().manual_seed(seed)
        self.queries: list[Tensor] = []  # [layers, N, heads, d]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.patches: list[Tensor] = []  # [S, n, C]
        self.residuals: list[Tensor] = []  # [layers, N, C]
        self.geometries: list[Geometry] = []

    def step(self, frames: int = 1, geometry: Geometry | None = None) -> None:
        """Takes that many frames in at once, of which the model says `geometry`, or anything."""
        new = self.draw(frames, geometry)
        self.feed(new)
        for seen, part in [
            (self.queries, new.q),
            (self.keys, new.k),
            (self.values, new.v),
            (self.patches, new.patches),
            (self.residuals, new.residual),
            (self.geometries, new.geometry),
        ]:
            seen.append(part)

    def draw(self, frames: int, geometry: Geometry | None = None) -> NewFrames:
        """Random frames, and what the model is to say about them."""
        shape = self.shape
        tokens = frames * shape.tokens_per_frame
        q, k, v = self._normal(3, shape.layers, tokens, shape.heads, shape.head_dim)
        patches = self._normal(frames, shape.tokens_per_frame - shape.specials, shape.width)
        residual = self._normal(shape.layers, tokens, shape.width)
        return NewFrames(q, k, v, patches, residual, geometry or self._geometry(frames))

    def feed(self, new: NewFrames, layers: int | None = None) -> list[Tensor]:
        """What the network does in a step; or as far as it comes if it fails after some of the layers.

        Returns what attention gives in each layer [N, heads, d].
        """
        cache, shape = self.cache, self.shape
        cache.begin(new.patches)
        outputs = []
        for layer in range(shape.layers if layers is None else layers):
            outputs.append(cache.attend(layer, new.q[layer][None], new.k[layer][None], new.v[layer][None])[0])
            cache.added(layer, torch.ones(shape.width), new.residual[layer][None])
        if layers is None:
            for block in range(shape.camera_blocks):
                cache.camera.attend(block, *torch.zeros(3, 1, new.count, shape.camera_heads, shape.camera_head_dim))
            cache.end_frames(new.count)
            cache.learn(new.geometry)
        return outputs

    def places(self, layer: int, lane: int = 0) -> list[tuple[int, int]]:
        """(frame, place in the frame) of every cached token, ascending."""
        return [divmod(int(i), self.shape.tokens_per_frame) for i in self.cache.token_ids(layer, lane)]

    def evidence(self, layer: int, name: str) -> dict[tuple[int, int, int], float]:
        """What is kept about each cached token: {(frame, place, lane): x}."""
        store = self.cache.layers[layer]
        frame, token = store.places()
        x = store.evidence()[name]
        return {
            (int(frame[t, lane]), int(token[t, lane]), lane): float(x[t, lane])
            for t in range(x.shape[0])
            for lane in range(x.shape[1])
        }

    def _normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator)

    def _geometry(self, frames: int) -> Geometry:
        rows, columns = self.shape.grid
        depth = 1 + torch.rand(frames, PATCH * rows, PATCH * columns, generator=self.generator)
        pose = 0.2 * self._normal(frames, 9)
        pose[:, 6:] += 1.0
        return Geometry(depth, 1 + self._normal(*depth.shape).exp(), pose)
