# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from support.caches import CPU, shape_of

from xsvggt_ros.cache.camera_cache import CameraCache
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.model.attention import sdpa


class Twin:
    """A camera cache beside plain lists of everything."""

    def __init__(self, **settings):
        self.cache = CameraCache(shape_of(30), CacheConfig(**settings), CPU, sdpa)
        self.generator = torch.Generator().manual_seed(0)
        self.kept: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # per frame, its passes' k and v

    def frames(self, count: int, window: int) -> None:
        """The next ones, all at once."""
        new: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(count)]
        self.kept += new
        for done in range(self.cache.shape.camera_iterations):
            q, k, v = torch.randn((3, 1, count, 2, 32), generator=self.generator)
            for frame, entries in enumerate(new):
                entries.append((k[:, frame : frame + 1], v[:, frame : frame + 1]))
            seen = [f[done : done + 1] if self.cache.passes == "apart" else f for f in self.kept]
            keys, values = (torch.cat(part, dim=1) for part in zip(*(e for f in seen for e in f), strict=True))
            for block in range(2):
                torch.testing.assert_close(self.cache.attend(block, q, k, v), sdpa(q, keys, values))
        self.cache.end_frames(count)
        if window:
            self.kept = self.kept[:1] + self.kept[1:][-window:]


@pytest.mark.parametrize("window", [0, 1, 3])
@pytest.mark.parametrize("passes", ["shared", "apart"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_first_frame_and_window_are_what_is_attended_to(window, passes, chunk):
    twin = Twin(camera_window=window, camera_passes=passes, chunk=chunk)
    for count in (chunk, chunk, 1, chunk, chunk - 1 or 1, chunk):
        twin.frames(count, window)
        assert twin.cache.frames == len(twin.kept)


def test_settings_that_change_keep_the_newest():
    twin = Twin(camera_window=5)
    for window, passes, chunk in [
        (5, "shared", 1),
        (2, "apart", 3),
        (4, "apart", 1),
        (0, "shared", 2),
        (3, "apart", 2),
    ]:
        twin.cache.reconfigure(CacheConfig(camera_window=window, camera_passes=passes, chunk=chunk))
        if window:
            twin.kept = twin.kept[:1] + twin.kept[1:][-window:]
        for _ in range(4):
            twin.frames(chunk, window)


def test_abandoned_frames_leave_nothing():
    twin = Twin(camera_window=3)
    for _ in range(5):
        twin.frames(1, 3)
    q = torch.randn(1, 1, 2, 32)
    for _ in range(2):
        twin.cache.attend(0, q, q, q)
    twin.cache.abandon_frames()
    twin.frames(1, 3)


def test_a_frame_can_take_the_slot_that_it_is_told():
    twin = Twin(camera_window=3)
    for _ in range(4):
        twin.frames(1, 3)
    cache, before = twin.cache, twin.cache.buffer.clone()
    q, k, v = torch.randn((3, 1, 1, 2, 32))
    for block in range(2):
        for _ in range(cache.shape.camera_iterations):
            cache.attend(block, q, k, v)
    cache.end_frames(1, torch.tensor([2]))
    assert (cache.buffer[:, 0, 2] == k[0, 0]).all() and (cache.buffer[:, 1, 2] == v[0, 0]).all()
    others = torch.tensor([0, 1, 3])
    assert torch.equal(cache.buffer[:, :, others], before[:, :, others])


@pytest.mark.parametrize("chunk", [1, 3])
def test_memory_is_fixed_by_the_window(chunk):
    twin = Twin(camera_window=3, chunk=chunk)
    size = twin.cache.buffer.nbytes
    for _ in range(10):
        twin.frames(chunk, 3)
    assert twin.cache.buffer.nbytes == size
