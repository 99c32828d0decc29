# SPDX-License-Identifier: Apache-2.0
"""The similarity of two segments, from frames that both have."""

from dataclasses import replace

import numpy as np
import pytest
from support.segments import far_from, pose, seen, segment_at

from xsvggt_ros.geometry import rigid
from xsvggt_ros.segments.join import join
from xsvggt_ros.similarity import Similarity

OLD = segment_at(pose(turn=(0, 20, 0), at=(0.5, 0, 0)), 2.0)
NEW = segment_at(pose(turn=(10, -30, 5), at=(0, 0.2, 0.4)), 0.7)


def shared(count: int = 5):
    poses = [pose(turn=(0, -10 - 2 * i, i), at=(0.1 * i, 0, 0.05 * i)) for i in range(count)]
    return [(seen(T, OLD), seen(T, NEW)) for T in poses]


def turned(frame, degrees):
    R = pose(turn=(0, degrees, 0))[:3, :3]
    return replace(frame, T_first_cam=rigid(R @ frame.T_first_cam[:3, :3], frame.T_first_cam[:3, 3]))


def shifted(frame, shift):
    return replace(frame, T_first_cam=rigid(frame.T_first_cam[:3, :3], frame.T_first_cam[:3, 3] + shift))


def nearer(frame, factor):
    return replace(frame, depth=frame.depth * np.float32(factor))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_frames_that_agree_give_the_similarity_back(count):
    joined = join(shared(count))
    assert far_from(joined.relation, OLD.inverse() @ NEW) < 1e-5
    assert max(joined.rotation_spread, joined.scale_spread, joined.position_spread) < 1e-5
    assert joined.trusted


def test_a_frame_of_another_scale_does_not_move_the_others():
    frames = shared()
    frames[2] = frames[2][0], nearer(frames[2][1], 0.5)
    joined = join(frames)
    assert joined.relation.scale == pytest.approx(OLD.inverse().scale * NEW.scale, rel=1e-5)
    assert joined.scale_spread == pytest.approx(np.log(2), rel=1e-4) and not joined.trusted


def test_pixels_that_disagree_do_not_move_a_frame():
    frames = shared(1)
    frames[0][1].depth[:15] *= 3
    assert join(frames).relation.scale == pytest.approx(OLD.inverse().scale * NEW.scale, rel=1e-5)


@pytest.mark.parametrize(
    ("disturb", "spread", "amounts", "trusted"),
    [
        (turned, "rotation_spread", (2.0, 8.0, 40.0), (True, True, False)),  # half of it in each of two frames
        (nearer, "scale_spread", (1.1, 1.3, 2.0), (True, True, False)),
        (shifted, "position_spread", (0.1, 0.4, 2.0), (True, True, False)),
    ],
)
def test_spreads_grow_with_what_frames_disagree_in_until_a_join_is_not_trusted(disturb, spread, amounts, trusted):
    (first, second) = shared(2)
    joins = [join([first, (second[0], disturb(second[1], amount))]) for amount in amounts]
    spreads = [getattr(each, spread) for each in joins]
    assert 0 < spreads[0] < spreads[1] < spreads[2]
    assert tuple(each.trusted for each in joins) == trusted


def test_turns_are_spread_about_their_mean():
    (first, second) = shared(2)
    joined = join([first, (second[0], turned(second[1], 8.0))])
    assert np.rad2deg(joined.rotation_spread) == pytest.approx(4.0, abs=0.01)


def test_frames_count_by_their_confidence():
    (first, second) = shared(2)
    for astray in (turned(second[1], 8.0), shifted(second[1], 0.4)):
        doubtful = replace(astray, confidence=np.ones_like(second[1].confidence))
        joined = join([first, (second[0], doubtful)])
        assert far_from(joined.relation, OLD.inverse() @ NEW) < 1e-3


def test_a_frame_shared_with_itself_is_the_identity():
    frame = seen(pose(turn=(0, 40, 0)))
    assert far_from(join([(frame, frame)]).relation, Similarity()) < 1e-12
