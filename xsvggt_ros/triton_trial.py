# SPDX-License-Identifier: Apache-2.0
"""A kernel that tells whether Triton runs. Only imported where that is asked: it is optional."""

import triton
import triton.language as tl
from torch import Tensor


def run(out: Tensor) -> None:
    """On the device of out [1]. Raises whatever Triton does where it cannot."""
    _trial[(1,)](out)


@triton.jit
def _trial(out):
    """What an older Triton is most likely to lack."""
    even, odd = tl.split(tl.reshape(tl.zeros((16, 16), tl.float32), (16, 8, 2)))
    x = tl.reshape(tl.permute(tl.join(even + odd, even - odd), (0, 2, 1)), (16, 16))
    tl.store(out, tl.sum(tl.dot(x, x)))
