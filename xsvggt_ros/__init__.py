# SPDX-License-Identifier: Apache-2.0
"""Streaming geometry from one camera under a fixed memory budget."""

from importlib import import_module
from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# A source tree on sys.path also finds the generated `xsvggt_ros.msg`, which is installed elsewhere.
__path__ = extend_path(__path__, __name__)

if TYPE_CHECKING:
    from xsvggt_ros.config import CacheConfig as CacheConfig
    from xsvggt_ros.config import LoopConfig as LoopConfig
    from xsvggt_ros.config import NodeConfig as NodeConfig
    from xsvggt_ros.config import OutputConfig as OutputConfig
    from xsvggt_ros.config import ScaleConfig as ScaleConfig
    from xsvggt_ros.config import SegmentConfig as SegmentConfig
    from xsvggt_ros.config import StreamConfig as StreamConfig
    from xsvggt_ros.frame import Frame as Frame
    from xsvggt_ros.model import load_model as load_model
    from xsvggt_ros.segments import SegmentedStream as SegmentedStream
    from xsvggt_ros.stream import GeometryStream as GeometryStream

# Imported when first asked for (PEP 562): model and stream load torch, for which no `--help` should wait.
_HOME = {
    "CacheConfig": "config",
    "Frame": "frame",
    "GeometryStream": "stream",
    "LoopConfig": "config",
    "NodeConfig": "config",
    "OutputConfig": "config",
    "ScaleConfig": "config",
    "SegmentConfig": "config",
    "SegmentedStream": "segments",
    "StreamConfig": "config",
    "load_model": "model",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
