# SPDX-License-Identifier: Apache-2.0
"""Numbers written down by hand on small cases, and agreement with plain loops on long random streams."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.caches import CPU, cache_of, shape_of
from support.slow_stac import SlowLane, SlowVoxels
from support.streams import PATCH, RandomStream

from xsvggt_ros.cache.policies import Geometry, PastTokens, Seen, make_policy
from xsvggt_ros.cache.policies.spatial import DEAD, merge, merges
from xsvggt_ros.cache.policies.voxels import around, voxels_of
from xsvggt_ros.config import CacheConfig

E, INF = math.e, math.inf
EXACT = CacheConfig(policy="stac", budget_tokens=10_000, key_bits=16, value_bits=16, probes=3)
PER_FRAME = 25


def policy_of(budget: int, **cache):
    policy = make_policy(replace(EXACT, budget_tokens=budget, **cache), shape_of(PER_FRAME))
    policy.allocate(CPU, budget)
    return policy


def past_of(frame, keys, budget=7 * PER_FRAME, **evidence) -> PastTokens:
    """Tokens of one head, a row each."""
    frame = torch.tensor(frame, dtype=torch.int32)[:, None]
    types = {"score": torch.float32, "weight": torch.float32, "voxel": torch.int32, "count": torch.int32}
    kept = {name: torch.tensor(x, dtype=types[name])[:, None] for name, x in evidence.items()}
    return PastTokens(frame, torch.zeros_like(frame), torch.tensor(keys)[:, None], 9, PER_FRAME, budget, kept)


def seen_of(past: PastTokens) -> Seen:
    """Where only the values count, which are the keys here."""
    return Seen(past.keys, past.keys, past.keys, None)


def turned(degrees: float, length: float = 1.0) -> list[float]:
    return [length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))]


# --- scores and roles -----------------------------------------------------------------------------


@pytest.mark.parametrize("probes", [0, 3])
def test_scores_decay_and_add_up_attention(probes):
    """Queries of zero attend to all alike: with n frames to 1 / n of a frame's queries per token."""
    stream = RandomStream(replace(EXACT, probes=probes), PER_FRAME)
    stream._normal = lambda *size: torch.zeros(size)
    for _ in range(3):
        stream.step()
    heads = 2
    for (frame, _, _), score in stream.evidence(0, "score").items():
        expected = [0.9 * (0.9 * 1 + 1 / 2) + 1 / 3, 0.9 * 1 / 2 + 1 / 3, 1 / 3][frame]
        assert score == pytest.approx(heads * expected, rel=1e-5)


def test_roles_share_the_budget_and_rank_what_goes():
    """Budget of 7 frames: beside the first, 3 for the window, so 2 of the past; 1.5 frames of anchors, 1.5 spatial."""
    policy = policy_of(7 * PER_FRAME)
    frame = [5] * 40 + [7, 8, 1, 2, 3]
    score = [*range(1, 41), 0, 0, 90, 91, 92]
    voxel = [7] * 39 + [0, 7, 7, 7, 7, 7]
    count = [0] * 42 + [5, 9, 1]
    weight = [0.0] * 42 + [20.0, 10.0, E]
    past = past_of(frame, [[1.0, 0.0]] * 45, score=score, voxel=voxel, count=count, weight=weight)
    order = policy.scores(past)[:, 0].argsort().tolist()
    anchors = range(3, 40)  # the best 37 = 75 // 2 of the 40
    assert order[:3] == [0, 1, 2]  # as raw tokens: by score
    assert order[3:6] == [44, 43, 42]  # one raw token, and two that stand for several, by weight
    assert order[6:43] == list(anchors)
    assert set(order[43:]) == {40, 41}  # the window


