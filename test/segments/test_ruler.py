# SPDX-License-Identifier: Apache-2.0
"""A stream beside the segments, of some of their images."""

import math
from dataclasses import replace

import numpy as np
import pytest

from xsvggt_ros import GeometryStream, StreamConfig
from xsvggt_ros.rooms.sequence import stream as room_stream
from xsvggt_ros.segments.ruler import Ruler


@pytest.fixture(scope="module")
def frames():
    """Of one segment."""
    stream = GeometryStream(StreamConfig(dtype="float32", image_width=56))
    return stream, [stream.step(shot.rgb, shot.intrinsics) for shot in room_stream(8, 3, 56, 42, "robot", 4.0)]


def ruler_of(frames) -> Ruler:
    stream, seen = frames
    return Ruler(GeometryStream(stream.config, stream.model), 7, seen[0])


def answers(ruler) -> list[float]:
    """With images until it has nothing to do."""
    found = []
    while ruler.busy:
        found.append(ruler.advance(0.3, math.inf))
    assert ruler.advance(0.3, math.inf) is None
    return found


def test_it_measures_in_the_unit_of_the_segment_that_it_began_with(frames):
    ruler = ruler_of(frames)
    assert ruler.key == 7
    first = answers(ruler)
    assert len(first) > 2 and set(first[:-1]) == {None} and first[-1] == pytest.approx(1, abs=1e-6)
    other = frames[1][1]
    ruler.look(replace(other, depth=other.depth / np.float32(3)))
    assert answers(ruler)[-1] == pytest.approx(3, rel=0.02)  # as the segment has seen the same images


def test_an_answer_is_about_the_segment_that_serves_by_then(frames):
    ruler = ruler_of(frames)
    ruler.advance(0.3, math.inf)
    assert ruler.busy
    with pytest.raises(AssertionError):  # else it would lose half of a step
        ruler.look(frames[1][1])
    ruler.goes_on(1.25)
    assert answers(ruler)[-1] == pytest.approx(1.25, rel=1e-6)
    assert ruler.looks == 1
    ruler.look(frames[1][1])
    assert answers(ruler)[-1] == pytest.approx(1, rel=0.02)
    assert ruler.looks == 2


def test_it_takes_no_longer_than_there_is_time(frames):
    ruler = ruler_of(frames)
    assert ruler.advance(1.0, 0.0) is None and ruler.busy
    assert ruler.advance(1.0, math.inf) == pytest.approx(1, abs=1e-6)
