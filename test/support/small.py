# SPDX-License-Identifier: Apache-2.0
"""A small network without training, for what holds whatever the weights: its step takes half as long as the demo's."""

from dataclasses import replace

import pytest

from xsvggt_ros.config import StreamConfig
from xsvggt_ros.model import StreamVGGT, load_model
from xsvggt_ros.model.config import MODELS, DPTConfig, TransformerConfig
from xsvggt_ros.model.loading import RANDOM

SIZES = replace(
    MODELS["demo"], width=128, heads=2, depth=4, taps=(0, 1, 2, 3), dpt=DPTConfig(16, (16, 16, 16, 16)),
    encoder=TransformerConfig(depth=1, heads=2), camera=TransformerConfig(depth=1, heads=2),
)  # fmt: skip


def small_model(config: StreamConfig) -> StreamVGGT:
    """As load_model, with random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, config.model, SIZES)
        return load_model(replace(config, weights=RANDOM))
