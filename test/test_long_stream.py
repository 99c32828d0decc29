# SPDX-License-Identifier: Apache-2.0
"""A long stream does not grow: not the cache, not the process."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xsvggt_ros import CacheConfig, GeometryStream, StreamConfig
from xsvggt_ros.model.config import MODELS, DPTConfig, TransformerConfig
from xsvggt_ros.model.loading import RANDOM

PAGE = 4096
STEPS = 2000
# Narrow, so that its weights stay in the processor's cache: a step then takes a third of the time.
NARROW = replace(
    MODELS["demo"], width=64, heads=1, depth=4, taps=(0, 1, 2, 3), dpt=DPTConfig(16, (16, 16, 16, 16)),
    encoder=TransformerConfig(depth=1, heads=1), camera=TransformerConfig(depth=1, heads=2),
)  # fmt: skip


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux' /proc to see the process's memory")
def test_nothing_grows_between_step_20_and_step_2000(monkeypatch):
    monkeypatch.setitem(MODELS, "demo", NARROW)
    cache = CacheConfig(budget_tokens=160, camera_window=8)
    stream = GeometryStream(StreamConfig(weights=RANDOM, dtype="float32", image_width=56, cache=cache))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (84, 112, 3), dtype=np.uint8)
    held, resident = [], []
    for step in range(STEPS):
        status = stream.step(np.roll(image, step, axis=1)).status
        if step >= 20:
            held.append((status.cache_bytes, status.scratch_bytes, status.tokens, status.camera_frames))
        if step in (200, STEPS - 1):
            resident.append(resident_bytes())
    assert len(set(held)) == 1
    assert resident[1] - resident[0] < 8 * 2**20  # allocator noise; a frame kept per step would be 60 MB
