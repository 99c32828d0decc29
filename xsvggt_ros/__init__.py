# SPDX-License-Identifier: Apache-2.0
"""Streaming geometry from one camera under a fixed memory budget."""

from pkgutil import extend_path

# A source tree on sys.path also finds the generated `xsvggt_ros.msg`, which is installed elsewhere.
__path__ = extend_path(__path__, __name__)

from xsvggt_ros.config import CacheConfig, NodeConfig, OutputConfig, StreamConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.model import load_model
from xsvggt_ros.stream import GeometryStream

__all__ = [
    "CacheConfig",
    "Frame",
    "GeometryStream",
    "NodeConfig",
    "OutputConfig",
    "StreamConfig",
    "load_model",
]
