# SPDX-License-Identifier: Apache-2.0
"""The cache against an exact record of everything that was ever put into it."""

import itertools
from dataclasses import replace

import pytest
import torch
from support.caches import Shortage, cache_of, shape_of

from xsvggt_ros.cache import KVCache
from xsvggt_ros.cache.budget import budget_in_force
from xsvggt_ros.cache.policies import make_policy
from xsvggt_ros.cache.policies.xstream import query_summary
from xsvggt_ros.config import BITS, POLICIES, CacheConfig
from xsvggt_ros.memory import OutOfMemory
from xsvggt_ros.model.attention import sdpa
from xsvggt_ros.model.config import MODELS
from xsvggt_ros.stream import cache_shape


class Recorder:
    """Feeds random frames to a cache and knows what each token exactly was."""

    def __init__(self, cache: KVCache, seed: int = 0):
        self.cache = cache
        self.generator = torch.Generator().manual_seed(seed)
        self.exact: dict[int, list[torch.Tensor]] = {layer: [] for layer in range(cache.shape.layers)}

    def frame(self, shortage: Shortage | None = None) -> None:
        """The next frame; with a shortage perhaps only some of it, and then an error."""
        cache, shape = self.cache, self.cache.shape
        size = (shape.layers, 3, 1, shape.tokens_per_frame, shape.heads, shape.head_dim)
        new = torch.randn(size, generator=self.generator)
        # Channels of keys with an offset of their own.
        new[:, 1] += 3 * torch.randn(shape.layers, 1, 1, 1, shape.head_dim, generator=self.generator)
        with shortage or Shortage():
            for layer, (q, k, v) in enumerate(new):
                cache.attend(layer, q, k, v)
            for block in range(shape.camera_blocks):
                cache.camera.attend(block, *torch.zeros(3, 1, 1, shape.camera_heads, shape.camera_head_dim))
            cache.end_frames(1)
        for layer, (_, k, v) in enumerate(new):
            self.exact[layer].append(torch.stack([k[0], v[0]]))

    def stored(self, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(ids [T], stored [2, T, heads, d], exact [2, T, heads, d]) of the cached tokens."""
        cache = self.cache
        store = cache.layers[layer]
        out = torch.zeros(2, store.tokens, cache.shape.heads, cache.shape.head_dim)
        store.read(out)
        frame, token = store.places()
        ids = frame.long() * cache.shape.tokens_per_frame + token  # [T, lanes]
        of_heads = ids.repeat_interleave(cache.shape.heads // store.lanes, 1)
        exact = torch.cat(self.exact[layer], dim=1)[:, of_heads, torch.arange(cache.shape.heads)]
        return ids, torch.stack(store.quantizer.plain(*out)), exact

    def check(self) -> None:
        """Every stored token is the one it says it is, to half a quantisation step, and none is there twice."""
        cache = self.cache
        assert cache.nbytes == sum(tensor.nbytes for tensor in cache.tensors)
        assert cache.budget is None or cache.tokens <= cache.budget
        for layer in range(cache.shape.layers):
            ids, stored, exact = self.stored(layer)
            assert ids.unique().numel() == cache.tokens
            assert torch.equal(cache.token_ids(layer), ids.sort().values)
            for part, bits in ((0, cache.config.key_bits), (1, cache.config.value_bits)):
                # Half a step of a range of 10 (7 normal standard deviations, and float16 parameters).
                bound = 1e-6 if bits == 16 else 5.0 / (2**bits - 1) + 0.02
                assert (stored[part] - exact[part]).abs().max() <= bound


@pytest.mark.parametrize("tokens_per_frame", [25, 130])
@pytest.mark.parametrize("policy", ["xstream", "random", "sliding_window"])
@pytest.mark.parametrize("bits", [2, 4, 16])
def test_every_token_is_what_it_says_over_a_long_stream(tokens_per_frame, policy, bits):
    for budget in (tokens_per_frame // 2, 2 * tokens_per_frame, int(2.3 * tokens_per_frame), 5 * tokens_per_frame):
        for pinned in (True, False) if policy == "sliding_window" else (True,):
            config = CacheConfig(
                policy=policy, budget_tokens=budget, key_bits=bits, value_bits=bits, pin_first_frame=pinned
            )
            recorder = Recorder(cache_of(shape_of(tokens_per_frame), config))
            for _ in range(10):
                recorder.frame()
                recorder.check()


@pytest.mark.parametrize("change", [dict(budget_tokens=64), dict(budget_tokens=260), dict(policy="xstream")])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_window_that_cuts_through_a_frame_keeps_its_groups_when_settings_change(bits, change):
    """Its groups begin where the window cuts, not where those of a whole frame do."""
    config = CacheConfig(policy="sliding_window", pin_first_frame=False, budget_tokens=65, key_bits=bits)
    recorder = Recorder(cache_of(shape_of(130), config))
    for _ in range(3):
        recorder.frame()
    recorder.check()
    recorder.cache.reconfigure(replace(config, **change))
    recorder.check()


@pytest.mark.parametrize("seed", range(12))
def test_any_sequence_of_settings_keeps_every_token_what_it_says(seed):
    generator = torch.Generator().manual_seed(seed)

    def pick(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    tokens = pick([25, 70, 130])
    cache = cache_of(shape_of(tokens), CacheConfig(policy="full", key_bits=16, value_bits=16))
    recorder = Recorder(cache, seed)
    lowest_key_bits = lowest_value_bits = 16
    for _ in range(25):
        # Bits only fall: a token that was coarse once cannot become exact again.
        lowest_key_bits = pick([b for b in BITS if b <= lowest_key_bits][-2:])
        lowest_value_bits = pick([b for b in BITS if b <= lowest_value_bits][-2:])
        cache.reconfigure(
            CacheConfig(
                policy=pick(["xstream", "random", "sliding_window", "full"]),
                budget_tokens=int(pick([1, 2, 2.1, 3.5, 6]) * tokens),
                key_bits=lowest_key_bits,
                value_bits=lowest_value_bits,
                pin_first_frame=pick([True, False]),
                camera_window=pick([0, 1, 4]),
            )
        )
        for part in range(pick([0, 1, 3])):
            recorder.frame()
            assert cache.budget is None or cache.tokens <= cache.budget, part
        for layer in range(cache.shape.layers if cache.tokens else 0):
            ids, stored, exact = recorder.stored(layer)
            assert ids.unique().numel() == cache.tokens
            # A conversion adds its own half step to the one before: a sum of at most two steps of the coarsest.
            assert (stored[0] - exact[0]).abs().max() <= (
                0.01 if lowest_key_bits == 16 else 12 / (2**lowest_key_bits - 1) + 0.05
            )


def test_without_budget_and_quantisation_attention_is_exact():
    cache = cache_of(shape_of(30), CacheConfig(policy="full", key_bits=16, value_bits=16))
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(20):  # beyond the capacity it starts with
        q, k, v = torch.randn((3, 1, 30, 2, 64), generator=generator)
        seen.append((k, v))
        keys, values = (torch.cat(part, dim=1) for part in zip(*seen, strict=True))
        for layer in range(2):
            torch.testing.assert_close(cache.attend(layer, q, k, v), sdpa(q, keys, values))
        cache.end_frames(1)
    assert cache.tokens == 20 * 30


@pytest.mark.parametrize("bits", [4, 16])
def test_a_full_budget_neither_grows_nor_moves(bits):
    config = CacheConfig(budget_tokens=150, key_bits=bits, value_bits=bits, camera_window=2)
    recorder = Recorder(cache_of(shape_of(40), config))
    for _ in range(6):
        recorder.frame()
    cache = recorder.cache
    places = [tensor.data_ptr() for tensor in cache.tensors]
    size = cache.nbytes
    for _ in range(30):
        recorder.frame()
    assert [tensor.data_ptr() for tensor in cache.tensors] == places
    assert cache.nbytes == size
    assert (cache.tokens, cache.evicted) == (150, 40)


def test_pruning_never_requantises():
    recorder = Recorder(cache_of(shape_of(70), CacheConfig(budget_tokens=300)))
    for _ in range(5):
        recorder.frame()
    ids, before, _ = recorder.stored(0)
    first = before[:, ids.argsort()][:, :70]
    for _ in range(25):
        recorder.frame()
    ids, after, _ = recorder.stored(0)
    assert torch.equal(after[:, ids.argsort()][:, :70], first)  # the first frame, 25 prunings later


def test_a_smaller_budget_prunes_by_the_policy_at_once():
    """What stays are the best-scored tokens under the newest frame's queries, and first and newest frame."""
    shape = shape_of(40, layers=1)
    config = CacheConfig(budget_tokens=400, key_bits=16, value_bits=16)
    cache = cache_of(shape, config)
    generator = torch.Generator().manual_seed(0)
    keys = []
    for _ in range(8):
        q, k, v = torch.randn((3, 1, 40, 2, 64), generator=generator)
        keys.append(k[0])
        cache.attend(0, q, k, v)
        cache.end_frames(1)
    scores = torch.cat(keys).mean(1) @ query_summary(q[0], specials=5, pool=config.query_pool)
    middle = 40 + scores[40:-40].topk(20).indices
    expected = torch.cat([torch.arange(40), middle.sort().values, torch.arange(280, 320)])
    cache.reconfigure(CacheConfig(budget_tokens=100, key_bits=16, value_bits=16))
    assert torch.equal(cache.token_ids(0), expected)


def test_only_xstream_looks_at_queries_and_keeps_what_it_saw():
    caches = {name: cache_of(shape_of(40), CacheConfig(policy=name)) for name in POLICIES}
    for name, cache in caches.items():
        assert [*cache.layers[0].evidence()] == (["query"] if name == "xstream" else [])
        assert ("query" in cache.layers[0].tensors) == (name == "xstream")
    recorder = Recorder(caches["xstream"])
    recorder.frame()
    before = [recorder.cache.layers[layer].evidence()["query"].clone() for layer in range(2)]
    recorder.cache.reconfigure(CacheConfig(budget_tokens=100, query_pool=4))  # into another store
    for layer, query in enumerate(before):
        assert query.any() and torch.equal(recorder.cache.layers[layer].evidence()["query"], query)


def test_xstream_after_another_policy_goes_by_recency_until_it_has_seen_a_query():
    recorder = Recorder(cache_of(shape_of(40), CacheConfig(policy="random", budget_tokens=400)))
    for _ in range(8):
        recorder.frame()
    recorder.cache.reconfigure(CacheConfig(policy="xstream", budget_tokens=100))
    expected = torch.cat([torch.arange(40), torch.arange(260, 320)])  # the first frame, and the newest tokens
    for layer in range(2):
        assert torch.equal(recorder.cache.token_ids(layer), expected)
    recorder.frame()
    assert recorder.cache.layers[0].evidence()["query"].any()
    recorder.check()


def test_a_budget_below_the_floor_is_raised_to_it():
    for config, raised in (
        (CacheConfig(budget_tokens=10), True),
        (CacheConfig(budget_tokens=80), False),
        (CacheConfig(budget_tokens=0, budget_mib=0.01), True),
    ):
        cache = cache_of(shape_of(40), config)
        assert (cache.budget, cache.floor, cache.budget_raised) == (80, 80, raised)
    assert not cache_of(shape_of(40), CacheConfig(policy="full")).budget_raised


@pytest.mark.parametrize("policy", ["xstream", "sliding_window", "random"])
@pytest.mark.parametrize("bits", BITS)
def test_a_budget_in_mib_is_used_and_never_exceeded(policy, bits):
    shape = cache_shape(MODELS["demo"], 84, 112, torch.bfloat16, torch.float32)
    for mib in (1.0, 3.7, 20.0):
        config = CacheConfig(
            policy=policy, budget_tokens=0, budget_mib=mib, key_bits=bits, value_bits=bits, camera_window=4
        )
        cache = cache_of(shape, config)
        assert 0.97 * mib * 2**20 < cache.nbytes <= mib * 2**20
        assert cache.tokens <= cache.budget


def test_of_two_budgets_the_tighter_holds():
    shape = shape_of(40)
    policy = make_policy(CacheConfig(), shape)
    tokens, _ = budget_in_force(shape, CacheConfig(budget_tokens=0, budget_mib=1.0), policy)
    for asked, expected in ((tokens + 1, tokens), (tokens - 1, tokens - 1)):
        config = CacheConfig(budget_tokens=asked, budget_mib=1.0)
        assert budget_in_force(shape, config, policy) == (expected, False)


def test_full_size_at_the_published_budget_fits_60_mb():
    shape = cache_shape(MODELS["streamvggt"], 392, 518, torch.bfloat16, torch.float32)
    cache = cache_of(shape, CacheConfig(budget_tokens=2082, key_bits=4, value_bits=4), torch.device("meta"))
    assert cache.nbytes - cache.camera.buffer.nbytes <= 60e6


def test_random_is_repeatable_and_depends_on_the_seed():
    def ids(seed: int) -> list[int]:
        recorder = Recorder(cache_of(shape_of(40), CacheConfig(policy="random", budget_tokens=120, seed=seed)))
        for _ in range(6):
            recorder.frame()
        return recorder.cache.token_ids(0).tolist()

    assert ids(1) == ids(1) != ids(2)


def test_the_table_of_key_groups_rarely_changes_what_the_policy_keeps():
    """4-bit keys share a fixed table of parameters; it must not turn the policy into another one."""
    kept = {}
    for bits in (8, 16):
        recorder = Recorder(cache_of(shape_of(128), CacheConfig(policy="random", budget_tokens=6 * 128, key_bits=bits)))
        for _ in range(60):
            recorder.frame()
        kept[bits] = [recorder.cache.token_ids(layer) // 128 for layer in range(2)]
    ages = {bits: torch.cat(frames).float().mean() for bits, frames in kept.items()}
    assert abs(ages[8] - ages[16]) < 1.5  # frames


def test_shapes_of_all_kinds_have_room_for_their_groups():
    """Shortest streams at awkward sizes: no token is overwritten while its group's parameters are in use."""
    for tokens_per_frame, extra in itertools.product((6, 63, 64, 65, 129), (0, 1, 5, 40)):
        config = CacheConfig(budget_tokens=2 * tokens_per_frame + extra, key_bits=8, value_bits=8)
        recorder = Recorder(cache_of(shape_of(tokens_per_frame, layers=1), config))
        for _ in range(10):
            recorder.frame()
            recorder.check()


def test_a_budget_beyond_memory_is_refused_and_nothing_changes():
    recorder = Recorder(cache_of(shape_of(40), CacheConfig(budget_tokens=200)))
    for _ in range(6):
        recorder.frame()
    with pytest.raises(OutOfMemory, match=r"no memory for a cache of .* lower cache.budget_tokens"):
        recorder.cache.reconfigure(CacheConfig(budget_tokens=10**12))
    assert recorder.cache.config.budget_tokens == 200
    recorder.frame()
    recorder.check()


def test_an_error_that_is_no_shortage_is_not_taken_for_one(monkeypatch):
    recorder = Recorder(cache_of(shape_of(40), CacheConfig(budget_tokens=200)))
    recorder.frame()

    def broken(*_, **__):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch, "zeros", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        recorder.cache.reconfigure(CacheConfig(budget_tokens=300))
    monkeypatch.undo()
    recorder.check()


CUT = {  # policy and tokens before -> what the cache goes on with
    ("xstream", 5 * 25): CacheConfig(budget_tokens=62),
    ("xstream", 2 * 25): CacheConfig(budget_tokens=50),
    ("random", 100): CacheConfig(policy="random", budget_tokens=50),
    ("sliding_window", 75): CacheConfig(policy="sliding_window", budget_tokens=37),
    ("sliding_window", 30): CacheConfig(policy="sliding_window", budget_tokens=15, pin_first_frame=False),
    ("full", 0): CacheConfig(budget_tokens=100),
}


@pytest.mark.slow
@pytest.mark.parametrize("policy, tokens", CUT)
@pytest.mark.parametrize("bits", [4, 16])
def test_a_frame_that_finds_no_memory_leaves_nothing_behind(policy, tokens, bits):
    """Wherever memory runs out: no token of that frame stays, the others are what they say, the budget holds."""
    cut = replace(CUT[policy, tokens], key_bits=bits, value_bits=bits)
    before = replace(cut, policy=policy, budget_tokens=tokens or 1, camera_window=0)

    def after_eight_frames() -> Recorder:  # where a full cache, and the camera's without window, have to grow
        recorder = Recorder(cache_of(shape_of(25), before))
        for _ in range(8):
            recorder.frame()
        return recorder

    whole = Shortage()
    after_eight_frames().frame(whole)
    assert whole.calls > 100
    for at in range(0, whole.calls, 7):
        recorder = after_eight_frames()
        with pytest.raises((torch.OutOfMemoryError, MemoryError)):
            recorder.frame(Shortage(at))
        cache = recorder.cache
        cache.abandon_frames(cut)
        assert (cache.frames, cache.camera.frames) == (8, 8)
        assert cache.budget == max(cut.budget_tokens, cache.floor)
        recorder.check()
        if policy != "sliding_window":
            for layer in range(2):
                assert torch.equal(cache.token_ids(layer)[:25], torch.arange(25))  # the first frame stays whole
        for _ in range(3):
            recorder.frame()
            recorder.check()
        assert 0.9 * cache.budget < cache.tokens <= cache.budget  # packed keys leave some slots unused


def test_what_a_frame_displaced_before_memory_ran_out_is_lost_in_every_layer():
    """A layer had taken the new frame in for 25 others; both layers go on with the same number without them."""
    config = CacheConfig(budget_tokens=100, key_bits=16, value_bits=16)
    recorder = Recorder(cache_of(shape_of(25), config))
    for _ in range(6):
        recorder.frame()
    cache, q = recorder.cache, torch.randn(1, 25, 2, 64)
    cache.attend(0, q, q, q)
    cache.abandon_frames(config)
    assert (cache.tokens, cache.frames) == (75, 6)
    recorder.check()
    recorder.frame()
    assert (cache.tokens, cache.evicted) == (100, 25)


@pytest.mark.parametrize("window", [0, 8])
@pytest.mark.parametrize("bits", [4, 16])
def test_settings_that_find_no_memory_change_nothing(bits, window):
    """Wherever memory runs out on the way there."""
    config = CacheConfig(budget_tokens=100, key_bits=bits, value_bits=bits, camera_window=4)
    wanted = CacheConfig(policy="random", budget_tokens=140, key_bits=2, value_bits=4, camera_window=window)
    recorders = [Recorder(cache_of(shape_of(25), config)) for _ in range(2)]
    for recorder in recorders:
        for _ in range(6):
            recorder.frame()
    (cache, changed), whole = (recorder.cache for recorder in recorders), Shortage()
    with whole:
        changed.reconfigure(wanted)
    before = [tensor.clone() for tensor in cache.tensors]
    for at in range(whole.calls):
        with pytest.raises(OutOfMemory, match="no memory"), Shortage(at):
            cache.reconfigure(wanted)
        assert (cache.config, cache.budget, cache.tokens, cache.camera.window) == (config, 100, 100, 4)
        for now, then in zip(cache.tensors, before, strict=True):
            assert torch.equal(now, then)
    cache.reconfigure(wanted)
    assert (cache.config, cache.budget, cache.camera.window) == (wanted, 140, window)
    for now, then in zip(cache.tensors, changed.tensors, strict=True):
        assert torch.equal(now, then)
