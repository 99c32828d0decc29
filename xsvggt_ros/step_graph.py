# SPDX-License-Identifier: Apache-2.0
"""The step of a steady stream as one CUDA graph: recorded once, then launched whole.

A step is thousands of small kernels, and a fast GPU waits for the host to launch them. Once the cache is full every
step is the same work in the same memory, and what differs, the image and the frame's number, lies on the device. So it
can be recorded and repeated: from the pixels to what the heads say. What follows stays as it was, step by step: the
check that the numbers are finite, and what the camera head's cache and the policy make of the frame after it.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from xsvggt_ros.cache import KVCache
from xsvggt_ros.cache.policies import Policy
from xsvggt_ros.fusing import triton_runs
from xsvggt_ros.model import StreamVGGT
from xsvggt_ros.model.streamvggt import Predictions

WARM = 2  # steps of a steady cache before it is recorded, which load libraries and make tables
ASKED = ("graph", "compile")  # of settings: that a graph is missed where there cannot be one
Kind = tuple[bool, bool]  # of steps: whether the cache takes the frames in, and whether depth is asked for
Marks = list[tuple[str, Any]]  # stages, and the CUDA events at their ends


def why_no_graph(compile: str, device: torch.device) -> str:
    """Why a stream of that setting never has a graph on that device; empty: it may.

    Raises ValueError if it is asked for in vain.
    """
    reason = "compile is none" if compile == "none" else _missing(device)
    if compile == "compile" and not reason and not triton_runs(device):
        reason = "needs Triton, a C compiler and Python's headers"
    if compile in ASKED and reason:
        raise ValueError(f"compile {compile} {reason}; use compile:=auto")
    return reason


def _missing(device: torch.device) -> str:
    if device.type != "cuda":
        return f"needs a CUDA device, this is {device.type}"
    if torch.version.hip:
        return "needs CUDA: ROCm cannot time the stages of a graph"
    if "external" not in inspect.signature(torch.cuda.Event.__new__).parameters:
        return f"needs torch 2.8, to time its stages; this is {torch.__version__}"
    return ""


class Recorded:
    """A model's step on the device. Recording it does nothing but that: `replay` does it."""

    def __init__(self, model: StreamVGGT, images: Tensor, cache: KVCache, dense: bool):
        self._images = images.clone()  # [S, 3, h, w]
        self._graph = torch.cuda.CUDAGraph()
        self.marks: Marks = []
        stream, now = _stream(images.device), torch.cuda.current_stream(images.device)
        # thread_local: others may use the device meanwhile, to ask for its memory for instance. And what fails would
        # leave the other stream the current one.
        with torch.cuda.stream(now), torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._predictions = model.step(self._images, cache, self._mark, dense)
        self.patches = cache.patches  # [S, n, C], of the newest step

    def replay(self, images: Tensor) -> Predictions:
        """A step, of images [S, 3, h, w] as those recorded. The predictions are overwritten by the next."""
        self._images.copy_(images)
        self._graph.replay()
        return self._predictions

    def _mark(self, stage: str) -> None:
        event = torch.cuda.Event(enable_timing=True, external=True)  # is recorded anew in every replay
        event.record()
        self.marks.append((stage, event))


def _first_line(error: BaseException) -> str:
    """Of what went wrong first: that a recording failed is said by each that ends it."""
    while error.__context__:
        error = error.__context__
    return str(error).partition("\n")[0] or type(error).__name__


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one that is recorded: libraries keep working memory for each."""
    return torch.cuda.Stream(device)


class StepGraph:
    """The graph of one stream, as long as its settings stay. why_not: it never has one, see why_no_graph.

    Each kind of step has its own: those that the cache takes in or not, those with depth or without.

    asked: it is missed where there cannot be one, and `news` says why; a recording that fails is said in any case.
    """

    def __init__(self, model: StreamVGGT, why_not: str, asked: bool, record: Callable[..., Recorded] = Recorded):
        self.why_not = why_not
        self._asked = asked
        self._model = model
        self._record = record
        self._told = ""  # why steps are not recorded, as said last
        self._news = ""  # not said yet
        self.drop()

    def drop(self) -> None:
        """Gives it up, and the memory it holds."""
        self._recorded: dict[Kind, Recorded] = {}
        self._of: tuple[Policy, torch.Size] | None = None  # what it is recorded for, or will be
        self._warm: Counter[Kind] = Counter()  # steps of that, so far
        self._failed = ""  # why that could not be recorded

    def news(self) -> str:
        """Why steps are not recorded, said once."""
        news, self._news = self._news, ""
        return news

    def step(self, images: Tensor, cache: KVCache, dense: bool, why_not: str = "") -> tuple[Predictions, Marks] | None:
        """The predictions of a step of images [S, 3, h, w], valid until the next, and when its stages ended.

        None: this one is the caller's to do, kernel by kernel, since the cache fills or has only just done so, or for a
        reason that `news` says; why_not is the caller's.
        """
        if self.why_not:
            return None
        if self._of is None or self._of[0] is not cache.policy or self._of[1] != images.shape:
            self.drop()  # settings are others, or tensors have moved: the policy is another object then
            self._of = cache.policy, images.shape
        if reason := why_not or cache.why_unsteady:
            if self._asked:
                self._tell(reason)
            return None
        recorded = self._of_kind((cache.taking_in, dense), images, cache)
        if recorded is None:
            return None
        predictions = recorded.replay(images)
        cache.repeated(recorded.patches)
        return predictions, recorded.marks

    def _of_kind(self, kind: Kind, images: Tensor, cache: KVCache) -> Recorded | None:
        """That of such steps, once it is recorded."""
        if kind not in self._recorded and cache.steady and not self._failed:
            if self._warm[kind] >= WARM:
                self._try(kind, images, cache)
            self._warm[kind] += 1
        return self._recorded.get(kind)

    def _try(self, kind: Kind, images: Tensor, cache: KVCache) -> None:
        try:
            self._recorded[kind] = self._record(self._model, images, cache, kind[1])
        except RuntimeError as error:  # out of memory too: a step by itself needs less
            self._failed = _first_line(error)
            self._tell(self._failed)
        finally:
            cache.take_back()

    def _tell(self, reason: str) -> None:
        if reason != self._told:
            self._told = reason
            self._news = f"steps are not recorded as a CUDA graph: {reason}"
