# SPDX-License-Identifier: Apache-2.0
"""Frames of a synthetic room with true depth, whose poses are not as true."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array, inverse, rigid, transform
from xsvggt_ros.rooms.sequence import stream as room_stream
from xsvggt_ros.segments.fit import COLUMNS, LEAST, ROWS, Placed, Sight, factors, fitted, shares
from xsvggt_ros.segments.flow import SIDE, View, found
from xsvggt_ros.segments.refine import Refiner
from xsvggt_ros.status import StepStatus


def frames_of(width, height, count=24, rate=4.0) -> list[Frame]:
    """As an exact network would have them."""
    shots = list(room_stream(200, count, width, height, "robot", rate))
    first = inverse(shots[0].T_room_cam)
    return [
        Frame(
            index=i,
            T_first_cam=first @ shot.T_room_cam,
            intrinsics=shot.intrinsics,
            depth=shot.depth,
            confidence=np.full_like(shot.depth, 2.0),
            image=shot.rgb,
            status=StepStatus(frame=i),
        )
        for i, shot in enumerate(shots)
    ]


@pytest.fixture(scope="module")
def room():
    return frames_of(112, 84)


def wrong(frame: Frame, degrees: float, share: float = 0.03, seed: int = 0) -> Frame:
    """Its pose is turned by so many degrees, and off by that share of the median depth."""
    axis, shift = (v / np.linalg.norm(v) for v in np.random.default_rng([seed, frame.index]).normal(size=(2, 3)))
    error = rigid(
        Rotation.from_rotvec(degrees * axis, degrees=True).as_matrix(), share * np.median(frame.depth) * shift
    )
    return replace(frame, T_first_cam=frame.T_first_cam @ error)


def off(T: Array, T_true: Array) -> tuple[float, float]:
    """Degrees and length."""
    error = inverse(T_true) @ T
    return float(np.rad2deg(Rotation.from_matrix(error[:3, :3]).magnitude())), float(np.linalg.norm(error[:3, 3]))


def errors(placed: list[Frame], true: list[Frame]) -> Array:
    return np.array([off(a.T_first_cam, b.T_first_cam) for a, b in zip(placed, true, strict=True)])


def refined(frames: list[Frame], first: Frame) -> list[Frame]:
    refiner = Refiner(first)
    return [refiner(frame) for frame in frames]


def blank(frame: Frame) -> Frame:
    return replace(frame, image=np.full_like(frame.image, 128))


def noisy(frame: Frame) -> Frame:
    noise = np.random.default_rng([7, frame.index]).integers(0, 256, frame.image.shape, dtype=np.uint8)
    return replace(frame, image=noise)


def as_the_next_segment(frames: list[Frame], first: int) -> list[Frame]:
    """The same, in the axes of the frame of that index, and in a unit twice as large."""
    T = [inverse(frames[first].T_first_cam) @ frame.T_first_cam for frame in frames]
    return [
        replace(frame, T_first_cam=rigid(T_new[:3, :3], T_new[:3, 3] / 2), depth=frame.depth / 2)
        for frame, T_new in zip(frames, T, strict=True)
    ]


# --- two images ---------------------------------------------------------------------------------------


def test_points_are_found_where_the_other_image_shows_them(room):
    """Beginning at a pose that is two degrees off, which are three pixels."""
    a, b = room[0], room[2]
    pixels, there = found(View.of(a), View.of(b), inverse(wrong(b, 2).T_first_cam))
    assert len(pixels) > 60
    points = View.of(a).points(pixels)
    expected = View.of(b).pixels(transform(inverse(b.T_first_cam), points))
    assert np.median(np.linalg.norm(there - expected, axis=-1)) < 0.3


def test_a_pose_is_the_one_that_brings_points_to_where_they_are(room):
    a, b = View.of(room[0]), View.of(room[2])
    said = wrong(room[2], 2).T_first_cam
    fit = fitted([Sight.of(Placed(a, np.eye(4), np.eye(4)), b, said)], said, said)
    T, sure = fit.T, fit.sure
    turn, shift = off(T, room[2].T_first_cam)
    assert sure > 0.5 and turn < 0.3 and shift < 0.01 * np.median(a.depth)


def test_points_that_lie_differently_are_not_found(room):
    """Nothing of the other image is seen at that depth."""
    pixels, there = found(View.of(room[0]), View.of(replace(room[1], depth=3 * room[1].depth)), np.eye(4))
    assert pixels.shape == there.shape == (0, 2)


def test_without_points_a_pose_is_as_it_was_said(room):
    a, none = View.of(room[0]), (np.zeros((0, 2)), np.zeros((0, 2)))
    said = room[2].T_first_cam
    fit = fitted([Sight(Placed(a, np.eye(4), np.eye(4)), a, said, none, none)], said, said)
    T, sure = fit.T, fit.sure
    assert np.allclose(T, room[2].T_first_cam) and sure == 0


@pytest.mark.parametrize("size", [(112, 84), (280, 210), (518, 392), (98, 182)])
def test_a_view_is_small_and_sees_the_same_points(size):
    """Points of a large image, in the middle of a surface."""
    frame = frames_of(*size, count=1)[0]
    view = View.of(frame)
    assert max(view.size) == min(max(size), SIDE)
    middle = np.array([[(size[0] - 1) / 2, (size[1] - 1) / 2]])
    ratio = view.size[0] / size[0]
    depth = float(frame.depth[round(middle[0, 1]), round(middle[0, 0])])
    points = view.points((middle + 0.5) * ratio - 0.5)
    assert points == pytest.approx(np.array([[0, 0, depth]]), abs=0.02 * depth)
    assert view.pixels(points) == pytest.approx((middle + 0.5) * ratio - 0.5, abs=0.02)


# --- a segment ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(112, 84), (518, 392)])
@pytest.mark.parametrize("steady", [False, True])
def test_a_camera_that_turns_away_is_placed_better_than_the_network_says(size, steady):
    """Whose errors are others in each frame, or always the same."""
    true = frames_of(*size)
    said = [wrong(frame, 2.5) for frame in true[1:]]
    if steady:
        T_error = inverse(true[1].T_first_cam) @ said[0].T_first_cam
        said = [replace(frame, T_first_cam=frame.T_first_cam @ T_error) for frame in true[1:]]
    turned, length = off(true[-1].T_first_cam, true[0].T_first_cam)
    assert turned > 30 or length > np.median(true[0].depth)  # the first image shows little of what the last does
    before, after = errors(said, true[1:]), errors(refined(said, true[0]), true[1:])
    assert after[:, 0].mean() < 0.4 * before[:, 0].mean()
    assert after[:, 1].mean() < 0.6 * before[:, 1].mean()


def test_a_camera_that_stands_still_does_not_drift(room):
    """Though the network says it shakes."""
    said = [wrong(replace(room[0], index=i), 2, seed=i) for i in range(1, 200)]
    turns = errors(refined(said, room[0]), [room[0]] * len(said))[:, 0]
    assert turns[150:].mean() < 0.2 and turns.max() < 0.6


@pytest.mark.parametrize("spoilt", [blank, noisy])
def test_images_in_which_nothing_is_found_leave_the_pose_to_the_network(room, spoilt):
    """A few points are found in any two images by chance."""
    said = [spoilt(wrong(frame, 2)) for frame in room[1:8]]
    for a, b in zip(refined(said, spoilt(room[0])), said, strict=True):
        assert np.allclose(a.T_first_cam, b.T_first_cam)


@pytest.mark.parametrize("size", [(14, 14), (28, 28), (28, 14)])
def test_images_too_small_for_points_leave_the_pose_to_the_network(size):
    first, *said = frames_of(*size, count=4)
    said = [wrong(frame, 2) for frame in said]
    for a, b in zip(refined(said, first), said, strict=True):
        assert np.allclose(a.T_first_cam, b.T_first_cam)


@pytest.mark.parametrize("gain", [0.5, 1.5])
def test_exposure_does_not_matter(room, gain):
    brighter = np.clip(room[2].image * gain, 0, 255).astype(np.uint8)
    placed = [Refiner(room[0])(wrong(frame, 2)) for frame in (room[2], replace(room[2], image=brighter))]
    turns = errors(placed, [room[2]] * 2)[:, 0]
    assert turns[0] < 0.3 and turns[1] < 0.5


def test_after_blank_images_the_network_is_believed_from_where_the_camera_was(room):
    """Its motions are: an error that it makes once and for all does not come back."""
    T_error = rigid(Rotation.from_rotvec([0, 8, 0], degrees=True).as_matrix(), np.zeros(3))
    said = [*room[1:4], *(blank(replace(frame, T_first_cam=T_error @ frame.T_first_cam)) for frame in room[4:8])]
    placed = refined(said, room[0])
    for before, after, a, b in zip(placed[3:], placed[4:], said[3:], said[4:], strict=False):
        assert np.allclose(inverse(before.T_first_cam) @ after.T_first_cam, inverse(a.T_first_cam) @ b.T_first_cam)


def test_where_the_first_image_is_seen_again_the_network_leads_back_there(room):
    """It had drifted, and found its way again while nothing was to be seen, which the camera followed."""
    said = [turned(frame, 1.5 * frame.index) for frame in room[1:17]]
    back = [wrong(room[i], 2.0) for i in (3, 2, 1)]
    placed = refined([*said, blank(room[16]), blank(room[16]), *back], room[0])
    lost, found_again = placed[len(said) + 1], placed[-3:]
    assert off(lost.T_first_cam, room[16].T_first_cam)[0] > 15
    assert errors(found_again, [room[i] for i in (3, 2, 1)])[:, 0].max() < 1


def turned(frame: Frame, degrees: float) -> Frame:
    T = rigid(Rotation.from_rotvec([0, degrees, 0], degrees=True).as_matrix(), np.zeros(3))
    return replace(frame, T_first_cam=frame.T_first_cam @ T)


def test_points_of_the_point_head_move_with_the_camera(room):
    frame = wrong(room[1], 2)
    points = frame.points_world()
    placed = Refiner(room[0])(replace(frame, predicted_points=points))
    assert not np.allclose(placed.T_first_cam, frame.T_first_cam)
    factor = (placed.depth / frame.depth)[..., None]
    assert placed.points_cam() == pytest.approx(factor * frame.points_cam(), abs=1e-4)


@pytest.mark.parametrize("degrees", [8, 11])
def test_the_network_may_be_off_by_more_than_points_are_looked_for_at_first(room, degrees):
    """Where the camera's motion says nothing either, in images halved twice: it has just begun to move."""
    frame = wrong(room[1], degrees)
    pixels, _ = found(View.of(room[0]), View.of(frame), inverse(frame.T_first_cam))
    wider, _ = found(View.of(room[0]), View.of(frame), inverse(frame.T_first_cam), halved=2)
    assert len(pixels) < LEAST / 2 < len(wider)
    turn, shift = off(Refiner(room[0])(frame).T_first_cam, room[1].T_first_cam)
    assert turn < 1.0 and shift < 0.03 * np.median(frame.depth)


