# SPDX-License-Identifier: Apache-2.0
"""StreamVGGT, written from formulas: images -> poses, depth, points, tracks."""

from xsvggt_ros.model.loading import load_model
from xsvggt_ros.model.streamvggt import StreamVGGT

__all__ = ["StreamVGGT", "load_model"]
