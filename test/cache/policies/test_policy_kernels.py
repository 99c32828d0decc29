# SPDX-License-Identifier: Apache-2.0
"""The kernels of policies, interpreted on the CPU, against what PyTorch does; and compiled."""

from importlib.util import find_spec

import pytest
import torch
from support import interpreted

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="the kernels need triton, which is not installed")

FUSED = "xsvggt_ros.cache.policies.fused"
GIVEN = {
    "*fp32": ["length", "hidden", "shift", "likeness", "bias", "levels", "weights", "out"],
    "*i64": ["place"],
    "fp32": ["scale"],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(300, 2, 64, 1), (131, 3, 16, 1), (200, 2, 32, 2)], ids=str)
def test_heirs_are_the_same(interpreter, sizes, dtype):
    interpreter(interpreted.check_heirs, dtype, *sizes)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("sizes", [(13, 300, 2, 64), (40, 131, 3, 32), (1, 5, 1, 16), (5, 8300, 1, 16)], ids=str)
def test_the_attention_of_probes_is_the_same(interpreter, sizes, biased):
    interpreter(interpreted.check_masses, torch.float32, *sizes, biased)


@pytest.mark.parametrize(("capability", "dtype"), [(86, "*fp32"), (90, "*bf16")])
@pytest.mark.parametrize(("kernel", "stages"), [("_nearest", 4), ("_levels", 3), ("_masses", 3)])
def test_they_compile(compiler, kernel, stages, capability, dtype):
    """For GPUs with little shared memory too."""
    given = {kind: list(names) for kind, names in GIVEN.items()}
    given[dtype] = [*given.get(dtype, []), "keys", "mine", "q"]
    sizes = {"KEYS": 128, "OTHERS": 64, "CHANNELS": 64, "D": 64, "SEEN": 128, "QUERIES": 16, "BLOCKS": 64}
    stages = 2 if dtype == "*fp32" else stages
    compiler(interpreted.compile_for, capability, FUSED, kernel, given, sizes, num_stages=stages)
