# SPDX-License-Identifier: Apache-2.0
"""Random frames, fed to a cache as the network does, and all that they were."""

from __future__ import annotations

import torch
from torch import Tensor

from support.caches import cache_of, shape_of
from xsvggt_ros.cache.policies import Geometry
from xsvggt_ros.config import CacheConfig

PATCH = 14  # pixels a side


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
        cache, shape = self.cache, self.shape
        tokens = frames * shape.tokens_per_frame
        q, k, v = self._normal(3, shape.layers, tokens, shape.heads, shape.head_dim)
        patches = self._normal(frames, shape.tokens_per_frame - shape.specials, shape.width)
        residual = self._normal(shape.layers, tokens, shape.width)
        geometry = geometry or self._geometry(frames)
        cache.begin(patches)
        for layer in range(shape.layers):
            cache.attend(layer, q[layer][None], k[layer][None], v[layer][None])
            cache.added(layer, torch.ones(shape.width), residual[layer][None])
        for block in range(shape.camera_blocks):
            cache.camera.attend(block, *torch.zeros(3, 1, frames, shape.camera_heads, shape.camera_head_dim))
        cache.end_frames(frames)
        cache.learn(geometry)
        for seen, new in [
            (self.queries, q),
            (self.keys, k),
            (self.values, v),
            (self.patches, patches),
            (self.residuals, residual),
            (self.geometries, geometry),
        ]:
            seen.append(new)

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