def test_what_has_no_place_and_is_no_anchor_goes_first_and_the_first_frame_never():
    """A budget of 2 frames, for the first and the newest: nothing is left for anchors."""
    policy = policy_of(2 * PER_FRAME)
    past = past_of(
        [0] * PER_FRAME + [1, 1, 1],
        [[1.0, 0.0]] * 28,
        budget=2 * PER_FRAME,
        score=[5] * PER_FRAME + [7, 9, 8],
        voxel=[3] * PER_FRAME + [3, 0, 3],
        count=[0] * 28,
        weight=[0.0] * 28,
    )
    scores = policy.scores(past)[:, 0]
    assert (scores[:PER_FRAME] == INF).all()
    assert scores.argsort().tolist()[:3] == [26, 25, 27]


# --- merging --------------------------------------------------------------------------------------


def test_raw_tokens_merge_into_the_most_similar_representative_of_their_voxel():
    """cos 30 = .866 and cos 20 = .940 are similar enough, cos 60 = .5 is not, and another voxel is another voxel."""
    past = past_of(
        [1, 2, 3, 4, 5, 6],
        [turned(0, 2.0), turned(50), turned(30, 3.0), turned(-60), turned(10), turned(0)],
        voxel=[4, 4, 4, 4, 4, 8],
        count=[8, 9, 1, 1, 1, 1],
        weight=[20.0, 30.0, E, E, E, E],
        score=[0, 0, 1, 2, 3, 4],
    )
    target, cosine = merges(past)
    assert target[:, 0].tolist() == [0, 1, 1, 3, 0, 5]
    assert cosine[[2, 4], 0].tolist() == pytest.approx([math.cos(math.radians(20)), math.cos(math.radians(10))])

    values = torch.arange(12.0).view(6, 1, 2)
    slots, keys, merged = merge(past, values, torch.tensor([[2], [4], [5]]), target, cosine)
    w = math.exp(math.cos(math.radians(20)))
    assert slots[:, 0].tolist() == [1, 0, 5]
    torch.testing.assert_close(keys[0, 0], (30 * past.keys[1, 0] + w * past.keys[2, 0]) / (30 + w))
    torch.testing.assert_close(merged[0, 0], (30 * values[1, 0] + w * values[2, 0]) / (30 + w))
    assert past.evidence["count"][:, 0].tolist() == [9, 10, DEAD, 1, DEAD, DEAD]
    assert past.evidence["weight"][1].item() == pytest.approx(30 + w)


def test_several_merge_into_one_at_once():
    past = past_of(
        [1, 2, 3],
        [turned(0), turned(0, 2.0), turned(0, 4.0)],
        voxel=[4, 4, 4],
        count=[8, 1, 1],
        weight=[10.0, E, E],
        score=[0, 0, 0],
    )
    target, cosine = merges(past)
    slots, keys, _ = merge(past, past.keys, torch.tensor([[1], [2]]), target, cosine)
    assert slots[:, 0].tolist() == [0, 2]
    assert keys[0, 0, 0].item() == pytest.approx((10 + 2 * E + 4 * E) / (10 + 2 * E))
    assert past.evidence["count"][0].item() == 10
    assert past.evidence["weight"][0].item() == pytest.approx(10 + 2 * E)


@pytest.mark.parametrize("number", [7, 8])
def test_eight_raw_tokens_of_a_voxel_become_one_of_their_best(number):
    angles = [0.0, 90.0, 180.0, 270.0, 0.0, 90.0, 180.0, 270.0][:number]
    scores = [1.0, 2.0, 7.0, 3.0, 0.0, 1.0, 2.0, 3.0][:number]
    past = past_of(
        [1] * number,
        [turned(a) for a in angles],
        voxel=[5] * number,
        count=[1] * number,
        weight=[E] * number,
        score=scores,
    )
    target, cosine = merges(past)
    if number == 7:
        assert target[:, 0].tolist() == list(range(7))
        return
    assert target[:, 0].tolist() == [2] * 8
    leaving = torch.tensor([[0], [1], [3], [4], [5], [6], [7]])
    slots, keys, _ = merge(past, past.keys, leaving, target, cosine)
    # The pivot is at 180 degrees: two of weight e (itself and one more), two of 1 / e, four of 1 that cancel.
    total = 2 * E + 2 / E + 4
    assert slots[0].item() == 2
    assert keys[0, 0].tolist() == pytest.approx([(2 / E - 2 * E) / total, 0.0], abs=1e-6)
    assert past.evidence["weight"][2].item() == pytest.approx(total)
    assert past.evidence["count"][:, 0].tolist() == [DEAD, DEAD, 8, DEAD, DEAD, DEAD, DEAD, DEAD]


