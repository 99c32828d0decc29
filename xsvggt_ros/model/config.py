# SPDX-License-Identifier: Apache-2.0
"""Sizes of the network. `streamvggt` is the published model, `demo` one that a laptop runs at camera rate.

Those between, `small` and `base`, are for students of a large one: no weights come with them.
"""

from __future__ import annotations

from dataclasses import dataclass

from xsvggt_ros.config import PATCH_SIZE


@dataclass(frozen=True)
class TransformerConfig:
    """A stack of transformer blocks."""

    depth: int
    heads: int
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class DPTConfig:
    """A dense prediction head: channels after fusion, and of each of the four resolutions before it."""

    features: int
    out_channels: tuple[int, int, int, int]


@dataclass(frozen=True)
class TrackConfig:
    """The point tracker: its feature maps, and the transformer that refines tracks over them."""

    features: int
    out_channels: tuple[int, int, int, int]
    iterations: int
    corr_levels: int
    corr_radius: int
    width: int
    layers: int = 6
    heads: int = 8
    virtual_tracks: int = 64


@dataclass(frozen=True)
class ModelConfig:
    """All sizes of a StreamVGGT. `taps` are the block pairs whose outputs feed the dense heads."""

    image_size: int  # pixels; the square size that the learned position table is made for
    width: int
    depth: int
    heads: int
    encoder: TransformerConfig
    camera: TransformerConfig
    dpt: DPTConfig
    taps: tuple[int, int, int, int]
    track: TrackConfig | None  # None: it has no tracker
    mlp_ratio: float = 4.0
    patch_size: int = PATCH_SIZE
    registers: int = 4
    rope_base: float = 100.0

    @property
    def specials(self) -> int:
        """Tokens of a frame that are not patches: the camera token and the registers."""
        return 1 + self.registers

    def tokens_per_frame(self, height: int, width: int) -> int:
        """Of a network input of that size, pixels."""
        return self.specials + (height // self.patch_size) * (width // self.patch_size)


MODELS = {
    "streamvggt": ModelConfig(
        image_size=518,
        width=1024,
        depth=24,
        heads=16,
        encoder=TransformerConfig(depth=24, heads=16),
        camera=TransformerConfig(depth=4, heads=16),
        dpt=DPTConfig(features=256, out_channels=(256, 512, 1024, 1024)),
        taps=(4, 11, 17, 23),
        track=TrackConfig(
            features=128,
            out_channels=(256, 512, 1024, 1024),
            iterations=4,
            corr_levels=7,
            corr_radius=4,
            width=384,
        ),
    ),
    "base": ModelConfig(
        image_size=392,
        width=768,
        depth=12,
        heads=12,
        encoder=TransformerConfig(depth=12, heads=12),
        camera=TransformerConfig(depth=2, heads=12),
        dpt=DPTConfig(features=128, out_channels=(96, 192, 384, 768)),
        taps=(2, 5, 8, 11),
        track=None,
    ),
    "small": ModelConfig(
        image_size=224,
        width=384,
        depth=8,
        heads=6,
        encoder=TransformerConfig(depth=8, heads=6),
        camera=TransformerConfig(depth=2, heads=12),
        dpt=DPTConfig(features=64, out_channels=(48, 96, 192, 384)),
        taps=(1, 3, 5, 7),
        track=None,
    ),
    "demo": ModelConfig(
        image_size=112,
        width=192,
        depth=6,
        heads=3,
        encoder=TransformerConfig(depth=4, heads=3),
        camera=TransformerConfig(depth=2, heads=6),
        dpt=DPTConfig(features=64, out_channels=(64, 64, 128, 128)),
        taps=(1, 2, 3, 5),
        track=TrackConfig(
            features=32,
            out_channels=(32, 32, 48, 64),
            iterations=2,
            corr_levels=3,
            corr_radius=3,
            width=64,
            layers=1,
            heads=4,
            virtual_tracks=16,
        ),
    ),
}
