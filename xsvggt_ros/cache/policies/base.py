# SPDX-License-Identifier: Apache-2.0
"""What a policy sees, and what it must say.

Tensors about tokens are [T, lanes, ...]: a lane is a group of heads that chooses its tokens together, all heads or
each alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

from xsvggt_ros.cache.camera_cache import first_and_newest
from xsvggt_ros.cache.shape import CacheShape, Layout
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.fusing import triton_runs

PROTECTED = float("inf")  # the score of a token that must stay
Rewritten = tuple[Tensor, Tensor, Tensor]  # slots, keys, values


@dataclass(frozen=True)
class PastTokens:
    """The tokens cached in one layer, in no particular order, and the evidence about them."""

    frame: Tensor  # [T, lanes] int32, the frame a token came with
    token: Tensor  # [T, lanes] int32, its place in that frame
    keys: Tensor  # [T, heads, d], as attention saw them
    newest: int | Tensor  # index of the first of the newest frames; while they are taken in, none of them is here
    tokens_per_frame: int
    budget: int  # the layer's, in tokens
    evidence: dict[str, Tensor] = field(default_factory=dict)  # what the policy keeps about this layer and its tokens

    @property
    def in_first_frame(self) -> Tensor:
        """[T, lanes] bool; nowhere once a policy that does not keep the first frame has cut it."""
        first = self.frame == 0
        return first & (first.sum(0) == self.tokens_per_frame)

    @property
    def recency(self) -> Tensor:
        """[T, lanes] float64, the newest's the highest: exact however long the stream is."""
        return ((self.frame.long() - self.newest) * self.tokens_per_frame + self.token).double()

    def protect_ends(self, scores: Tensor) -> Tensor:
        """The scores [T, lanes] with the first and the newest frames made to stay."""
        return scores.masked_fill(self.in_first_frame | (self.frame >= self.newest), PROTECTED)


@dataclass(frozen=True)
class Seen:
    """What the queries of the newest frames attended to in one layer: T cached tokens, then the N new ones."""

    q: Tensor  # [N, heads, d]
    keys: Tensor  # [T + N, heads, d]
    values: Tensor  # [T + N, heads, d]
    bias: Tensor | None  # [heads, T + N], added to the logits


@dataclass(frozen=True)
class Geometry:
    """What the model says about the newest frames, S of them, in its own scale and the first camera's frame."""

    depth: Tensor  # [S, H, W]
    confidence: Tensor  # [S, H, W], at least 1
    pose: Tensor  # [S, 9], world-to-camera, see geometry.decode_pose


