# SPDX-License-Identifier: Apache-2.0
"""STAC with plain loops, one token after the other, in float64: what the vectorised policy must agree with."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from xsvggt_ros import geometry
from xsvggt_ros.cache import CacheShape
from xsvggt_ros.config import CacheConfig

Array = np.ndarray
Voxel = tuple[int, int, int]


@dataclass(eq=False)
class Token:
    frame: int
    place: int
    key: Array  # [heads of the lane, d]
    value: Array
    score: float
    voxel: Voxel | None = None
    count: int = 0
    weight: float = 0.0

    @property
    def rank(self) -> float:
        return self.weight if self.count > 1 else self.score


def cosine(a: Token, b: Token) -> float:
    return float((a.key * b.key).sum() / np.linalg.norm(a.key) / np.linalg.norm(b.key))


class SlowLane:
    """The tokens of some heads of a layer, of a stream in which each step brings `config.chunk` frames."""

    def __init__(self, shape: CacheShape, config: CacheConfig):
        self.per_frame, self.specials, self.chunk = shape.tokens_per_frame, shape.specials, config.chunk
        self.probes, self.budget = config.probes, config.budget_tokens
        rest = self.budget - self.per_frame
        self.window = max(self.chunk, min(4, int(rest / 2 / self.per_frame)))
        self.anchors = max(0, rest - self.window * self.per_frame) // 2
        self.tokens: list[Token] = []
        self.merged = 0  # so far

    def attend(self, q: Array, k: Array, v: Array, first: int, seen: set[Voxel]) -> Array:
        """q, k and v [N, heads, d] of frames from `first` on -> [N, heads, d]."""
        new = [Token(*divmod(i, self.per_frame), k[i], v[i], 0.0) for i in range(len(k))]
        for token in new:
            token.frame += first
        out, mass = self._attention(q, [*self.tokens, *new], seen)
        for token, attended in zip([*self.tokens, *new], mass, strict=True):
            token.score = 0.9 * token.score + attended
        leaving = len(self.tokens) + len(new) - self.budget
        if leaving > 0:
            self._make_room(leaving, first)
        self.tokens += new
        return out

    def _attention(self, q: Array, tokens: list[Token], seen: set[Voxel]) -> tuple[Array, Array]:
        """Its output, and what each token gets of the queries that are asked."""
        bias = np.array([self._bias(token, seen) for token in tokens])
        out, mass = np.zeros_like(q), np.zeros(len(tokens))
        patches = self.per_frame - self.specials
        asked = min(self.probes, patches) or patches
        chosen = {self.specials + i * patches // asked for i in range(asked)}
        keys, values = (np.stack([getattr(t, name) for t in tokens]) for name in ("key", "value"))
        for row, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
            logits = keys[:, head] @ q[row, head] / math.sqrt(q.shape[2]) + bias
            weights = np.exp(logits - logits.max())
            weights /= weights.sum()
            out[row, head] = weights @ values[:, head]
            place = row % self.per_frame
            if place < self.specials or place in chosen:
                mass += weights * (1 if place < self.specials else patches / asked)
        return out, mass

    def _bias(self, token: Token, seen: set[Voxel]) -> float:
        if token.count == 0:
            return 0.0
        near = any(max(abs((a - b + 512) % 1024 - 512) for a, b in zip(token.voxel, s, strict=True)) <= 2 for s in seen)
        return math.log(token.count) if near else -math.inf

    def _make_room(self, leaving: int, newest: int) -> None:
        window = newest + self.chunk - self.window
        older = [t for t in self.tokens if t.count == 0 and 0 < t.frame < window]
        anchors = sorted(older, key=lambda t: -t.score)[: self.anchors]
        for token in older:
            if token.voxel is not None and token not in anchors:
                token.count, token.weight = 1, math.e
        targets = self._targets()

        def order(t: Token) -> tuple[int, int, float]:
            role = 4 if t.frame >= window else 3 if t in anchors else 2 if t.count > 1 else int(t.voxel is not None)
            return (0 if t in targets else 2 if t in targets.values() else 1, role, t.rank)

        gone = sorted((t for t in self.tokens if t.frame > 0), key=order)[:leaving]
        for target in {targets[t] for t in gone if t in targets}:
            self._merge([t for t in gone if targets.get(t) is target], target)
        self.tokens = [t for t in self.tokens if t not in gone]

    def _targets(self) -> dict[Token, Token]:
        found = {}
        for voxel in {t.voxel for t in self.tokens if t.count > 0}:
            inside = [t for t in self.tokens if t.count > 0 and t.voxel == voxel]
            merged = sorted((t for t in inside if t.count > 1), key=lambda t: -t.weight)
            left = []
            for token in inside:
                best = max(merged[:4], key=lambda r: cosine(token, r), default=None)
                if (token in merged[4:]) or (token.count == 1 and best and cosine(token, best) > 0.8):
                    found[token] = best
                elif token.count == 1:
                    left.append(token)
            if len(left) >= 8:
                pivot = max(left, key=lambda t: t.score)
                found |= {t: pivot for t in left if t is not pivot}
        return found

    def _merge(self, tokens: list[Token], target: Token) -> None:
        weights = [t.weight * math.exp(cosine(t, target) - 1) for t in tokens]
        total = target.weight + sum(weights)
        for name in ("key", "value"):
            parts = [w * getattr(t, name) for w, t in zip(weights, tokens, strict=True)]
            setattr(target, name, (target.weight * getattr(target, name) + sum(parts)) / total)
        target.weight = total
        target.count += sum(t.count for t in tokens)
        self.merged += len(tokens)


class SlowVoxels:
    """Which voxels patches lie in, and which of them the window sees."""

    def __init__(self, shape: CacheShape, window: int):
        self.grid = shape.grid
        self.window = window
        self.size: float | None = None
        self.frames: list[list[Voxel | None]] = []

    def learn(self, depth: Array, confidence: Array, pose: Array) -> None:
        """Of one frame: depth and confidence [H, W], pose [9]."""
        rows, columns = self.grid
        if self.size is None:
            self.size = 0.05 * 37 / columns * float(np.sort(depth.ravel())[(depth.size - 1) // 2])
        T, K = geometry.decode_pose(pose, *depth.shape)
        mean, sure = (
            x.reshape(rows, depth.shape[0] // rows, columns, -1).mean((1, 3)).ravel() for x in (depth, confidence)
        )
        directions = geometry.unproject(np.ones_like(depth), K).reshape(rows, depth.shape[0] // rows, columns, -1, 3)
        points = geometry.transform(geometry.inverse(T), directions.mean((1, 3)).reshape(-1, 3) * mean[:, None])
        least = 0.5 * np.sort(sure - 1)[(len(sure) - 1) // 2]
        places = np.floor(points / self.size).astype(int) % 1024
        self.frames.append([tuple(p) if s - 1 >= least else None for p, s in zip(places.tolist(), sure, strict=True)])

    @property
    def seen(self) -> set[Voxel]:
        return {v for frame in self.frames[-self.window :] for v in frame if v is not None}
