# SPDX-License-Identifier: Apache-2.0
"""Many small kernels as few: by torch.compile, or by our own in Triton where it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar, cast
from warnings import filterwarnings

import torch

from xsvggt_ros.memory import out_of_memory

Function = TypeVar("Function", bound=Callable)
Fusing = Callable[[Function], Function]

logger = logging.getLogger(__name__)


def as_written(function: Function) -> Function:
    """Of a function: itself."""
    return function


@lru_cache(maxsize=32)
def compiled(function: Function) -> Function:
    """Of a function: what torch.compile makes of it, for each set of shapes that it is called with."""
    # Tables that it remembers are made anew in each step: small ones, and one kernel with what they are for.
    filterwarnings("ignore", "(?s)Dynamo detected a call to a `functools.lru_cache`")
    filterwarnings("ignore", "TensorFloat32 tensor cores")  # the camera head is exact on purpose
    return cast(Function, torch.compile(function, dynamic=False))


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