class Policy(ABC):
    """Ranks cached tokens, by what it may keep about each layer, and about each token, from frame to frame."""

    wants_residual = False
    """Whether it weighs new tokens by what the layer's MLP adds to them."""

    goes_by_depth = False
    """Whether it learns from the geometry."""

    chooses_by_head = False
    """Whether it can choose for each head apart, where `config.per_head` says so."""

    adds_up: tuple[str, ...] = ()
    """What of the evidence about a token is a sum over the heads of its lane."""

    repeats = True
    """Whether its part in a step of a full cache is the same work each time, and on the device alone."""

    same_in_all_layers = False
    """Whether it keeps the same tokens in all layers, which then have equal budgets."""

    def __init__(self, config: CacheConfig, shape: CacheShape):
        self.config = config
        self.shape = shape
        self.shared: dict[str, Tensor] = {}  # what it keeps for all layers together
        self.kernels: ModuleType | None = None  # `fused`, where it runs

    @property
    def lanes(self) -> int:
        """Groups of heads that choose apart: 1, or as many as there are heads."""
        return self.shape.heads if self.chooses_by_head and self.config.per_head else 1

    def floor(self) -> int:
        """The least budget, in tokens, that it works with: where first and newest frames stay, these."""
        return (1 + self.config.chunk) * self.shape.tokens_per_frame

    def usable(self, budget: int) -> int:
        """What it makes use of, of a budget in tokens."""
        return budget

    def frames_kept(self, frames: list[int], count: int) -> list[int]:
        """Of the numbers of frames, ascending, those that the camera head's cache keeps, at most `count`."""
        return first_and_newest(frames, count)

    # --- what it keeps ----------------------------------------------------------------------------

    def layer_evidence(self) -> Layout:
        """The tensors it keeps about a layer, zero at first. A policy that follows goes on with those it keeps too."""
        return {}

    def token_evidence(self) -> Layout:
        """What it keeps about each token and lane: the sizes without those two. They move as the tokens do."""
        return {}

    def shared_evidence(self, budget: int) -> Layout:
        """What it keeps for all layers together, with a budget in tokens."""
        return {}

    def allocate(self, device: torch.device, budget: int) -> None:
        """Makes the shared evidence, zero at first."""
        self.kernels = kernels_for(self.shape.head_dim, device)
        sizes = self.shared_evidence(budget).items()
        self.shared = {name: torch.zeros(size, dtype=dtype, device=device) for name, (size, dtype) in sizes}

    def take_over(self, other: Policy) -> None:
        """Goes on with the shared evidence of the policy before, as far as it keeps the same."""
        for name, mine in self.shared.items():
            theirs = other.shared.get(name)
            if theirs is not None and (theirs.shape, theirs.dtype) == (mine.shape, mine.dtype):
                mine.copy_(theirs)

    # --- what it sees, in this order --------------------------------------------------------------

    def begin(self, patches: Tensor, first: int) -> None:  # noqa: B027  # most need none
        """The encoder's tokens [S, n, C] of the newest frames, indexed from `first`, before any layer sees them."""

    def bias(self, evidence: dict[str, Tensor]) -> Tensor | None:
        """What to add to the logits of a layer's cached tokens [T, lanes]; -inf hides one. None: nothing."""
        return None

    def observe(self, seen: Seen, evidence: dict[str, Tensor]) -> dict[str, Tensor]:
        """A layer at work, whose evidence, of the T tokens there, it may write in place.

        Returns evidence about the new tokens, [N, lanes, ...]; zero where it says nothing.
        """
        return {}

    def evict(
        self, past: PastTokens, seen: Seen, new: dict[str, Tensor], count: int
    ) -> tuple[Tensor, Rewritten | None]:
        """The slots [count, lanes] of those that go, and what others become that they merge into.

        It may write the evidence about the cached tokens in place, and that of the new ones, as `observe` gave it.
        What is rewritten are slots [n, lanes], with the keys and values [n, heads, d] to put there.
        """
        return lowest(self.scores(past), count), None

    def leave_behind(self, past: PastTokens, kept: Tensor, unfinished: int) -> None:  # noqa: B027  # most leave nothing
        """Settings change: all but those in slots kept [n, lanes] go. It may write evidence about tokens in place.

        Those of frames from `unfinished` on, which are abandoned, never were.
        """

    @abstractmethod
    def scores(self, past: PastTokens) -> Tensor:
        """[T, lanes] of a floating-point type; the highest stay, PROTECTED always."""

    def weigh(self, residual: Tensor) -> dict[str, Tensor]:
        """From the lengths [N] of what the MLP adds to the new tokens, evidence about them [N]; see wants_residual."""
        return {}

    def learn(self, geometry: Geometry) -> dict[str, Tensor]:
        """From what became of the newest frames, evidence about their tokens in every layer [N, ...]."""
        return {}


def kernels_for(d: int, device: torch.device) -> ModuleType | None:
    """The module of kernels for heads of d channels, where they run."""
    if not triton_runs(device):
        return None
    from xsvggt_ros.cache.policies import fused

    return fused if d in fused.HEAD_DIMS else None


def lowest(scores: Tensor, count: int) -> Tensor:
    """Where the `count` lowest of scores [T, lanes] are [count, lanes]."""
    return numbers(scores).topk(count, dim=0, largest=False, sorted=False).indices


def highest(scores: Tensor, past: PastTokens, count: int) -> Tensor:
    """Where the `count` highest of scores [T, lanes] are [count, lanes], of equal ones the newest; the oldest first."""
    newest_first = past.recency.argsort(0, descending=True)
    best = numbers(scores).gather(0, newest_first).argsort(dim=0, descending=True, stable=True)[:count]
    return newest_first.gather(0, best.sort(0, descending=True).values)


def numbers(scores: Tensor) -> Tensor:
    """Those of scores that are none count as 0, so that what is protected stays even so."""
    return scores.nan_to_num(nan=0.0, posinf=PROTECTED, neginf=-PROTECTED)


def summed(x: Tensor, lanes: int) -> Tensor:
    """x [T, heads], summed over the heads of each lane: [T, lanes]."""
    return x.unflatten(1, (lanes, -1)).sum(2, dtype=torch.float32)
