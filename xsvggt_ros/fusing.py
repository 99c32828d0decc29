# SPDX-License-Identifier: Apache-2.0
"""Many small kernels as few: by torch.compile, or by our own in Triton where it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import TypeVar, cast
from warnings import filterwarnings

import torch

from xsvggt_ros.memory import out_of_memory

Function = TypeVar("Function", bound=Callable)
Fusing = Callable[[Function], Function]

VARIANTS = 64  # of a function that is compiled

logger = logging.getLogger(__name__)


def as_written(function: Function) -> Function:
    """Of a function: itself."""
    return function


@lru_cache(maxsize=32)
def compiled(function: Function) -> Function:
    """Of a function: what torch.compile makes of it, for each set of shapes that it is called with."""
    # Of the sizes of two cameras, and of settings that change; beyond that functions run as they are written.
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    setattr(torch._dynamo.config, limit, max(VARIANTS, getattr(torch._dynamo.config, limit)))
    # Tables that are remembered are made anew in each step: small ones, in one kernel with what they are for.
    filterwarnings("ignore", "(?s)Dynamo detected a call to a `functools.lru_cache`")
    filterwarnings("ignore", "TensorFloat32 tensor cores")  # the camera head is exact on purpose
    return cast(Function, torch.compile(function, dynamic=False))


def kernels(package: str, fit: bool, device: torch.device) -> ModuleType | None:
    """The package's `fused`, kernels in Triton, if they fit what they are for and that runs on the device."""
    return import_module(f"{package}.fused") if fit and triton_runs(device) else None


@lru_cache(maxsize=8)
def triton_runs(device: torch.device) -> bool:
    """Whether Triton does on that device; tried once."""
    return device.type == "cuda" and tried(device)


def tried(device: torch.device) -> bool:
    """Whether Triton runs a kernel there: it needs a C compiler, Python's headers and a GPU that it knows."""
    try:
        from xsvggt_ros import triton_trial
    except ImportError:  # it is optional
        return False
    out = torch.empty(1, device=device)
    try:
        with torch.cuda.device_of(out):
            triton_trial.run(out)
    except Exception as error:  # of whatever kind, all works without
        if out_of_memory(error):
            raise
        logger.warning("steps are slower without Triton; has it gcc and Python's headers? It said: %s", error)
        return False
    return True
