# SPDX-License-Identifier: Apache-2.0
"""Points followed through a stream, in memory that does not grow.

VGGT's track head (arXiv 2503.11651, section 3.3) sees a whole sequence. Here it sees three frames at a time: that in
which the points were given, the last one and the new one, and starts from where the points were in the last. Of the
past it needs one feature map for each frame in which points were given.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xsvggt_ros.frame import Tracks
from xsvggt_ros.model.config import ModelConfig
from xsvggt_ros.model.track_head import STRIDE, TrackHead

MOST = 256  # points given at a time
LOST = 30  # frames in a row in which none of the points given together is seen, and they are followed no longer
COLUMNS = tuple(column.name for column in fields(Tracks))
NOTHING = Tracks(np.zeros(0, np.int64), np.zeros((0, 2), np.float32), np.zeros(0, bool), np.zeros(0, np.float32))
RENEWED = 0.5  # share of a grid's points that are seen; below it a new grid begins


def map_nbytes(model: ModelConfig, height: int, width: int, dtype: torch.dtype) -> int:
    """Of one feature map, for a network input of that size (pixels)."""
    assert model.track is not None
    return model.track.features * (height // STRIDE) * (width // STRIDE) * dtype.itemsize


@dataclass
class Group:
    """Points given in one frame."""

    ids: NDArray[np.int64]  # [N]
    queries: Tensor  # [N, 2], pixels in that frame
    last: Tensor  # [N, 2], in the newest frame
    slot: int  # of that frame's map
    is_grid: bool
    new: bool = True  # the newest frame is still that one
    unseen: int = 0  # frames in a row
    visible: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))
    confidence: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))


class PointTracker:
    """Of one stream. groups: how many times points may be given at once; grid: points a side that renew themselves."""

    def __init__(self, head: TrackHead, groups: int, grid: int) -> None:
        self._head, self._grid, self._size = head, grid, groups
        self._next_id = 0
        self.forget()

    def forget(self) -> None:
        """All points; ids are not used again."""
        self._groups: list[Group] = []
        self._maps: Tensor | None = None  # [1 + groups, F, h, w]; the first is the newest frame's

    @property
    def nbytes(self) -> int:
        """Bytes of the feature maps."""
        return 0 if self._maps is None else self._maps.nbytes

    @torch.inference_mode()
    def follow(self, pixels: NDArray[np.float32]) -> NDArray[np.int64]:
        """Follows points of the newest frame, [N, 2] x y in its image, and returns their ids [N].

        Raises ValueError where there is no frame yet or no room, and for points that lie outside.
        """
        return self._follow(pixels, is_grid=False)

    @torch.inference_mode()
    def update(self, maps: Tensor) -> list[Tracks]:
        """A step's frames have these feature maps [S, F, h, w]: where all points are in each."""
        if self._maps is None:
            self._maps = maps.new_zeros(1 + self._size, *maps.shape[1:])
        return [self._advance(new) for new in maps]

    def _follow(self, pixels: NDArray[np.float32], is_grid: bool) -> NDArray[np.int64]:
        pixels = np.asarray(pixels, np.float32)
        if self._maps is None:
            raise ValueError("there is no frame yet in which points could be followed: give them after the first")
        if pixels.ndim != 2 or pixels.shape[1] != 2 or not 0 < len(pixels) <= MOST:
            raise ValueError(f"points must be an array [N, 2] of 1 to {MOST} pixels (x, y), got {list(pixels.shape)}")
        height, width = (STRIDE * side for side in self._maps.shape[2:])
        if not ((pixels >= -0.5) & (pixels <= [width - 0.5, height - 0.5])).all():  # false of what is no number
            raise ValueError(
                f"points must lie in what the network sees of the image, {width}x{height} of its pixels: "
                "frame.resize.to_input gives those of the image's"
            )
        pixels = pixels.clip(0, [width - 1, height - 1], dtype=np.float32)
        free = set(range(1, 1 + self._size)) - {group.slot for group in self._groups}
        if not free:
            raise ValueError(f"{self._size} groups of points are followed already: raise track_groups, or reset")
        slot = min(free)
        self._maps[slot] = self._maps[0]
        queries = torch.tensor(pixels, device=self._maps.device)
        ids = np.arange(self._next_id, self._next_id + len(pixels))
        self._next_id += len(pixels)
        seen, sure = np.ones(len(pixels), bool), np.ones(len(pixels), np.float32)
        self._groups.append(Group(ids, queries, queries, slot, is_grid, visible=seen, confidence=sure))
        return ids

    def _advance(self, new: Tensor) -> Tracks:
        assert self._maps is not None
        for group in self._groups:
            self._find(group, new)
        self._maps[0] = new
        self._groups = [group for group in self._groups if group.unseen < LOST]
        self._renew_grid()
        return self._told()

    def _find(self, group: Group, new: Tensor) -> None:
        assert self._maps is not None
        before = [] if group.new else [self._maps[0]]
        window = torch.stack([self._maps[group.slot], *before, new])
        start = torch.stack([group.queries, *[group.last] * (1 + len(before))])
        tracks, visibility, confidence = self._head.tracker(window[None], group.queries[None], start[None])
        group.last, group.new = tracks[-1, 0, -1].float(), False
        group.visible = (visibility[0, -1] > 0.5).cpu().numpy()
        group.confidence = confidence[0, -1].float().cpu().numpy()
        group.unseen = 0 if group.visible.any() else group.unseen + 1

    def _renew_grid(self) -> None:
        """Begins a grid in the newest frame, in place of one that is mostly out of sight."""
        if not self._grid:
            return
        here = [group for group in self._groups if group.is_grid]
        if here and here[0].visible.mean() >= RENEWED:
            return
        self._groups = [group for group in self._groups if not group.is_grid]
        if len(self._groups) < self._size:
            assert self._maps is not None
            height, width = (STRIDE * side for side in self._maps.shape[2:])
            steps = (np.arange(self._grid) + 0.5) / self._grid
            places = np.stack(np.meshgrid(steps * width, steps * height), -1).reshape(-1, 2) - 0.5
            self._follow(places.astype(np.float32), is_grid=True)

    def _told(self) -> Tracks:
        parts = [Tracks(g.ids, g.last.cpu().numpy(), g.visible, g.confidence) for g in self._groups]
        columns = ([getattr(part, name) for part in (NOTHING, *parts)] for name in COLUMNS)
        return Tracks(*(np.concatenate(column) for column in columns))
