# SPDX-License-Identifier: Apache-2.0
"""Streams without end: segments that join, and the map of their first frames."""

from xsvggt_ros.segments.stream import SegmentedStream as SegmentedStream
