# SPDX-License-Identifier: Apache-2.0
"""What a policy sees, and what it must say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

PROTECTED = float("inf")  # the score of a token that must stay


@dataclass(frozen=True)
class PastTokens:
    """The tokens cached in one layer, in no particular order, and the evidence about them."""

    frame: Tensor  # [T] int32, the frame a token came with
    token: Tensor  # [T] int32, its place in that frame
    keys: Tensor  # [T, heads, d], as attention saw them
    query: Tensor  # [d] float32, summary of the newest frame's queries: xstream.query_summary
    newest: int  # index of the newest frame; while it is being taken in, none of its tokens are here
    tokens_per_frame: int

    @property
    def in_first_frame(self) -> Tensor:
        """[T] bool; nowhere once a policy that does not keep the first frame has cut it."""
        first = self.frame == 0
        return first & (first.sum() == self.tokens_per_frame)

    def protect_ends(self, scores: Tensor) -> Tensor:
        """The scores with the first and the newest frame made to stay."""
        return scores.masked_fill(self.in_first_frame | (self.frame == self.newest), PROTECTED)


class Policy(Protocol):
    """Ranks cached tokens."""

    fragmentation: int
    """Room for key groups relative to densely filled ones: 1 where whole stretches of tokens stay or go."""

    def floor(self, tokens_per_frame: int) -> int:
        """The least budget, in tokens, that the policy works with."""
        ...

    def scores(self, past: PastTokens) -> torch.Tensor:
        """[T] float32; the highest stay, PROTECTED always."""
        ...