def test_a_next_segment_goes_on_with_the_motion_where_the_network_is_far_off(room):
    """As after a fast turn: it says something that no image near it shows."""
    before, true = Refiner(room[0]), as_the_next_segment(room, 8)
    for frame in room[1:14]:
        before(frame)
    refiner = Refiner(true[8])
    refiner(true[9])
    refiner.goes_on(before, true[13].T_first_cam, 2.0)
    turn, _ = off(refiner(wrong(true[14], 25)).T_first_cam, true[14].T_first_cam)
    assert turn < 1.0


def test_a_next_segment_goes_on_with_what_the_network_was_found_to_be_off_by(room):
    """It says the same wrong turn of all frames, and the next image shows nothing."""
    before, true = Refiner(room[0]), as_the_next_segment(room, 8)
    for frame in room[1:14]:
        before(frame)
    T_error = rigid(Rotation.from_rotvec([0, 3, 0], degrees=True).as_matrix(), np.zeros(3))
    said = [replace(frame, T_first_cam=T_error @ frame.T_first_cam) for frame in true]
    refiner = Refiner(true[8])
    refiner(said[9])
    refiner.goes_on(before, true[13].T_first_cam, 2.0)
    turn, _ = off(refiner(blank(said[14])).T_first_cam, true[14].T_first_cam)
    assert turn < 0.3


