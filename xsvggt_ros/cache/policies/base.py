# SPDX-License-Identifier: Apache-2.0
"""What a policy sees, and what it must say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor

from xsvggt_ros.cache.shape import CacheShape, Layout
from xsvggt_ros.config import CacheConfig

PROTECTED = float("inf")  # the score of a token that must stay


@dataclass(frozen=True)
class PastTokens:
    """The tokens cached in one layer, in no particular order, and the evidence about them."""

    frame: Tensor  # [T] int32, the frame a token came with
    token: Tensor  # [T] int32, its place in that frame
    keys: Tensor  # [T, heads, d], as attention saw them
    newest: int  # index of the newest frame; while it is being taken in, none of its tokens are here
    tokens_per_frame: int
    evidence: dict[str, Tensor] = field(default_factory=dict)  # what the policy keeps about this layer

    @property
    def in_first_frame(self) -> Tensor:
        """[T] bool; nowhere once a policy that does not keep the first frame has cut it."""
        first = self.frame == 0
        return first & (first.sum() == self.tokens_per_frame)

    @property
    def recency(self) -> Tensor:
        """[T] float32, the newest token's the highest. Exact however long the stream is: it counts back from there."""
        return ((self.frame - self.newest) * self.tokens_per_frame + self.token).float()

    def protect_ends(self, scores: Tensor) -> Tensor:
        """The scores with the first and the newest frame made to stay."""
        return scores.masked_fill(self.in_first_frame | (self.frame == self.newest), PROTECTED)


class Policy(ABC):
    """Ranks cached tokens, by what it may keep about each layer from frame to frame."""

    scattered = False
    """Whether single tokens from all over a frame stay, rather than whole stretches."""

    def __init__(self, config: CacheConfig, shape: CacheShape):
        self.config = config
        self.shape = shape

    @abstractmethod
    def floor(self) -> int:
        """The least budget, in tokens, that the policy works with."""

    def evidence(self) -> Layout:
        """The tensors it keeps about a layer, zero at first. A policy that follows goes on with those it keeps too."""
        return {}

    def observe(self, q: Tensor, evidence: dict[str, Tensor]) -> None:  # noqa: B027  # most observe nothing
        """Sees the new frame's queries [P, heads, d] in a layer, whose evidence it may write in place."""

    @abstractmethod
    def scores(self, past: PastTokens) -> Tensor:
        """[T] float32; the highest stay, PROTECTED always."""
