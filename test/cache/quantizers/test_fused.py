# SPDX-License-Identifier: Apache-2.0
"""The kernels of `rotated`, interpreted on the CPU, against what PyTorch does; and compiled."""

import sys
from importlib.util import find_spec

import pytest
import torch
from support import interpreted
from support.caches import CPU

import xsvggt_ros
from xsvggt_ros import fusing
from xsvggt_ros.cache.quantizers import rotated

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="the kernels need triton, which is not installed")

BITS = [(1, 1), (2, 2), (3, 3), (4, 4), (8, 8), (16, 16), (16, 2), (4, 16), (2, 3)]  # of keys, of values
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LANES = [1, interpreted.HEADS]


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS, ids=str)
def test_reading_is_the_same(interpreter, bits, dtype, lanes):
    interpreter(interpreted.check_reading, bits, dtype, lanes)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS, ids=str)
def test_writing_is_the_same(interpreter, bits, dtype, lanes):
    interpreter(interpreted.check_writing, bits, dtype, lanes)


@pytest.mark.parametrize("d", [8, 16, 32, 128, 256])
def test_vectors_may_be_shorter_and_longer(interpreter, d):
    interpreter(interpreted.check_reading, (2, 3), torch.float32, 1, d)
    interpreter(interpreted.check_writing, (2, 3), torch.float32, 1, d)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_numbers_at_the_ends_are_the_same(interpreter, bits):
    interpreter(interpreted.check_ends, bits)


@pytest.mark.parametrize("per_head", [False, True])
def test_a_full_cache_goes_on_the_same(interpreter, per_head):
    interpreter(interpreted.check_stream, per_head)


def test_there_may_be_no_tokens(interpreter):
    interpreter(interpreted.check_no_tokens)


@pytest.mark.parametrize(("bits", "capability"), [((1, 8), 80), ((2, 3), 90)])
@pytest.mark.parametrize("kernel", ["_read", "_write"])
def test_they_compile(compiler, kernel, bits, capability):
    """That they use nothing which only the interpreter has."""
    compiler(interpreted.check_compiling, kernel, bits, capability)


# --- where they are used ----------------------------------------------------------------------------------


def test_they_are_for_cuda_and_for_what_can_be_halved():
    assert rotated.kernels_for(64, CPU) is None
    assert rotated.kernels_for(48, torch.device("cuda")) is None


def test_they_are_tried_first(interpreter, caplog):
    interpreter(interpreted.check_trial)
    assert not fusing.tried(CPU)  # not interpreted here
    assert "steps are slower without Triton" in caplog.text


def test_without_triton_there_are_none(monkeypatch):
    monkeypatch.delitem(sys.modules, "xsvggt_ros.triton_trial", raising=False)
    monkeypatch.delattr(xsvggt_ros, "triton_trial", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not fusing.tried(torch.device("cuda"))
