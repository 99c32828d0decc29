# SPDX-License-Identifier: Apache-2.0
"""What a step does is counted by the shapes of its operators."""

import pytest
import torch
from torch.nn import functional as F

from xsvggt_ros.evaluation.work import peak_bytes, work_of

CPU = torch.device("cpu")


def counted(step):
    with torch.inference_mode():
        return work_of(step, CPU)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_a_product_that_is_composed_of_others(mode):
    x, w = torch.ones(1, 3, 5), torch.ones(7, 5)
    with mode():
        assert work_of(lambda: F.linear(x, w), CPU).flop == 2 * 3 * 5 * 7


def test_products_of_integers_and_attention():
    a, b = torch.ones(3, 8, dtype=torch.int8), torch.ones(8, 16, dtype=torch.int8)
    assert counted(lambda: torch._int_mm(a, b)).flop == 2 * 3 * 8 * 16
    q, k = torch.ones(1, 2, 5, 8), torch.ones(1, 2, 9, 8)
    assert counted(lambda: F.scaled_dot_product_attention(q, k, k)).flop == 2 * 2 * 2 * 5 * 9 * 8


def test_operators_are_counted_but_for_views_and_bytes_are_what_they_read_and_write():
    x = torch.ones(10, 10)
    found = counted(lambda: (x.view(100)[:50] + 1).mul_(2))
    assert found.launches == 2
    assert found.bytes_moved == 4 * (50 + 50 + 50 + 50)
    assert counted(lambda: torch.ones(1).expand(50) + x[0, 0]).bytes_moved < 4 * 60  # one number, fifty times


def test_the_most_memory_of_the_process_never_falls():
    before = peak_bytes(CPU)
    torch.ones(2**25)  # 128 MiB
    assert peak_bytes(CPU) >= before > 2**26
