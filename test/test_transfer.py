# SPDX-License-Identifier: Apache-2.0
"""What goes to a device and comes back, as far as that is seen without one."""

import numpy as np
import pytest
import torch
from PIL import Image

from xsvggt_ros.preprocess import Resize
from xsvggt_ros.transfer import held, pack, seen, to_host, unpack

CPU = torch.device("cpu")


def image(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (84, 112), (400, 100), (224, 112)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_seen_is_what_pillow_makes_of_the_image(shape, turned, device):
    """Of any view, and though it is written over while it waits. What a GPU does with it is done by the CPU here."""
    given = image(*shape)[:: -1 if turned else 1]
    resize = Resize.of(*shape, 112, 14)
    expected = resize.image(Image.fromarray(given))
    waiting = held(given, resize, torch.device(device))
    given[:] = 0
    shown = seen([(waiting, resize), (waiting, resize)], CPU)
    assert shown.shape == (2, *expected.shape)
    for each in shown:
        np.testing.assert_array_equal(each.numpy(), expected)


def test_an_image_that_may_not_be_written_to_is_held_too():
    given = image(84, 112)
    given.flags.writeable = False
    resize = Resize.of(84, 112, 112, 14)
    np.testing.assert_array_equal(held(given, resize, CPU), given)


def test_what_is_packed_comes_out_as_it_was_in_memory_of_its_own():
    """Also odd numbers of bytes before wider values, and tensors that are views."""
    tensors = [
        torch.from_numpy(image(5, 3))[None],
        torch.randn(2, 9, dtype=torch.float64),
        torch.randn(2, 6, 4).transpose(1, 2),
        torch.randn(1, 3, 2).half()[..., 1],
        torch.zeros(0, 2),
    ]
    packed = pack(tensors).numpy()
    arrays = unpack(packed, tensors)
    packed[:] = 7
    for array, tensor in zip(arrays, tensors, strict=True):
        assert array.flags.owndata or array.base.flags.owndata
        assert array.flags.aligned and array.flags.writeable
        np.testing.assert_array_equal(array, tensor.numpy())
        assert array.dtype == tensor.numpy().dtype


def test_on_a_cpu_nothing_is_copied():
    tensors = [torch.randn(2, 3), torch.from_numpy(image(4, 4))]
    for array, tensor in zip(to_host(tensors), tensors, strict=True):
        assert array.__array_interface__["data"][0] == tensor.data_ptr()
