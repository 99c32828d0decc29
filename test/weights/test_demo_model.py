# SPDX-License-Identifier: Apache-2.0
"""The weights that come with the package, on rooms they were not trained on."""

import numpy as np
import pytest
import torch

from xsvggt_ros import CacheConfig, GeometryStream, StreamConfig
from xsvggt_ros.model import load_model
from xsvggt_ros.model.loading import weights_path
from xsvggt_ros.training import network
from xsvggt_ros.training.network import run
from xsvggt_ros.training.rendering import FIRST_SEED, held_out_batch
from xsvggt_ros.training.tracking import random_queries, true_tracks
from xsvggt_ros.training.validation import errors

CPU = torch.device("cpu")
SEEDS, FRAMES, INTERVAL = range(500, 506), 12, 0.25  # seconds between frames


@pytest.fixture(scope="module")
def batch():
    assert max(SEEDS) < FIRST_SEED
    return held_out_batch(SEEDS, FRAMES, INTERVAL, 112, 84, CPU)


@pytest.fixture(scope="module")
def model():
    return load_model(StreamConfig(dtype="float32"))


def test_the_file_is_small_and_described():
    path = weights_path(StreamConfig())
    assert path.stat().st_size <= 30e6
    assert (path.parent / "README.md").read_text().startswith("# Model card")


@torch.inference_mode()
def test_poses_that_iterations_start_from_are_found_in_few_sweeps(model, monkeypatch):
    """Also of long sequences: as right as it is said, against what does not change any more."""
    images = held_out_batch(range(500, 501), 48, INTERVAL, 112, 84, CPU).images
    few = run(model, images, torch.arange(1)).predictions.pose_iterations
    monkeypatch.setattr(network, "SWEEPS", 40)
    exact = run(model, images, torch.arange(1)).predictions.pose_iterations
    assert (few - exact).abs().mean() < 1e-3 and (few - exact).abs().max() < 2e-2


@torch.inference_mode()
def test_it_sees(model, batch):
    """Loose bounds: that it is the trained model, and better than saying always the same. Figures: docs/accuracy.md."""
    predictions = run(model, batch.images, torch.arange(FRAMES)).predictions
    said = errors(predictions.depth, predictions.pose, batch)
    constant = batch.depth[:, :1].log().mean().exp().expand_as(batch.depth)
    still = errors(constant, batch.pose[:, :1].expand_as(batch.pose), batch)
    assert said["abs_rel"] < 0.7 * still["abs_rel"]
    assert said["rotation"] < 0.5 * still["rotation"]
    assert said["centre"] < 0.9 * still["centre"]
    assert said["adjacent_rotation"] < 0.7 * said["adjacent_motion"]


@torch.inference_mode()
def test_a_stream_says_what_the_whole_sequence_says(model, batch):
    """Streaming equals the sequence for depth, to rounding; the poses are trained on what a stream computes."""
    exact = CacheConfig(policy="full", key_bits=16, value_bits=16, camera_window=0)
    stream = GeometryStream(StreamConfig(dtype="float32", cache=exact), model)
    images = (batch.images[0] * 255).round().to(torch.uint8)
    whole = model(images[None] / 255)
    frames = [stream.step(image.permute(1, 2, 0).contiguous().numpy()) for image in images]
    np.testing.assert_allclose([f.depth for f in frames], whole.depth[0].numpy(), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_it_follows_points_and_a_stream_begins_as_the_whole_sequence_does(batch):
    """Loose bounds: that the head is the trained one, and far better than saying that nothing moves."""
    config = StreamConfig(dtype="float32", track_groups=1)
    model = load_model(config)
    stream = GeometryStream(config, model)
    queries = random_queries(batch, torch.Generator().manual_seed(0))
    off, still = [], []
    truth = true_tracks(batch, queries)
    bytes_of = (batch.images * 255).round().to(torch.uint8)
    for images, pixels, visible in zip(bytes_of, truth.pixels.numpy(), truth.visible.numpy(), strict=True):
        stream.reset()
        first, *others = (image.permute(1, 2, 0).contiguous().numpy() for image in images)
        stream.step(first)
        stream.track(queries.numpy())
        found = [stream.step(image).tracks for image in others]
        whole = model(images[None] / 255, query_points=queries[None]).tracks[0].numpy()
        for told, places in list(zip(found, whole[1:], strict=True))[:2]:
            assert np.median(np.linalg.norm(told.pixels - places, axis=-1)[told.visible]) < 3  # pixels
        seen, true = visible[1:] > 0, pixels[1:]
        off.append(np.linalg.norm(np.stack([told.pixels for told in found]) - true, axis=-1)[seen].mean())
        still.append(np.linalg.norm(queries.numpy() - true, axis=-1)[seen].mean())
    assert np.mean(off) < 0.5 * np.mean(still)
