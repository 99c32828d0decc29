# SPDX-License-Identifier: Apache-2.0
"""What a CUDA graph is, where there is no GPU: the operations that the device is asked for, and their tensors."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from xsvggt_ros.cache import KVCache
from xsvggt_ros.model import StreamVGGT
from xsvggt_ros.model.streamvggt import Predictions


class Operations(TorchDispatchMode):
    """Notes every operation: what it is, what it is given and what it gives, tensors as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.found.append((func, args, kwargs or {}, out))
        return out

    def described(self) -> list[tuple]:
        """The same without the numbers in tensors."""
        return [(str(func), *tree_map(about, (args, kwargs, out))) for func, args, kwargs, out in self.found]


def about(x: Any) -> Any:
    return (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else x


class Repeated:
    """As step_graph.Recorded, on a CPU: repeats operations, not Python, so that every number of the host stays."""

    def __init__(self, model: StreamVGGT, images: Tensor, cache: KVCache, dense: bool):
        self.marks = [(stage, 0.0) for stage in ("encoder", "aggregator", "camera", "dense")]
        self.images = images.clone()
        held = [(tensor, tensor.clone()) for tensor in cache.tensors]
        with Operations() as operations:
            self.predictions = model.step(self.images, cache, dense=dense)
        for tensor, before in held:  # a recording does nothing
            tensor.copy_(before)
        self.patches = cache.patches
        self.operations = operations.found

    def replay(self, images: Tensor) -> Predictions:
        self.images.copy_(images)
        for func, args, kwargs, out in self.operations:
            self._repeat(func, args, kwargs, out)
        return self._as_from_a_gpu()

    def _repeat(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        """Into the memory that it gave its results in."""
        if func._schema.is_mutable:
            func(*args, **kwargs)
            return
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        results = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if any(x.untyped_storage().data_ptr() not in given for x in results):  # no view
            again = [x for x in tree_leaves(func(*args, **kwargs)) if isinstance(x, Tensor)]
            for mine, new in zip(results, again, strict=True):
                mine.copy_(new)

    def _as_from_a_gpu(self) -> Predictions:
        """Copies: what leaves a GPU is one."""
        found = {f.name: getattr(self.predictions, f.name) for f in fields(Predictions)}
        return Predictions(**{name: x if x is None else x.clone() for name, x in found.items()})
