# SPDX-License-Identifier: Apache-2.0
"""Views of a room whose depths are known exactly."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from support.segments import pose, seen

from xsvggt_ros.descriptor import SIZE
from xsvggt_ros.segments.compare import agreement, match, overlap

NOTHING = np.zeros(SIZE)  # that descriptors have in common
HERE = pose()
NEAR_BY = pose(turn=(0, 8, 0), at=(0.3, 0, 0.2))


def test_a_view_and_itself_agree_in_all():
    frame = seen(HERE)
    assert overlap(frame, frame) == agreement(frame, frame) == 1
    assert match(frame, frame, NOTHING) == pytest.approx(1, abs=1e-3)


def test_views_of_opposite_directions_have_nothing_in_common():
    """A point straight behind would project into the middle of the image."""
    a, b = seen(HERE), seen(pose(turn=(0, 180, 0)))
    assert overlap(a, b) == agreement(a, b) == 0
    assert match(a, b, NOTHING) == -1


def test_views_overlap_less_the_further_the_camera_turns():
    shares = [overlap(seen(HERE), seen(pose(turn=(0, degrees, 0)))) for degrees in range(0, 90, 10)]
    assert all(a > b for a, b in pairwise(shares[:7])) and shares[0] == 1
    assert shares[8] == 0  # of a field of view of 70 degrees


def test_it_does_not_matter_which_view_was_first():
    a, b = seen(HERE), seen(NEAR_BY)
    for share in (overlap, agreement, lambda x, y: match(x, y, NOTHING)):
        assert share(a, b) == share(b, a)


def test_points_seen_from_elsewhere_agree_where_they_are_in_both_views():
    a, b = seen(HERE), seen(NEAR_BY)
    assert 0.6 < overlap(a, b) < 1
    assert agreement(a, b) == pytest.approx(overlap(a, b), abs=0.02)


@pytest.mark.parametrize(("factor", "agrees"), [(0.5, False), (0.8, False), (0.95, True), (1.05, True), (2.0, False)])
def test_depths_agree_within_a_tenth(factor, agrees):
    a, b = seen(HERE), seen(HERE)
    assert agreement(a, replace(b, depth=b.depth * np.float32(factor))) == float(agrees)


def test_the_same_place_matches_and_another_that_is_as_large_does_not():
    a, b = seen(HERE), seen(NEAR_BY)
    other = seen(NEAR_BY, place=1)
    assert agreement(a, other) == agreement(a, b)
    assert match(a, b, NOTHING) > 0.85
    assert abs(match(a, other, NOTHING)) < 0.3


def test_what_all_images_have_in_common_does_not_count():
    common = np.zeros(SIZE)
    common[0] = 20
    a, other = (replace(frame, descriptor=(frame.descriptor + common).astype(np.float16))
                for frame in (seen(HERE), seen(HERE, place=1)))  # fmt: skip
    assert match(a, other, NOTHING) > 0.9
    assert abs(match(a, other, common)) < 0.3
