# SPDX-License-Identifier: Apache-2.0
"""The full-size model has exactly the tensors of the published checkpoint."""

import json

import pytest
import torch
from support.paths import SHARED

from xsvggt_ros.model.config import MODELS
from xsvggt_ros.model.streamvggt import OPTIONAL_HEADS, StreamVGGT

LISTING = SHARED / "reference/streamvggt_state_dict.json"


@pytest.fixture(scope="module")
def published():
    if not LISTING.exists():
        pytest.skip(f"needs {LISTING}")
    listing = json.loads(LISTING.read_text())
    return {name: tuple(tensor["shape"]) for name, tensor in listing["state_dict"].items()}


def shapes(heads=OPTIONAL_HEADS):
    with torch.device("meta"):
        return {
            name: tuple(tensor.shape) for name, tensor in StreamVGGT(MODELS["streamvggt"], heads).state_dict().items()
        }


def test_all_names_and_shapes_are_the_published_ones(published):
    assert len(published) == 1797
    assert shapes() == published


def test_a_head_left_out_takes_only_its_own_tensors_away(published):
    without = {name: shape for name, shape in published.items() if not name.startswith(("point_head.", "track_head."))}
    assert shapes(heads=()) == without
