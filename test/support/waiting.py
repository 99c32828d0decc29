# SPDX-License-Identifier: Apache-2.0
"""What a host waits for a device for."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
