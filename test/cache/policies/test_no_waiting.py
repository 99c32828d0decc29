# SPDX-License-Identifier: Apache-2.0
"""In a stream at its budget nothing on the device is waited for."""

from dataclasses import replace

import pytest
import torch
from support.streams import RandomStream
from support.waiting import Waiting

from xsvggt_ros.cache.policies import BY_NAME
from xsvggt_ros.config import CacheConfig


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0], torch.nonzero])
def test_what_waits_is_refused(wait):
    with pytest.raises(AssertionError, match="waits for the device"), Waiting():
        wait(torch.arange(3))


@pytest.mark.parametrize("policy", [name for name in BY_NAME if name != "full"])
@pytest.mark.parametrize(("chunk", "per_head", "bits"), [(1, False, 16), (1, True, 2), (3, False, 2)])
def test_no_policy_waits(policy, chunk, per_head, bits):
    config = CacheConfig(policy=policy, budget_tokens=150, per_head=per_head, key_bits=bits, value_bits=bits)
    stream = RandomStream(replace(config, chunk=chunk))
    for _ in range(8):
        stream.step(chunk)
    with Waiting():
        stream.step(chunk)
    assert stream.cache.evicted == 25 * chunk
