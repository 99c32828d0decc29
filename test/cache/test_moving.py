# SPDX-License-Identifier: Apache-2.0
"""Other settings need at most a layer's worth of memory above the larger of the two caches."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from support.caches import cache_of
from support.paths import ROOT
from support.streams import RandomStream
from torch.profiler import ProfilerActivity, profile

from xsvggt_ros.cache import KVCache
from xsvggt_ros.cache.policies import BY_NAME
from xsvggt_ros.config import CacheConfig

MARKS = 7_654_321, 7_654_322  # bytes of two tensors, between which memory is watched
SIZE = 520  # tokens of a frame
NARROW = CacheConfig(budget_tokens=8 * SIZE, camera_window=4)
WIDE = replace(NARROW, key_bits=16, value_bits=16)


def full_cache(config: CacheConfig, dtype: torch.dtype) -> KVCache:
    stream = RandomStream(config, SIZE, layers=2)
    stream.shape = replace(stream.shape, heads=8, dtype=dtype)
    stream.cache = cache_of(stream.shape, config)
    for _ in range(9):
        new = stream.draw(1)
        stream.feed(replace(new, q=new.q.to(dtype), k=new.k.to(dtype), v=new.v.to(dtype)))
    return stream.cache


def held(cache: KVCache) -> int:
    return cache.nbytes + cache.scratch_nbytes


def reconfigured(before: CacheConfig, after: CacheConfig, dtype: torch.dtype) -> tuple[int, int, KVCache]:
    """(bytes held before, those that torch allocated beyond them at most at one time, the changed cache)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        cache = full_cache(before, dtype)
        size = held(cache)
        torch.empty(MARKS[0], dtype=torch.uint8)
        cache.reconfigure(after)
        torch.empty(MARKS[1], dtype=torch.uint8)
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    now = highest = 0
    for change in changes[changes.index(-MARKS[0]) + 1 : changes.index(MARKS[1])]:
        now += change
        highest = max(highest, now)
    assert now == held(cache) - size  # every byte is accounted for
    return size, highest, cache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("before", "change"),
    [
        (NARROW, dict(budget_tokens=4 * SIZE)),
        (WIDE, dict(budget_tokens=4 * SIZE)),
        (NARROW, dict(budget_tokens=11 * SIZE)),
        (WIDE, dict(key_bits=2, value_bits=2)),
        (NARROW, dict(key_bits=8, value_bits=16)),
        (NARROW, dict(quantizer="channel")),
        (replace(NARROW, quantizer="channel"), dict(quantizer="rotated")),
        (NARROW, dict(policy="output_aware")),
        (NARROW, dict(policy="sliding_window", chunk=3)),
    ],
    ids=["shrink", "shrink16", "grow", "fewer", "more", "channel", "rotated", "policy", "chunk"],
)
def test_other_settings_need_a_layer_at_most_beside_the_larger_cache(before, change, dtype):
    size, more, cache = reconfigured(before, replace(before, **change), dtype)
    tokens = max(before.budget_tokens, cache.budget)
    unpacked = 2 * tokens * cache.shape.width * dtype.itemsize
    assert 0 < size + more <= max(size, held(cache)) + unpacked


@pytest.mark.parametrize("policy", [name for name in BY_NAME if name != "full"])
@pytest.mark.parametrize(("before", "after", "budget"), [(4, 1, 50), (4, 2, 100), (3, 1, 60), (2, 4, 50)])
def test_first_and_newest_frames_are_whole_after_a_change_of_the_chunk_at_the_floor(policy, before, after, budget):
    """Of a step's frames as many are protected then as the next step brings."""
    config = CacheConfig(policy=policy, budget_tokens=budget, chunk=before)
    stream = RandomStream(config)
    for _ in range(3):
        stream.step(before)
    stream.cache.reconfigure(replace(config, chunk=after))
    newest = range(max(2 * before, 3 * before - after), 3 * before)
    whole = {(frame, token) for frame in (0, *newest) for token in range(25)}
    for layer in range(2):
        assert whole <= set(stream.places(layer))


SHRINK = """
import resource, sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
import torch
from support.caches import CPU, cache_of, shape_of
from xsvggt_ros.config import CacheConfig

torch.set_num_threads(1)
shape = shape_of(260, layers=12, heads=8)
config = CacheConfig(budget_tokens=12_000, key_bits=16, value_bits=16, camera_window=4)
cache = cache_of(shape, config)  # 563 MiB
q = torch.randn(1, 260, 8, 64)
for layer in range(12):
    cache.attend(layer, q, q, q)
cache.end_frames(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20,) * 2)  # three layers
for tokens in (9_000, 6_000, 2_000):
    cache.reconfigure(replace(config, budget_tokens=tokens))
    print(cache.budget)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_smaller_cache_is_there_where_the_machine_has_no_memory_for_both():
    """A limit of the address space lets in a few layers beside the cache, not the smaller cache, of nine."""
    command = [sys.executable, "-c", SHRINK, str(ROOT / "test")]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings)
    assert (done.returncode, done.stdout.split()) == (0, ["9000", "6000", "2000"]), done.stderr
