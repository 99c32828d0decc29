# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from support.caches import CPU, shape_of

from xsvggt_ros.cache.camera_cache import CameraCache
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.model.attention import sdpa


class Twin:
    """A camera cache beside plain lists of everything."""

    def __init__(self, window: int):
        self.cache = CameraCache(shape_of(30), CacheConfig(camera_window=window), CPU, sdpa)
        self.generator = torch.Generator().manual_seed(0)
        self.kept: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # per frame, its iterations' k and v

    def frame(self, window: int) -> None:
        entries: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.kept.append(entries)
        for _ in range(self.cache.shape.camera_iterations):
            q, k, v = torch.randn((3, 1, 1, 2, 32), generator=self.generator)
            entries.append((k, v))
            keys, values = (torch.cat(part, dim=1) for part in zip(*(e for f in self.kept for e in f), strict=True))
            for block in range(2):
                torch.testing.assert_close(self.cache.attend(block, q, k, v), sdpa(q, keys, values))
        self.cache.end_frame()
        if window:
            self.kept = self.kept[:1] + self.kept[1:][-window:]


@pytest.mark.parametrize("window", [0, 1, 3])
def test_first_frame_and_window_are_what_is_attended_to(window):
    twin = Twin(window)
    for _ in range(12):
        twin.frame(window)
        assert twin.cache.frames == len(twin.kept)


def test_a_window_that_changes_keeps_the_newest():
    twin, window = Twin(5), 5
    for new in (5, 2, 4, 0, 3, 1, 6):
        twin.cache.reconfigure(CacheConfig(camera_window=new))
        if new:
            twin.kept = twin.kept[:1] + twin.kept[1:][-new:]
        window = new
        for _ in range(4):
            twin.frame(window)


def test_memory_is_fixed_by_the_window():
    twin = Twin(3)
    size = twin.cache.buffer.nbytes
    for _ in range(10):
        twin.frame(3)
    assert twin.cache.buffer.nbytes == size
