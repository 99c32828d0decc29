# SPDX-License-Identifier: Apache-2.0
"""The kernels of policies, interpreted on the CPU, against what PyTorch does; and compiled."""

from importlib.util import find_spec

import pytest
import torch
from support import interpreted

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="the kernels need triton, which is not installed")

FUSED = "xsvggt_ros.cache.policies.fused"
GIVEN = {
    "*bf16": ["keys", "mine", "q"],
    "*fp32": ["length", "hidden", "shift", "likeness", "bias", "levels", "weights", "out"],
    "*i64": ["place"],
    "fp32": ["scale"],
}


@pytest.fixture(scope="module")
def interpreter():
    with interpreted.process(TRITON_INTERPRET="1", OMP_NUM_THREADS="1") as call:
        yield call


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(300, 2, 64, 1), (131, 3, 16, 1), (200, 2, 32, 2)], ids=str)
def test_heirs_are_the_same(interpreter, sizes, dtype):
    interpreter(interpreted.check_heirs, dtype, *sizes)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("sizes", [(13, 300, 2, 64), (40, 131, 3, 32), (1, 5, 1, 16)], ids=str)
def test_the_attention_of_probes_is_the_same(interpreter, sizes, biased):
    interpreter(interpreted.check_masses, torch.float32, *sizes, biased)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["_nearest", "_levels", "_masses"])
def test_they_compile(tmp_path, kernel, capability):
    sizes = {"KEYS": 128, "OTHERS": 64, "CHANNELS": 64, "HEADS": 16, "D": 64, "SEEN": 128, "QUERIES": 16, "BLOCKS": 64}
    with interpreted.process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)) as call:
        call(interpreted.compile_for, capability, FUSED, kernel, GIVEN, sizes)
