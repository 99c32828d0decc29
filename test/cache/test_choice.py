# SPDX-License-Identifier: Apache-2.0
"""The cache keeps exactly what its policy ranks highest, whatever the bits: beside a plain one (support/twin.py)."""

import random
from dataclasses import replace

import pytest
from support.twin import Twin

from xsvggt_ros.cache.policies import BY_NAME
from xsvggt_ros.config import BITS, QUANTIZERS, CacheConfig

POLICIES = tuple(BY_NAME)


@pytest.mark.parametrize("tokens_per_frame", [20, 53, 130])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_what_stays_is_what_ranks_highest_at_every_number_of_bits(policy, quantizer, tokens_per_frame):
    for bits in BITS:
        config = CacheConfig(
            policy=policy,
            quantizer=quantizer,
            budget_tokens=int(3.4 * tokens_per_frame),
            key_bits=bits,
            value_bits=bits,
            per_head=bits in (2, 16),
        )
        twin = Twin(config, tokens_per_frame)
        for _ in range(7):
            twin.step()


def settings(dice: random.Random, tokens_per_frame: int) -> CacheConfig:
    return CacheConfig(
        policy=dice.choice(POLICIES),
        quantizer=dice.choice(QUANTIZERS),
        budget_tokens=int(dice.choice([0.6, 2, 2.1, 3.5, 6]) * tokens_per_frame),
        key_bits=dice.choice(BITS),
        value_bits=dice.choice(BITS),
        per_head=dice.random() < 0.5,
        pin_first_frame=dice.random() < 0.5,
        camera_window=dice.choice([0, 1, 4]),
        chunk=dice.choice([1, 1, 2, 3]),
        seed=dice.randrange(3),
    )


def one_thing_else(dice: random.Random, config: CacheConfig, tokens_per_frame: int) -> CacheConfig:
    """As another setting is made while the stream runs."""
    other = settings(dice, tokens_per_frame)
    name = dice.choice(["policy", "quantizer", "budget_tokens", "key_bits", "value_bits", "per_head", "chunk"])
    return replace(config, **{name: getattr(other, name)})


@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_steps_and_settings_keeps_what_ranks_highest(seed):
    dice = random.Random(seed)
    size = dice.choice([20, 53])
    twin = Twin(settings(dice, size), size, seed=seed)
    for _ in range(25):
        what = dice.choice(["step", "step", "step", "all", "one", "limit", "fail", "reset"])
        if what == "step":
            for _ in range(dice.choice([1, 1, 3])):
                twin.step(dice.randint(1, twin.config.chunk))
        elif what == "all":
            twin.reconfigure(settings(dice, size))
        elif what == "one":
            twin.reconfigure(one_thing_else(dice, twin.config, size))
        elif what == "limit":  # as load shedding does
            twin.reconfigure(replace(twin.config, budget_tokens=max(1, twin.config.budget_tokens // 2)))
        elif what == "fail":
            twin.fail(dice.choice([0, 1, 2]), dice.choice([twin.config, settings(dice, size)]))
        else:
            twin.reset()


@pytest.mark.parametrize("policy", POLICIES)
def test_full_size_frames_stay_as_they_rank(policy):
    for quantizer in QUANTIZERS:
        config = CacheConfig(policy=policy, quantizer=quantizer, budget_tokens=3000, key_bits=4, value_bits=2)
        twin = Twin(config, 1041, layers=1, heads=1)
        for _ in range(5):
            twin.step()
