# SPDX-License-Identifier: Apache-2.0
"""Attention with a weight for each key, interpreted on the CPU, against PyTorch's; and compiled."""

from importlib.util import find_spec

import pytest
import torch
from support import interpreted

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="the kernel needs triton, which is not installed")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", [(1, 70, 331, 2, 64), (2, 5, 128, 3, 32), (1, 130, 30, 1, 16)], ids=str)
def test_it_is_the_same(interpreter, sizes, dtype):
    interpreter(interpreted.check_attention, dtype, *sizes)


@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("capability", [86, 90])
def test_it_compiles(compiler, capability, d):
    tensors = {"*bf16": ["q", "k", "v", "out"], "*fp32": ["bias"], "fp32": ["scale"]}
    sizes = {"HEADS": 16, "D": d, "QUERIES": 64, "KEYS": 64}
    compiler(interpreted.compile_for, capability, "xsvggt_ros.model.weighted", "_attend", tensors, sizes)