def test_of_five_representatives_the_lightest_merges_into_the_most_similar_and_none_into_it():
    past = past_of(
        [1] * 6,
        [turned(0), turned(90), turned(180), turned(270), turned(120), turned(120)],
        voxel=[5] * 6,
        count=[8, 8, 8, 8, 8, 1],
        weight=[50.0, 40.0, 30.0, 20.0, 10.0, E],
        score=[0] * 6,
    )
    target, cosine = merges(past)
    assert target[:, 0].tolist() == [0, 1, 2, 3, 1, 1]
    merge(past, past.keys, torch.tensor([[4], [5]]), target, cosine)
    similar = math.cos(math.radians(30))
    assert past.evidence["weight"][1].item() == pytest.approx(40 + 10 * math.exp(similar - 1) + math.exp(similar))
    assert past.evidence["count"][:, 0].tolist() == [8, 17, 8, 8, DEAD, DEAD]


def test_all_that_leaves_and_does_not_merge_is_what_is_missing_from_the_counts():
    """Of 60 tokens of 3 voxels, 40 raw and 20 representatives, some merge, and others make room for the rest."""
    generator = torch.Generator().manual_seed(2)
    policy = policy_of(7 * PER_FRAME)
    count = [1] * 40 + list(range(8, 28))
    past = past_of(
        [1] * 60,
        torch.randn(60, 2, generator=generator).tolist(),
        voxel=[1, 2, 3] * 20,
        count=count,
        weight=[E] * 40 + [float(n) for n in count[40:]],
        score=torch.rand(60, generator=generator).tolist(),
    )
    target, _ = merges(past)
    before = past.evidence["count"].clone()
    merging = target != torch.arange(60)[:, None]
    assert 30 < merging.sum() < 40
    slots, _ = policy.evict(past, seen_of(past), {}, 40)
    after = past.evidence["count"]
    dead = after == DEAD
    assert dead.sum() == 40 and dead.gather(0, slots).all() and slots.unique().shape == slots[:, 0].shape
    assert (dead | ~merging).all()
    assert after[~dead].sum() == before.sum() - before[dead & ~merging].sum()


def test_what_others_merge_into_stays():
    """Eight raw tokens of low score become one; of the others, worth more than each of them, the worst goes."""
    policy = policy_of(7 * PER_FRAME)
    voxel = [5] * 8 + [6, 7]
    past = past_of([1] * 10, [turned(0)] * 10, voxel=voxel, count=[1] * 10, weight=[E] * 10, score=range(10))
    policy.evict(past, seen_of(past), {}, 8)
    assert past.evidence["count"][:, 0].tolist() == [DEAD] * 7 + [8, DEAD, 1]


# --- retrieval ------------------------------------------------------------------------------------


def test_spatial_tokens_are_seen_near_what_the_window_sees_and_count_as_often_as_they_stand_for():
    policy = policy_of(7 * PER_FRAME)
    edge = torch.tensor(1.0)
    places = [[0, 0, 0], [2, -2, 2], [3, 0, 0], [0, 0, -3], [1, 1, 1], [0, 0, 0], [50, 0, 0]]
    voxel = voxels_of(torch.tensor(places) + 0.5, edge)
    policy._near = around(voxel[:1], 2)
    count = torch.tensor([8, 20, 8, 1, 1, DEAD, 0], dtype=torch.int32)
    bias = policy.bias({"voxel": voxel[:, None], "count": count[:, None]})
    assert bias[:, 0].tolist() == pytest.approx([math.log(8), math.log(20), -INF, -INF, 0.0, -INF, 0.0])


