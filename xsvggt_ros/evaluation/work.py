# SPDX-License-Identifier: Apache-2.0
"""How much a step does, whatever the time it takes: operations, launches, bytes."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

ATEN = torch.ops.aten


def _product(a: Any, b: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _attention(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


# What torch's counter does not know yet, by the shapes of its arguments.
FORMULAS = {ATEN._int_mm: _product, ATEN._scaled_dot_product_flash_attention_for_cpu: _attention}


@dataclass(frozen=True)
class Work:
    """Of one step."""

    flop: int  # of matrix products, convolutions and attention; those of integers count as well
    launches: int  # on a CPU operators, views not counted; on CUDA kernels and copies
    bytes_moved: int  # that operators read and write, if none finds its input in a cache of the processor: an estimate


class _Operators(TorchDispatchMode):
    """Counts them, and the bytes of their inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func._schema.name:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            self.count += 1
            self.nbytes += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in tensors)  # less where expanded
        return out


def work_of(step: Callable[[], object], device: torch.device) -> Work:
    """Of a step that is launched operator by operator; it is taken once, on CUDA twice."""
    operators, flops = _Operators(), FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with operators, flops:  # which takes composite operators apart, for the other to see their parts
        step()
    launches = _kernels(step) if device.type == "cuda" else operators.count
    return Work(flops.get_total_flops(), launches, operators.nbytes)


def _kernels(step: Callable[[], object]) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def peak_bytes(device: torch.device) -> int:
    """Most memory so far: on CUDA what tensors took there, elsewhere what the process had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
