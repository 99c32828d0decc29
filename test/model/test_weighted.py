# SPDX-License-Identifier: Apache-2.0
"""Attention with a weight for each key, interpreted on the CPU, against PyTorch's; and compiled."""

from importlib.util import find_spec

import pytest
from support import interpreted

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="the kernel needs triton, which is not installed")


@pytest.mark.parametrize("sizes", [(1, 70, 331, 2, 64), (2, 5, 128, 3, 32), (1, 130, 30, 1, 16)], ids=str)
def test_it_is_the_same(sizes):
    with interpreted.process(TRITON_INTERPRET="1", OMP_NUM_THREADS="1") as call:
        call(interpreted.check_attention, *sizes)


@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles(tmp_path, capability):
    tensors = {"*bf16": ["q", "k", "v", "out"], "*fp32": ["bias"], "fp32": ["scale"]}
    sizes = {"HEADS": 16, "D": 64, "QUERIES": 64, "KEYS": 64}
    with interpreted.process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path)) as call:
        call(interpreted.compile_for, capability, "xsvggt_ros.model.weighted", "_attend", tensors, sizes)
