# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import torch
from support.streams import RandomStream

from xsvggt_ros.cache.policies.probes import probes
from xsvggt_ros.config import CacheConfig

EXACT = CacheConfig(policy="output_aware", budget_tokens=10_000, key_bits=16, value_bits=16, probes=3)


def naive_scores(stream: RandomStream, layer: int) -> dict[tuple[int, int, int], float]:
    """{(frame, place, head): score} of a stream from which nothing went, written out."""
    per_frame, heads, d = stream.shape.tokens_per_frame, stream.shape.heads, stream.shape.head_dim
    found: dict[tuple[int, int, int], float] = {}
    for step, q in enumerate(stream.queries):
        keys = torch.cat([k[layer] for k in stream.keys[: step + 1]])
        values = torch.cat([v[layer] for v in stream.values[: step + 1]])
        rows, _ = probes(q.shape[1] // per_frame, per_frame, stream.shape.specials, 3, q.device)
        for head in range(heads):
            weights = torch.softmax(q[layer, rows, head] @ keys[:, head].T / math.sqrt(d), -1).sum(0)
            for token in range(keys.shape[0]):
                place = (*divmod(token, per_frame), head)
                score = float(weights[token]) * float(values[token, head].abs().sum())
                found[place] = found.get(place, 0.0) + score
    return found


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("per_head", [False, True])
def test_the_score_is_attention_times_the_length_of_the_value(chunk, per_head):
    stream = RandomStream(replace(EXACT, chunk=chunk, per_head=per_head))
    for _ in range(3):
        stream.step(chunk)
    for layer in range(2):
        found, expected = stream.evidence(layer, "output_score"), naive_scores(stream, layer)
        for frame, token, lane in found:
            heads = [lane] if per_head else [0, 1]
            assert found[frame, token, lane] == pytest.approx(sum(expected[frame, token, h] for h in heads), rel=1e-4)


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("bits", [2, 16])
@pytest.mark.parametrize("quantizer", ["rotated", "channel"])
def test_the_best_stay_and_their_scores_with_them(bits, per_head, quantizer):
    """As long as nothing went a score is known from before; then the best of the middle stay."""
    config = replace(EXACT, key_bits=bits, value_bits=bits, per_head=per_head, quantizer=quantizer)
    stream = RandomStream(config)
    for _ in range(5):
        stream.step()
    before = [stream.evidence(layer, "output_score") for layer in range(2)]
    stream.cache.reconfigure(replace(config, budget_tokens=70))
    for layer in range(2):
        for lane in range(2 if per_head else 1):
            middle = {k: x for k, x in before[layer].items() if k[2] == lane and 0 < k[0] < 4}
            best = sorted(middle, key=lambda k: middle[k])[-20:]
            ends = [(frame, token) for frame in (0, 4) for token in range(25)]
            assert stream.places(layer, lane) == sorted([k[:2] for k in best] + ends)
        after = stream.evidence(layer, "output_score")
        assert after == {k: before[layer][k] for k in after}


def test_values_count_at_their_length_in_the_models_basis():
    """A value in one channel has the 1-norm 8; rotated it is spread over 64 channels, at 64."""
    streams = [RandomStream(replace(EXACT, key_bits=bits, value_bits=bits), layers=1) for bits in (8, 16)]
    for stream in streams:
        value = torch.zeros(1, 25, 2, 64)
        value[..., 0] = 8.0
        for _ in range(2):
            stream.cache.attend(0, torch.zeros_like(value), torch.zeros_like(value), value)
            stream.cache.end_frames(1)
    packed, exact = (stream.evidence(0, "output_score") for stream in streams)
    assert packed == pytest.approx(exact, rel=0.02)
    # 8 probes ask twice about the first frame's tokens, among 25 and then 50; two heads.
    assert exact[0, 3, 0] == pytest.approx(2 * 8 * (8 / 25 + 8 / 50))


@pytest.mark.parametrize(("chunk", "per_head", "bits"), [(1, False, 2), (1, True, 16), (3, False, 16), (3, True, 2)])
def test_a_long_stream_keeps_its_ends_and_its_budget(chunk, per_head, bits):
    config = replace(EXACT, budget_tokens=130, key_bits=bits, value_bits=bits, chunk=chunk, per_head=per_head)
    stream = RandomStream(config)
    for _ in range(6):
        stream.step(chunk)
    for layer in range(2):
        for lane in range(2 if per_head else 1):
            places = stream.places(layer, lane)
            assert len(places) == 130
            ends = {0, *range(6 * chunk - chunk, 6 * chunk)}
            assert {(frame, token) for frame in ends for token in range(25)} <= set(places)
