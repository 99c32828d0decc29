# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from support.caches import CPU, shape_of

from xsvggt_ros.cache.camera_cache import CameraCache, Keeps, first_and_newest
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.model.attention import sdpa


class Twin:
    """A camera cache beside plain lists of everything."""

    def __init__(self, **settings):
        self.cache = CameraCache(shape_of(30), CacheConfig(**settings), CPU, sdpa)
        self.generator = torch.Generator().manual_seed(0)
        self.kept: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # per frame, its passes' k and v

    def frames(self, count: int, window: int, keeps: Keeps = first_and_newest) -> None:
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
        self.cache.end_frames(count, keeps)
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
        twin.cache = twin.cache.reconfigured(CacheConfig(camera_window=window, camera_passes=passes, chunk=chunk))
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


@pytest.mark.parametrize("chunk", [1, 2])
def test_another_rule_says_which_frames_stay(chunk):
    """Here: the oldest."""
    twin = Twin(camera_window=3, chunk=chunk)
    for number in range(8):
        twin.frames(chunk, 0, lambda frames, count: frames[:count])
        assert twin.cache.frames == min(4, chunk * (number + 1))
        twin.kept = twin.kept[:4]
    twin.cache = twin.cache.reconfigured(CacheConfig(camera_window=3, chunk=chunk), lambda frames, _: frames[::2])
    twin.kept = twin.kept[::2]
    twin.frames(chunk, 3)


def test_the_one_before_stays_as_it_was():
    twin = Twin(camera_window=5)
    for _ in range(6):
        twin.frames(1, 5)
    twin.cache.reconfigured(CacheConfig(camera_window=2, chunk=3))
    for _ in range(4):
        twin.frames(1, 5)


@pytest.mark.parametrize("chunk", [1, 3])
def test_memory_is_fixed_by_the_window(chunk):
    twin = Twin(camera_window=3, chunk=chunk)
    size = twin.cache.buffer.nbytes
    for _ in range(10):
        twin.frames(chunk, 3)
    assert twin.cache.buffer.nbytes == size
