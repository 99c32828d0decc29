# SPDX-License-Identifier: Apache-2.0
"""In a stream at its budget nothing on the device is waited for."""

from dataclasses import replace

import pytest
import torch
from support.streams import RandomStream
from torch.utils._python_dispatch import TorchDispatchMode

from xsvggt_ros.cache.policies import BY_NAME
from xsvggt_ros.config import CacheConfig

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.equal}


class Waiting(TorchDispatchMode):
    """Refuses what the host can only do when the device is done."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = [x for x in args[1] if x is not None and x.dtype == torch.bool] if is_indexing(func) else []
        assert func.overloadpacket not in WAITING and not masks, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


def is_indexing(func) -> bool:
    return func.overloadpacket in {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


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