def test_depth_is_corrected_by_how_points_move_past_each_other(room):
    """Of images whose depth is off smoothly, each in its own way, beside a first one's that is true."""
    rng = np.random.default_rng(3)
    spoilt = [
        replace(frame, depth=frame.depth * factors(rng.normal(0, 0.08, ROWS * COLUMNS), *frame.depth.shape))
        for frame in room[1:10]
    ]
    before, after = (
        np.mean([np.abs(np.log(a.depth / b.depth)).mean() for a, b in zip(frames, room[1:], strict=False)])
        for frames in (spoilt, refined(spoilt, room[0]))
    )
    assert after < 0.7 * before


def test_depth_is_corrected_everywhere_by_what_points_say_there():
    """Of images as large as the published model's: in single steps of neither."""
    height, width = 392, 518
    logs = np.random.default_rng(4).normal(0, 0.08, ROWS * COLUMNS)
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2)
    expected = (shares(pixels, (width, height)) @ logs).reshape(height, width)
    assert np.log(factors(logs, height, width)) == pytest.approx(expected, abs=1e-6)


def test_depth_of_a_camera_that_stands_still_stays_as_it_is(room):
    placed = refined([replace(room[0], index=i) for i in range(1, 60)], room[0])
    assert placed[-1].depth == pytest.approx(room[0].depth, rel=0.01)