def test_a_place_needs_confidence_and_the_voxels_are_measured_in_the_first_frames_depth():
    policy = policy_of(7 * PER_FRAME)
    rows, columns = policy.shape.grid
    depth = torch.full((1, PATCH * rows, PATCH * columns), 4.0)
    confidence = torch.full_like(depth, 1.02)
    confidence[:, :PATCH, :PATCH] = 1.009  # the first patch: less than half of the median above 1
    confidence[:, :PATCH, PATCH : 2 * PATCH] = 1.011
    pose = torch.tensor([[0, 0, 0, 0, 0, 0, 1, math.pi / 2, math.pi / 2]])
    voxel = policy.learn(Geometry(depth, confidence, pose))["voxel"]
    edge = 4 * 0.05 * 37 / columns
    assert policy.shared["voxel_size"].item() == pytest.approx(edge)
    assert voxel[:6].tolist() == [0] * 6
    x, y = (-1 + 3 / columns) * 4, (-1 + 1 / rows) * 4
    assert voxel[6] == voxels_of(torch.tensor([x, y, 4.0]), torch.tensor(edge))
    policy.learn(Geometry(2 * depth, confidence, pose))
    assert policy.shared["voxel_size"].item() == pytest.approx(edge)
    assert [int((row != 0).sum()) for row in policy.shared["seen"]] == [0, 19, 19]


@pytest.mark.parametrize(("before", "after"), [(9, 8), (8, 9), (20, 5), (9, 9)])
def test_a_window_of_another_size_goes_on_with_what_the_newest_frames_see(before, after):
    """9 frames have room for a window of 4, 8 for one of 3, 5 for one of 2."""
    old, new = (policy_of(frames * PER_FRAME) for frames in (before, after))
    seen = old.shared["seen"]
    seen.copy_(torch.arange(1, 1 + seen.numel()).view(seen.shape))
    old.shared["voxel_size"].fill_(0.3)
    new.take_over(old)
    rows = min(seen.shape[0], new.shared["seen"].shape[0])
    assert torch.equal(new.shared["seen"][-rows:], seen[-rows:])
    assert not new.shared["seen"][:-rows].any()
    assert new.shared["voxel_size"] == pytest.approx(0.3)


# --- all of it ------------------------------------------------------------------------------------


