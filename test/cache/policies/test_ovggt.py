# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import torch
from support.caches import CPU, shape_of
from support.streams import PATCH, RandomStream

from xsvggt_ros.cache.policies import Geometry, make_policy
from xsvggt_ros.config import CacheConfig

EXACT = CacheConfig(policy="ovggt", budget_tokens=10_000, key_bits=16, value_bits=16)
G = ((1, 2, 1), (2, 4, 2), (1, 2, 1))
AHEAD, ASIDE, BEHIND = ((0.0, math.sin(a / 2), 0.0, math.cos(a / 2)) for a in (0.0, math.pi / 2, math.pi))


def view(rotation: tuple[float, ...]) -> Geometry:
    """A wall one unit before a camera that is turned about y."""
    rows, columns = shape_of(25).grid
    depth = torch.ones(1, PATCH * rows, PATCH * columns)
    return Geometry(depth, depth, torch.tensor([[0.0, 0.0, 0.0, *rotation, 1.0, 1.0]]))


def salience(stream: RandomStream, layer: int) -> dict[tuple[int, int], float]:
    """Of every token there ever was, written out."""
    rows, columns = stream.shape.grid
    tokens = torch.cat([x[layer] for x in stream.residuals]).norm(dim=-1)
    found = {}
    for frame, lengths in enumerate(tokens.split(25)):
        grid = lengths[5:].reshape(rows, columns)
        for token in range(25):
            found[frame, token] = float(lengths[token])
            if token >= 5:
                r, c = divmod(token - 5, columns)
                smooth = 0.0
                for dr in range(3):
                    for dc in range(3):
                        near = grid[min(max(r + dr - 1, 0), rows - 1), min(max(c + dc - 1, 0), columns - 1)]
                        smooth += G[dr][dc] / 16 * float(near)
                found[frame, token] = 0.5 * smooth + 0.5 * float(lengths[token])
    return found


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("bits", [2, 16])
def test_salience_is_the_smoothed_length_of_what_the_network_added(chunk, bits):
    stream = RandomStream(replace(EXACT, budget_tokens=300, chunk=chunk, key_bits=bits, value_bits=bits))
    for _ in range(7):
        stream.step(chunk)
    stream.cache.reconfigure(replace(EXACT, budget_tokens=150, chunk=chunk, key_bits=bits, value_bits=bits))
    for layer in range(2):
        expected, found = salience(stream, layer), stream.evidence(layer, "salience")
        assert len(found) == 150
        for (frame, token, _), x in found.items():
            assert x == pytest.approx(expected[frame, token], rel=1e-5)


def min_max(scores: dict) -> dict:
    low, high = min(scores.values()), max(scores.values())
    return {place: (x - low) / (high - low) for place, x in scores.items()}


def test_salient_new_tokens_compete_with_unlike_old_ones():
    """All views are the first one's, so that there are no anchors."""
    stream = RandomStream(replace(EXACT, budget_tokens=90))
    for _ in range(3):
        stream.step(geometry=view(AHEAD))
    for newest in range(3, 8):
        before = [stream.places(layer) for layer in range(2)]
        stream.step(geometry=view(AHEAD))
        for layer in range(2):
            of_all = salience(stream, layer)
            keys = {(f, t): stream.keys[f][layer, t] for f, t in before[layer] if f > 0}
            directions = {place: x / x.norm(dim=-1, keepdim=True) for place, x in keys.items()}
            mean = sum(directions.values()) / len(directions)
            unlike = {p: 1 - float((x * mean).sum(-1).mean()) for p, x in directions.items() if p[0] < newest - 1}
            scores = min_max({p: of_all[p] for p in directions if p[0] == newest - 1}) | min_max(unlike)
            best = sorted(scores, key=lambda place: -scores[place])[:40]
            assert stream.places(layer) == sorted([(f, t) for f in (0, newest) for t in range(25)] + best)


def test_a_view_without_the_last_anchors_points_is_an_anchor():
    policy = make_policy(EXACT, shape_of(25))
    policy.allocate(CPU, 1000)
    seen = [AHEAD, AHEAD, ASIDE, ASIDE, BEHIND, AHEAD, AHEAD, ASIDE]
    anchors = []
    for frame, rotation in enumerate(seen):
        policy.begin(torch.zeros(1, 20, 128), frame)
        assert policy.learn(view(rotation)) == {}
        anchors.append(policy.shared["anchors"].tolist())
    assert anchors[:4] == [[0, 0, 0], [0, 0, 0], [0, 0, 2], [0, 0, 2]]
    assert anchors[4:] == [[0, 2, 4], [2, 4, 5], [2, 4, 5], [4, 5, 7]]


def test_a_chunk_has_an_anchor_for_each_new_view_in_it():
    policy = make_policy(replace(EXACT, chunk=3), shape_of(25))
    policy.allocate(CPU, 1000)
    policy.begin(torch.zeros(3, 20, 128), 0)
    views = [view(rotation) for rotation in (AHEAD, ASIDE, BEHIND)]
    policy.learn(Geometry(*(torch.cat([getattr(v, x) for v in views]) for x in ("depth", "confidence", "pose"))))
    assert policy.shared["anchors"].tolist() == [0, 1, 2]


def test_the_most_salient_tokens_of_anchors_stay_through_a_long_stream_and_a_smaller_budget():
    stream = RandomStream(replace(EXACT, budget_tokens=75))
    for frame in range(12):
        stream.step(geometry=view(ASIDE if frame == 2 else BEHIND if frame > 2 else AHEAD))
    assert stream.cache.policy.shared["anchors"].tolist() == [0, 2, 3]
    stream.cache.reconfigure(replace(EXACT, budget_tokens=54))
    assert stream.cache.policy.shared["anchors"].tolist() == [0, 2, 3]
    for layer in range(2):
        of_all = salience(stream, layer)
        anchored = [max((p for p in of_all if p[0] == f), key=lambda p: of_all[p]) for f in (2, 3)]
        second = [sorted((p for p in of_all if p[0] == f), key=lambda p: -of_all[p])[1] for f in (2, 3)]
        ends = [(f, t) for f in (0, 11) for t in range(25)]
        assert stream.places(layer) == sorted(ends + anchored + second)  # 5 % of 25 is 2 tokens of each
