# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from support.streams import RandomStream

from xsvggt_ros.config import CacheConfig

EXACT = CacheConfig(policy="infinite", budget_tokens=10_000, key_bits=16, value_bits=16)


def most_unlike(stream: RandomStream, layer: int, places: list, heads: list[int], count: int) -> set:
    """Of the tokens at places but the first frame's, those whose keys are most unlike the mean of their directions."""
    keys = {(frame, token): stream.keys[frame][layer, token] for frame, token in places if frame > 0}
    directions = {place: x / x.norm(dim=-1, keepdim=True) for place, x in keys.items()}  # [heads, d]
    mean = sum(directions.values()) / len(directions)

    def likeness(place: tuple[int, int]) -> float:
        return sum(float(directions[place][h] @ mean[h]) for h in heads)

    last = max(frame for frame, _ in places)
    middle = [place for place in directions if place[0] < last or last < len(stream.keys) - 1]
    return set(sorted(middle, key=likeness)[:count])


@pytest.mark.parametrize("quantizer, bits", [("rotated", 8), ("rotated", 16), ("channel", 16)])
@pytest.mark.parametrize("per_head", [False, True])
def test_the_most_unlike_stay(per_head, quantizer, bits):
    """At 8 bits in a rotated basis, from which a centre was taken, the same as of exact keys."""
    config = replace(EXACT, per_head=per_head, key_bits=bits, value_bits=bits, quantizer=quantizer)
    stream = RandomStream(config)
    for _ in range(5):
        stream.step()
    stream.cache.reconfigure(replace(config, budget_tokens=70))
    everything = [(frame, token) for frame in range(5) for token in range(25)]
    for layer in range(2):
        for lane in range(2 if per_head else 1):
            heads = [lane] if per_head else [0, 1]
            kept, best = stream.places(layer, lane), most_unlike(stream, layer, everything, heads, 20)
            assert len(kept) == 70
            assert len(best & {place for place in kept if 0 < place[0] < 4}) >= (20 if bits == 16 else 18)


def test_a_stream_keeps_the_most_unlike_of_what_it_has():
    stream = RandomStream(replace(EXACT, budget_tokens=80))
    for _ in range(3):
        stream.step()
    for _ in range(5):
        before = [stream.places(layer) for layer in range(2)]
        stream.step()
        ends = {(frame, token) for frame in (0, len(stream.keys) - 1) for token in range(25)}
        for layer in range(2):
            # While a frame comes, the one before is no longer protected.
            assert set(stream.places(layer)) == ends | most_unlike(stream, layer, before[layer], [0, 1], 30)


@pytest.mark.parametrize(("chunk", "per_head", "bits"), [(1, True, 2), (3, False, 2), (3, True, 16)])
def test_a_long_stream_keeps_its_ends_and_its_budget(chunk, per_head, bits):
    config = replace(EXACT, budget_tokens=130, key_bits=bits, value_bits=bits, chunk=chunk, per_head=per_head)
    stream = RandomStream(config)
    for _ in range(6):
        stream.step(chunk)
    for layer in range(2):
        for lane in range(2 if per_head else 1):
            places = stream.places(layer, lane)
            assert len(places) == 130
            ends = {0, *range(5 * chunk, 6 * chunk)}
            assert {(frame, token) for frame in ends for token in range(25)} <= set(places)