class Walk:
    """A room seen again and again, by a cache and by plain loops: keys like each other where a patch sees the same."""

    def __init__(self, config: CacheConfig, seed: int, compared: bool = True):
        self.shape = shape_of(PER_FRAME, layers=1)
        self.config = config
        self.cache = cache_of(self.shape, config)
        lanes = self.shape.heads if config.per_head else 1
        self.lanes = [SlowLane(self.shape, config) for _ in range(lanes)] if compared else []
        self.voxels = SlowVoxels(self.shape, SlowLane(self.shape, config).window)
        self.generator = torch.Generator().manual_seed(seed)
        self.kinds = self._normal(30, self.shape.heads, self.shape.head_dim)

    def step(self) -> tuple[torch.Tensor, np.ndarray | None]:
        """Takes the next frames in; the outputs [N, heads, d] of both."""
        chunk, first = self.config.chunk, self.cache.frames
        tokens = chunk * PER_FRAME
        q, v, noise = self._normal(3, tokens, self.shape.heads, self.shape.head_dim)
        kind = torch.randint(len(self.kinds), (tokens,), generator=self.generator)
        k = self.kinds[kind] + 0.3 * noise
        self.cache.begin(torch.zeros(chunk, PER_FRAME - 5, self.shape.width))
        out = self.cache.attend(0, q[None], k[None], v[None])[0]
        self.cache.camera.attend(0, *torch.zeros(3, 1, chunk, 2, 32))
        self.cache.end_frames(chunk)
        slow = [
            lane.attend(*(x.unflatten(1, (len(self.lanes), -1))[:, i].double().numpy() for x in (q, k, v)), first, seen)
            for seen in [self.voxels.seen]
            for i, lane in enumerate(self.lanes)
        ]
        self._learn(first)
        return out, np.concatenate(slow, 1) if slow else None

    def _learn(self, first: int) -> None:
        chunk = self.config.chunk
        rows, columns = self.shape.grid
        coarse = 1 + 0.05 * torch.rand(chunk, rows, columns, generator=self.generator)
        depth = coarse.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        sure = torch.rand(chunk, rows, columns, generator=self.generator)
        confidence = 1 + sure.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        pose = torch.tensor([[0.0, 0, 0, 0, 0, 0, 1, 0.3, 0.3]]).repeat(chunk, 1)
        pose[:, :3] += 0.02 * self._normal(chunk, 3)
        pose[:, 0] += torch.tensor([5.0 * ((first + i) // 8 % 2) for i in range(chunk)])  # two places, in turn
        self.cache.learn(Geometry(depth, confidence, pose))
        for i in range(chunk):
            self.voxels.learn(*(x[i].double().numpy() for x in (depth, confidence, pose)))
            for lane in self.lanes:
                for token in lane.tokens:
                    if token.frame == first + i and token.place >= 5:
                        token.voxel = self.voxels.frames[-1][token.place - 5]

    def kept(self, lane: int) -> list[tuple]:
        """What the cache has, ascending: frame, place, count, score, weight, and the first of key and of value."""
        store = self.cache.layers[0]
        frame, token = store.places()
        evidence = store.evidence()
        head = lane * self.shape.heads // len(self.lanes)
        columns = [frame, token, *(evidence[name] for name in ("count", "score", "weight"))]
        parts = [x[:, lane].tolist() for x in columns]
        parts += [store.tensors[name][: store.tokens, head, 0].tolist() for name in ("keys", "values")]
        return sorted(zip(*parts, strict=True))

    def expected(self, lane: int) -> list[tuple]:
        tokens = self.lanes[lane].tokens
        return sorted(
            (t.frame, t.place, t.count, t.score, t.weight, float(t.key[0, 0]), float(t.value[0, 0])) for t in tokens
        )

    def _normal(self, *size: int) -> torch.Tensor:
        return torch.randn(size, generator=self.generator)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize(("frames", "chunk"), [(5.3, 1), (9, 1), (2, 1), (7, 2)])
def test_agrees_with_plain_loops(frames, chunk, per_head):
    budget = int(frames * PER_FRAME)
    walk = Walk(replace(EXACT, budget_tokens=budget, chunk=chunk, per_head=per_head), seed=budget)
    for _ in range(36 // chunk):
        out, expected = walk.step()
        np.testing.assert_allclose(out, expected, atol=2e-4)
        for lane in range(len(walk.lanes)):
            assert walk.cache.tokens <= budget
            kept = np.array(walk.kept(lane))
            np.testing.assert_allclose(kept, np.array(walk.expected(lane)), rtol=1e-3, atol=1e-4)
    if frames > 5:
        assert min(lane.merged for lane in walk.lanes) > 5


@pytest.mark.parametrize("quantizer", ["rotated", "channel"])
@pytest.mark.parametrize("bits", [2, 4])
def test_merged_tokens_are_packed_and_move_with_the_cache_to_other_settings(bits, quantizer):
    config = replace(EXACT, budget_tokens=9 * PER_FRAME, key_bits=bits, value_bits=bits, quantizer=quantizer)
    walk = Walk(config, seed=1, compared=False)
    for _ in range(24):
        walk.step()

    def stands_for() -> int:
        return int(walk.cache.layers[0].evidence()["count"].clamp_min(1).sum())

    assert stands_for() > walk.cache.tokens + 20
    before = stands_for()
    walk.cache.reconfigure(replace(config, budget_tokens=20 * PER_FRAME, key_bits=16, value_bits=16))
    assert stands_for() == before
    walk.cache.reconfigure(replace(config, budget_tokens=3 * PER_FRAME))
    assert walk.cache.tokens == 3 * PER_FRAME
    for _ in range(3):
        assert walk.step()[0].isfinite().all()
        assert walk.cache.tokens == 3 * PER_FRAME
