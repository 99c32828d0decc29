# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import torch
from support.caches import shape_of
from torch.utils._python_dispatch import TorchDispatchMode

from xsvggt_ros.cache.policies import BY_NAME, PastTokens, Policy, Seen, make_policy
from xsvggt_ros.cache.policies.base import highest
from xsvggt_ros.cache.policies.probes import attention_mass
from xsvggt_ros.cache.policies.xstream import query_summary
from xsvggt_ros.config import POLICIES, CacheConfig

INF = float("inf")


def policy_of(tokens_per_frame: int, **cache) -> Policy:
    return make_policy(CacheConfig(**cache), shape_of(tokens_per_frame))


def test_every_policy_has_a_name_that_the_settings_know():
    assert tuple(BY_NAME) == POLICIES


def past(frames: int, tokens_per_frame: int, newest: int) -> PastTokens:
    generator = torch.Generator().manual_seed(0)
    frame = torch.arange(frames).repeat_interleave(tokens_per_frame).int()[:, None]
    token = torch.arange(tokens_per_frame).repeat(frames).int()[:, None]
    keys = torch.randn(frames * tokens_per_frame, 2, 8, generator=generator)
    evidence = {"query": torch.randn(8, generator=generator)}
    return PastTokens(frame, token, keys, newest, tokens_per_frame, 3000, evidence)


@pytest.mark.parametrize(("patches", "pool"), [(48, 16), (50, 16), (20, 1), (7, 100), (1, 4), (0, 16)])
def test_query_summary_is_the_mean_of_the_published_score_matrix(patches, pool):
    """Scores by one vector = the mean over rows of pooled queries times keys, averaged over heads first."""
    generator = torch.Generator().manual_seed(1)
    specials = 5 if patches > 1 else 1
    q = torch.randn(specials + patches, 3, 8, generator=generator)
    k = torch.randn(40, 3, 8, generator=generator)
    rows = list(q.mean(1)[:specials])
    runs = q.mean(1)[specials:].split(pool) if patches > 1 else list(q.mean(1)[specials:, None])
    matrix = torch.stack([*rows, *(run.mean(0) for run in runs)]) @ k.mean(1).T
    torch.testing.assert_close(k.mean(1) @ query_summary(q, specials, pool), matrix.mean(0))


def test_xstream_scores_the_middle_and_protects_the_ends():
    tokens = past(frames=4, tokens_per_frame=6, newest=3)
    scores = policy_of(6, policy="xstream").scores(tokens)
    assert (scores[:6] == INF).all() and (scores[-6:] == INF).all()
    torch.testing.assert_close(scores[6:-6, 0], (tokens.keys.mean(1) @ tokens.evidence["query"])[6:-6])


def test_sliding_window_prefers_the_newest_and_can_pin_the_first_frame():
    tokens = past(frames=3, tokens_per_frame=4, newest=1_000_000)
    loose = policy_of(4, policy="sliding_window", pin_first_frame=False).scores(tokens)
    assert (loose.diff(dim=0) > 0).all()
    pinned = policy_of(4, policy="sliding_window").scores(tokens)
    assert (pinned[:4] == INF).all() and (pinned[4:].diff(dim=0) > 0).all()


@pytest.mark.parametrize(("ago", "newest"), [(20_000, 20_010), (2_100_000, 2_100_010)])
@pytest.mark.parametrize("policy", ["sliding_window", "window_specials"])
def test_the_order_of_tokens_is_known_however_long_the_stream_is(policy, ago, newest):
    """Where a token's number in the stream needs more than 24 bits, and more than 32."""
    tokens = past(frames=3, tokens_per_frame=1041, newest=newest)
    tokens.frame[2082:] += ago
    scores = policy_of(1041, policy=policy, pin_first_frame=False).scores(replace(tokens, frame=tokens.frame + 1))
    assert (scores[tokens.token >= 5].diff() > 0).all()


def test_of_equal_scores_the_newest_stay():
    tokens = past(frames=3, tokens_per_frame=4, newest=9)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    tokens = replace(tokens, frame=tokens.frame[order], token=tokens.token[order])
    scores = torch.tensor([2.0] * 4 + [math.nan] * 8)[order, None]
    rows = highest(scores, tokens, 7)[:, 0]
    assert order[rows].tolist() == [0, 1, 2, 3, 9, 10, 11]


def test_random_leaves_the_ends_and_changes_from_call_to_call():
    policy = policy_of(6, policy="random")
    tokens = past(frames=4, tokens_per_frame=6, newest=3)
    first, second = policy.scores(tokens), policy.scores(tokens)
    assert (first[:6] == INF).all() and (first[-6:] == INF).all()
    assert not torch.equal(first[6:-6], second[6:-6])


def test_a_first_frame_that_was_cut_is_no_longer_protected():
    whole = past(frames=3, tokens_per_frame=4, newest=9)
    cut = PastTokens(whole.frame[1:], whole.token[1:], whole.keys[1:], 9, 4, 12)
    assert whole.in_first_frame.sum() == 4
    assert cut.in_first_frame.sum() == 0


def test_the_keys_are_converted_once_for_all_queries():
    shape = shape_of(205)
    q, keys, values = torch.randn(3, 205, 2, 64, dtype=torch.bfloat16)
    bias = torch.zeros(2, 205)

    class Conversions(TorchDispatchMode):
        """Counts copies of all keys."""

        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            converts = func.overloadpacket is torch.ops.aten._to_copy and args[0].numel() == keys.numel()
            self.count += converts
            return func(*args, **(kwargs or {}))

    with Conversions() as conversions:
        old, new = attention_mass(Seen(q, keys, values, bias), 0, shape, 1)
    assert conversions.count == 1
    logits = torch.einsum("qhd,khd->hqk", q.float(), keys.float()) / 8
    torch.testing.assert_close(torch.cat([old, new])[:, 0], logits.softmax(-1).sum((0, 1)))
