# SPDX-License-Identifier: Apache-2.0
"""Keep whole frames, the same in all layers, ever sparser with age (eStreamVGGT's K8, generalised to any number).

K8 keeps the first frame, those of age 0 to 3, and one each of age 4 to 15, 16 to 47 and 48 or more, where nearer bands
keep their oldest, so that frames age through. Without bands, for any number of frames: the first and the newest stay,
and of the others leaves the one whose neighbours are closest in log age, so that ages are as evenly spread in their
logarithm as they can be. It goes by the frames' numbers alone: no descriptors are kept, nothing waits for the device.
FrameVGGT (arXiv 2603.07690) keeps whole frames too, by their descriptors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xsvggt_ros.cache.policies.base import PROTECTED, PastTokens, Policy
from xsvggt_ros.cache.shape import Layout

RECENT = 4  # newest frames that stay, where they are at most half of all


class FrameBank(Policy):
    """A frame's tokens stay or leave together."""

    repeats = False
    same_in_all_layers = True

    bank: tuple[int, ...] = ()  # the frames that stay, ascending

    def usable(self, budget: int) -> int:
        """Whole frames."""
        return budget - budget % self.shape.tokens_per_frame

    def shared_evidence(self, budget: int) -> Layout:
        """The bank, for the device; 0, the first frame, where there is room for more."""
        return {"bank": ((budget // self.shape.tokens_per_frame,), torch.int32)}

    def take_over(self, other: Policy) -> None:
        if isinstance(other, FrameBank):
            self._keep(other.bank)

    def begin(self, patches: Tensor, first: int) -> None:
        """Without frames of a step that was abandoned, whose numbers come again."""
        before = [frame for frame in self.bank or (0,) if frame < first]
        self._keep([*before, *range(first, first + patches.shape[0])])

    def scores(self, past: PastTokens) -> Tensor:
        """What another policy left goes first, the oldest of it."""
        there = (past.frame[..., None] == self.shared["bank"]).any(-1)
        return past.protect_ends(past.recency).masked_fill(there, PROTECTED)

    def frames_kept(self, frames: list[int], count: int) -> list[int]:
        """By the bank's rule; the bank's own, once those are gone that another policy had left to the camera's head."""
        return self._spread(frames, min(count, self._room))

    @property
    def _room(self) -> int:
        """Frames that the budget holds."""
        return self.shared["bank"].shape[0]

    def _spread(self, frames: Sequence[int], count: int) -> list[int]:
        return spread(frames, count, recent=min(count - 1, max(self.config.chunk, min(RECENT, count // 2))))

    def _keep(self, frames: Sequence[int]) -> None:
        self.bank = tuple(self._spread(frames, self._room))
        padded = torch.tensor([*self.bank, *[0] * (self._room - len(self.bank))], dtype=torch.int32)
        self.shared["bank"].copy_(padded, non_blocking=True)


def spread(frames: Sequence[int], count: int, recent: int) -> list[int]:
    """At most `count` of frames, ascending, the first and the `recent` newest among them, evenly in log age.

    recent is below count. One by one leaves the frame with the lowest ratio of the ages of its neighbours.
    """
    kept = list(frames)
    while len(kept) > count:
        ages = [kept[-1] + 1 - frame for frame in kept]
        del kept[min(range(1, len(kept) - recent), key=lambda i: ages[i - 1] / ages[i + 1])]
    return kept
