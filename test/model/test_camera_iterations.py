# SPDX-License-Identifier: Apache-2.0
"""A camera head that stops after fewer of its iterations."""

import numpy as np
import pytest
import torch

from xsvggt_ros import GeometryStream, StreamConfig
from xsvggt_ros.model import load_model
from xsvggt_ros.model.attention import WholeSequence

SMALL = dict(dtype="float32", image_width=56)


@pytest.fixture(scope="module")
def model():
    return load_model(StreamConfig(**SMALL))


@torch.inference_mode()
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_fewer_are_the_first_of_all(model, iterations):
    tokens = torch.randn(1, 5, 2 * model.config.width, generator=torch.manual_seed(0))
    head, context = model.camera_head, WholeSequence(model.camera_kernel, 1)
    every = head(tokens, context)
    assert every.shape[0] == 4 and (every[1:] - every[:-1]).abs().amax((1, 2, 3)).min() > 1e-4
    torch.testing.assert_close(head(tokens, context, iterations), every[:iterations])


def test_a_stream_has_room_for_as_many_as_it_does(model):
    images = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    bytes_of, poses = {}, {}
    for iterations in (1, 4):
        stream = GeometryStream(StreamConfig(camera_iterations=iterations, **SMALL), model)
        frames = [stream.step(image) for image in images]
        assert stream._cache.camera.buffer.shape[3] == iterations
        bytes_of[iterations], poses[iterations] = stream._cache.camera.buffer.nbytes, frames
    assert 4 * bytes_of[1] == bytes_of[4]
    np.testing.assert_array_equal(poses[1][3].depth, poses[4][3].depth)
    assert np.abs(poses[1][3].intrinsics - poses[4][3].intrinsics).max() > 1e-3


@pytest.mark.parametrize("iterations", [0, 5])
def test_a_number_that_the_head_was_not_made_for_is_refused(iterations):
    with pytest.raises(ValueError, match="camera_iterations"):
        StreamConfig(camera_iterations=iterations)
