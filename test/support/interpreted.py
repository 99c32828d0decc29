# SPDX-License-Identifier: Apache-2.0
"""Kernels without a GPU. To be called in a process of its own: Triton decides as it is imported whether it
interprets kernels or compiles them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from multiprocessing import get_context
from unittest.mock import patch

import torch
from torch import Tensor

from support.caches import CPU, shape_of
from support.streams import RandomStream
from xsvggt_ros import fusing
from xsvggt_ros.cache.policies import Seen, coreset
from xsvggt_ros.cache.policies.probes import attention
from xsvggt_ros.cache.quantizers import rotated
from xsvggt_ros.cache.quantizers.packing import unpack
from xsvggt_ros.config import CacheConfig
from xsvggt_ros.model.attention import sdpa

PER_FRAME = 11  # tokens
SHARED = {86: 99 * 2**10, 90: 227 * 2**10}  # bytes of shared memory that a kernel may use, by compute capability
CAPACITY = 37  # tokens: with 3 heads, a program and a part of one
HEADS = 3


@contextmanager
def process(**environment: str) -> Iterator[Callable]:
    """call(function, *arguments, **keywords) in one process with that environment."""
    with patch.dict(os.environ, environment), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield lambda function, *arguments, **keywords: pool.submit(function, *arguments, **keywords).result()


def quantizer(bits: tuple[int, int], dtype: torch.dtype, lanes: int, d: int) -> rotated.Rotated:
    """An empty one, for tokens of any place: of late frames too, whose numbers overflow."""
    shape = replace(shape_of(PER_FRAME, layers=1, dtype=dtype, heads=HEADS), head_dim=d)
    found = rotated.Rotated(CacheConfig(key_bits=bits[0], value_bits=bits[1]), shape, lanes, CAPACITY)
    generator, size = torch.Generator().manual_seed(0), (CAPACITY, lanes)
    found.tensors = {name: torch.zeros(size, dtype=dtype) for name, (size, dtype) in found.layout().items()}
    found.tensors["frame"] = torch.randint(2**31 - 1, size, dtype=torch.int32, generator=generator)
    found.tensors["token"] = torch.randint(PER_FRAME, size, dtype=torch.int32, generator=generator)
    return found


def written(kernels: bool, bits: tuple[int, int], dtype: torch.dtype, lanes: int, d: int) -> rotated.Rotated:
    """One that is filled, and some of whose tokens then leave for others."""
    found = quantizer(bits, dtype, lanes, d)
    generator = torch.Generator().manual_seed(1)
    for tokens, in_use, evictions in ((30, 0, 0), (12, 30, 5)):
        # As lies in memory what a network makes of a token at once.
        keys, values = torch.randn(tokens, 2, HEADS, d, generator=generator).add(0.5).to(dtype).unbind(1)
        leaving = torch.stack([torch.randperm(max(1, in_use), generator=generator) for _ in range(lanes)], 1)
        free = torch.arange(in_use, in_use + tokens - evictions)[:, None].expand(-1, lanes)
        with choice(kernels):
            found.write(torch.cat([leaving[:evictions], free]), keys, values, in_use, evictions)
    return found


def choice(kernels: bool):
    """Whether a quantizer takes the kernels, whatever the device."""
    if kernels:
        from xsvggt_ros.cache.quantizers import fused
    return patch.object(rotated, "kernels_for", lambda d, device: fused if kernels else None)


def check_reading(bits: tuple[int, int], dtype: torch.dtype, lanes: int, d: int = 64) -> None:
    """Kernels read what PyTorch reads, into a buffer of more tokens."""
    store = written(False, bits, dtype, lanes, d)
    found, expected = torch.full((2, 2, CAPACITY + 3, HEADS, d), 7.0, dtype=dtype)
    for kernels, out in ((True, found), (False, expected)):
        with choice(kernels):
            store.read(CAPACITY, *out[:, :CAPACITY])
    assert (found[:, CAPACITY:] == 7).all()
    # The interpreter cuts bfloat16 off, which a GPU rounds.
    close = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(found, expected, rtol=close, atol=1e-5)


def check_writing(bits: tuple[int, int], dtype: torch.dtype, lanes: int, d: int = 64) -> None:
    """Kernels write what PyTorch writes, but for codes at the very edge of a bin."""
    found, expected = (written(kernels, bits, dtype, lanes, d) for kernels in (True, False))
    for kind in ("key", "value"):
        codes, same = (numbers(store, kind) for store in (found, expected))
        assert (codes - same).abs().max() <= 1
        assert (codes != same).float().mean() < 1e-3
        if found.bits[kind] < 16:
            scales = (store.tensors[f"{kind}_scale"] for store in (found, expected))
            torch.testing.assert_close(*scales, rtol=2**-9, atol=0)


def check_ends(bits: int) -> None:
    """Of numbers that are all 0 or the same, tiny or huge."""
    ends = torch.tensor([0.0, 3.0, 1e-30, 1e30, -5e4])[:, None, None].expand(-1, HEADS, 64)
    stores = [quantizer((bits, bits), torch.float32, 1, 64) for _ in range(2)]
    for kernels, store in zip((True, False), stores, strict=True):
        with choice(kernels):
            store.write(torch.arange(5)[:, None], ends, ends, 1, 0)
    for name, x in stores[0].tensors.items():
        torch.testing.assert_close(x, stores[1].tensors[name], rtol=2**-9, atol=0)


def numbers(store: rotated.Rotated, kind: str) -> Tensor:
    """Codes, unpacked, or the numbers themselves."""
    packed, bits = store.tensors[f"{kind}s"], store.bits[kind]
    if bits == 16:
        return packed.float()
    return unpack(packed, bits, torch.empty(*packed.shape[:-1], store.shape.head_dim))


def check_stream(per_head: bool) -> None:
    """A cache that is full sees and keeps the same with kernels as without."""
    config = CacheConfig(policy="coreset", budget_tokens=60, key_bits=4, value_bits=2, per_head=per_head)
    streams = [RandomStream(config, tokens_per_frame=PER_FRAME) for _ in range(2)]
    for _ in range(9):
        outputs = []
        for kernels, stream in zip((True, False), streams, strict=True):
            with choice(kernels):
                outputs.append(torch.stack(stream.feed(stream.draw(1))))
        torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)
    assert all(stream.cache.evicted for stream in streams)
    for lane in range(2 if per_head else 1):
        assert torch.equal(*(stream.cache.token_ids(1, lane) for stream in streams))


def check_no_tokens() -> None:
    """An empty cache is read before the first frame."""
    store = quantizer((2, 2), torch.float32, 1, 64)
    with choice(True):
        store.read(0, *torch.empty(2, 0, HEADS, 64))


def check_trial() -> None:
    assert fusing.tried(CPU)


# --- policies and attention -----------------------------------------------------------------------------


@lru_cache
def loops() -> None:
    """The interpreter counts with arrays of one number, which NumPy since 2.4 takes for no whole number."""
    from triton.runtime import interpreter

    make = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        make(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


def check_heirs(dtype: torch.dtype, tokens: int, heads: int, d: int, lanes: int) -> None:
    """Those that leave hand their counts to the same."""
    from xsvggt_ros.cache.policies import fused

    loops()
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(tokens, heads, d, generator=generator).add(0.5).to(dtype)
    slots = torch.stack([torch.randperm(tokens, generator=generator)[: tokens // 3] for _ in range(lanes)], 1)
    count = torch.randint(1, 9, slots.shape, generator=generator).float()
    found, expected = torch.zeros(2, tokens, lanes)
    coreset.inherit(found, keys, slots, count, tokens, fused)
    coreset.inherit(expected, keys, slots, count, tokens)
    assert found.sum() == expected.sum() == count.sum()
    assert (found != expected).float().mean() <= (0 if dtype == torch.float32 else 0.1)  # of two that are as alike
    assert not found.gather(0, slots).any()


def check_masses(dtype: torch.dtype, queries: int, tokens: int, heads: int, d: int, biased: bool) -> None:
    """Keys get the same attention from a few queries."""
    from xsvggt_ros.cache.policies import fused

    loops()
    generator = torch.Generator().manual_seed(0)
    q, keys = (torch.randn(n, heads, d, generator=generator).to(dtype) for n in (queries, tokens))
    weights, bias = torch.rand(queries, generator=generator), torch.rand(heads, tokens, generator=generator)
    bias[0, 3] = -torch.inf
    bias = bias if biased else None
    probabilities = torch.cat([*attention(Seen(q, keys, keys, bias), torch.arange(queries))], 1)
    torch.testing.assert_close(fused.masses(q, weights, keys, bias), weights @ probabilities, rtol=1e-4, atol=1e-6)


def check_attention(dtype: torch.dtype, batch: int, queries: int, tokens: int, heads: int, d: int) -> None:
    """As PyTorch's, of tensors that do not lie in one piece, of which some keys are hidden: the first ones too."""
    from xsvggt_ros.model import weighted

    loops()
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, queries, 3, heads, d, generator=generator).to(dtype)[:, :, 0]
    k, v = torch.randn(2, batch, tokens + 1, heads, d, generator=generator).to(dtype)[:, :, :tokens]
    bias = torch.rand(heads, tokens, generator=generator).log()
    bias[0, : tokens // 2] = -torch.inf
    close = {torch.float32: 1e-5, torch.float16: 2**-9}[dtype]
    torch.testing.assert_close(weighted.attend(q, k, v, bias), sdpa(q, k, v, bias), rtol=close, atol=close)


# --- compiled -----------------------------------------------------------------------------------------

TYPES = {
    "*u8": ["packed_keys", "packed_values"],
    "*i32": ["frame", "token"],
    "*i64": ["slots"],
    "*fp16": ["key_scale", "value_scale"],
    "*fp32": ["signs", "key_centre"],
    "*bf16": ["keys", "values"],
}


def check_compiling(kernel: str, bits: tuple[int, int], capability: int) -> None:
    """For a GPU that need not be there."""
    sizes = {"HEADS": 16, "LANES": 1, "D": 64, "DRAWN": rotated.DRAWN, "BLOCK": 32}
    constants = sizes | {"KEY_BITS": bits[0], "VALUE_BITS": bits[1]}
    constants |= {"KEY_REACH": rotated.REACH[bits[0]], "VALUE_REACH": rotated.REACH[bits[1]]}
    compile_for(capability, "xsvggt_ros.cache.quantizers.fused", kernel, TYPES, constants)


def compile_for(
    capability: int,
    module: str,
    kernel: str,
    tensors: dict[str, list[str]],
    constants: dict[str, object],
    **options: int,
) -> None:
    """For a GPU that need not be there: arguments are `tensors` of a type, numbers, of which names tell, and others."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(import_module(module), kernel)
    types = {name: kind for kind, names in tensors.items() for name in names} | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in function.arg_names}
    values = {(function.arg_names.index(name),): x for name, x in constants.items() if name in signature}
    made = compile(ASTSource(function, signature, values), target=GPUTarget("cuda", capability, 32), options=options)
    assert made.asm["cubin"]
    assert made.metadata.shared <= SHARED.get(capability, SHARED[86])
