# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import numpy as np
import pytest
from support.streams import PATCH, RandomStream

from xsvggt_ros.config import CacheConfig

EXACT = CacheConfig(policy="ghost", budget_tokens=10_000, key_bits=16, value_bits=16)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gradient(x: np.ndarray) -> np.ndarray:
    """Length of the gradient at each place of x [rows, columns, C]."""
    rows, columns = x.shape[:2]
    found = np.zeros((rows, columns))
    for r in range(rows):
        for c in range(columns):
            down = x[min(r + 1, rows - 1), c] - x[max(r - 1, 0), c]
            right = x[r, min(c + 1, columns - 1)] - x[r, max(c - 1, 0)]
            found[r, c] = math.sqrt(((down / 2) ** 2 + (right / 2) ** 2).sum())
    return found


def standard(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / x.std()


def naive_scores(stream: RandomStream) -> list[np.ndarray]:
    """Of every frame's tokens, written out."""
    rows, columns = stream.shape.grid
    found: list[np.ndarray] = []
    last = None
    for patches, geometry in zip(stream.patches, stream.geometries, strict=True):
        for s in range(patches.shape[0]):
            pose = geometry.pose[s].numpy()
            dT, q = pose[:3], pose[3:7] / np.linalg.norm(pose[3:7])
            motion = 0.0 if last is None else np.linalg.norm(dT - last[0]) + 1 - abs(q @ last[1])
            last = dT, q
            of_patches = [
                x[s].numpy().reshape(rows, PATCH, columns, PATCH).mean((1, 3))
                for x in (geometry.depth, geometry.confidence)
            ]
            depth, confidence = of_patches
            t = len(found)
            F = 0.55 * sigmoid(motion) + 0.55 * sigmoid(gradient((depth / depth.mean())[..., None]).var())
            F = (F + 0.25 * sigmoid(t / (t + 1))) / 1.35
            texture = gradient(patches[s].numpy().reshape(rows, columns, -1))
            tau = (0.28 * sigmoid(standard(texture)) + 0.8 * sigmoid(standard(confidence))) / 1.08
            found.append(np.concatenate([np.full(5, F + 0.3), (0.5 * F + 0.5 * tau).ravel()]))
    return found


@pytest.mark.parametrize("chunk", [1, 3])
def test_the_score_is_the_formula_of_frame_and_token(chunk):
    stream = RandomStream(replace(EXACT, chunk=chunk), tokens_per_frame=25)
    for _ in range(3):
        stream.step(chunk)
    expected = naive_scores(stream)
    for layer in range(2):
        for (frame, token, _), score in stream.evidence(layer, "ghost_score").items():
            assert score == pytest.approx(expected[frame][token], abs=1e-5)


@pytest.mark.parametrize("bits", [2, 16])
@pytest.mark.parametrize("chunk", [1, 3])
def test_the_best_of_the_middle_stay_and_keep_their_scores(bits, chunk):
    config = replace(EXACT, budget_tokens=150, key_bits=bits, value_bits=bits, chunk=chunk)
    stream = RandomStream(config)
    for _ in range(5):
        stream.step(chunk)
    kept = [stream.places(0), stream.places(1)]
    scores = naive_scores(stream)
    frames = 5 * chunk
    ends = {(f, t) for f in (0, *range(frames - chunk, frames)) for t in range(25)}
    middle = {(f, t): scores[f][t] for f in range(1, frames - chunk) for t in range(25)}
    best = sorted(middle, key=lambda place: -middle[place])[: 150 - len(ends)]
    assert kept == [sorted(ends | set(best))] * 2  # a score that is fixed makes pruning the same in steps and at once
    stream.cache.reconfigure(replace(config, budget_tokens=25 * (1 + chunk) + 10))
    assert stream.places(1) == sorted(ends | set(best[:10]))
    for (frame, token, _), score in stream.evidence(0, "ghost_score").items():
        assert score == pytest.approx(scores[frame][token], abs=1e-5)
