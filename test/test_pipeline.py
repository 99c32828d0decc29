# SPDX-License-Identifier: Apache-2.0
"""One way from a message to a placed frame, and what becomes of messages that lead nowhere."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from support.caches import Shortage
from support.recordings import SECOND, camera_info, picture, raw_image

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.geometry import inverse
from xsvggt_ros.pipeline import BUILDING, GONE, Pipeline, Rejected, Unplaced
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.rooms.sequence import stream as room_stream
from xsvggt_ros.segments import SegmentedStream, join
from xsvggt_ros.settings import changed
from xsvggt_ros.status import NO_CAMERA_INFO
from xsvggt_ros.stream import GeometryStream

K = np.array([[50.0, 0, 31.5], [0, 51.0, 23.5], [0, 0, 1]])
SMALL = changed(NodeConfig(), {"image_width": 56, "dtype": "float32"})
LOG = logging.getLogger("pipeline under test")


@pytest.fixture(scope="module")
def model():
    return GeometryStream(SMALL.stream).model


def pipeline_of(model, config=SMALL):
    return Pipeline(GeometryStream(config.stream, model), config, LOG)


def one(pipeline, message, config=SMALL):
    """What became of an image that has an answer at once."""
    (answer,) = pipeline.process(message, config)
    return answer.result


def test_an_image_is_what_the_stream_says_of_it_with_the_images_stamp_and_frame(model):
    placed = one(pipeline_of(model), raw_image(picture(0), 7 * SECOND), SMALL)
    frame = GeometryStream(SMALL.stream, model).step(picture(0))
    assert isinstance(placed, Placed)
    assert (placed.stamp_ns, placed.camera, placed.child) == (7 * SECOND, "cam_optical", "cam_optical")
    np.testing.assert_array_equal(placed.frame.depth, frame.depth)
    np.testing.assert_array_equal(placed.frame.T_first_cam, frame.T_first_cam)


LARGE = changed(SMALL, {"output.resolution": "input"})


def test_outputs_have_the_size_of_the_camera_from_the_image_on_at_which_that_is_asked_for(model):
    pipeline = pipeline_of(model)
    asked = (SMALL, LARGE, LARGE, SMALL)
    placed = [one(pipeline, raw_image(picture(i), i), config) for i, config in enumerate(asked)]
    assert [each.output.depth.shape for each in placed] == [(42, 56), (48, 64), (48, 64), (42, 56)]
    for i in (1, 2):
        np.testing.assert_array_equal(placed[i].output.image, picture(i))
        assert placed[i].frame.depth.shape == (42, 56) and placed[i].output is placed[i].output
    assert placed[0].output is placed[0].frame


def test_of_a_chunk_each_frame_has_its_own_image_at_the_size_that_was_asked_for_as_it_came(model):
    small, large = (changed(config, {"cache.chunk": 3}) for config in (SMALL, LARGE))
    pipeline = pipeline_of(model, small)
    answers = [pipeline.process(raw_image(picture(i), i), c) for i, c in enumerate((large, small, large))]
    assert [len(found) for found in answers] == [0, 0, 3]
    images = [answer.result.image for answer in answers[-1]]
    assert images[1] is None
    for i in (0, 2):
        np.testing.assert_array_equal(images[i], picture(i))


def test_the_image_is_rectified_as_the_one_that_the_network_saw(model):
    pipeline = pipeline_of(model, LARGE)
    info = camera_info(K)
    info.distortion_model, info.d = "plumb_bob", np.array([-0.3, 0.05, 0, 0, 0])
    pipeline.receive("camera_info", info)
    placed = one(pipeline, raw_image(picture(0), 0), LARGE)
    image, intrinsics = placed.view
    assert (image != picture(0)).any()
    np.testing.assert_allclose(intrinsics, K, rtol=1e-12)
    resized = placed.frame.resize.image(Image.fromarray(image))
    np.testing.assert_array_equal(resized, placed.frame.image)


def test_segments_have_the_time_that_the_target_leaves(model):
    pipeline = pipeline_of(model)
    pipeline.process(raw_image(picture(0), 0), SMALL, arrived=50.0)
    assert pipeline._stream.until == math.inf
    pipeline.process(raw_image(picture(1), 1), replace(SMALL, target_latency_ms=200.0), arrived=60.0)
    assert pipeline._stream.until == pytest.approx(60 + BUILDING * 0.2)


def test_camera_info_gives_the_intrinsics_of_the_images_after_it(model):
    pipeline = pipeline_of(model)
    before = one(pipeline, raw_image(picture(0), 0), SMALL).frame.intrinsics
    pipeline.receive("camera_info", camera_info(K))
    after = one(pipeline, raw_image(picture(1), 1), SMALL).frame.intrinsics
    assert after[0, 0] == pytest.approx(K[0, 0] * 56 / 64) != before[0, 0]


@pytest.mark.parametrize(("image_frame", "info_frame"), [("/left", "left"), ("left", "//left"), ("left ", "/left")])
def test_a_slash_does_not_part_an_image_from_its_camera_info(model, image_frame, info_frame):
    pipeline = pipeline_of(model)
    pipeline.receive("camera_info", camera_info(K, frame_id=info_frame))
    pipeline.receive("camera_info", camera_info(2 * K, frame_id="right"))
    placed = one(pipeline, raw_image(picture(0), 0, frame_id=image_frame), SMALL)
    assert placed.camera == "left"
    assert placed.frame.intrinsics[0, 0] == pytest.approx(K[0, 0] * 56 / 64)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (camera_info(K, (240, 320)), "camera_info is for 320 x 240 pixels, the image has 64 x 48; use"),
        (camera_info(np.zeros((3, 3))), "focal lengths must be above 0"),
        (camera_info(np.full((3, 3), np.nan)), "not finite"),
    ],
)
def test_why_a_calibration_is_not_in_use_is_in_the_status_and_said_once(model, caplog, info, words):
    caplog.set_level(logging.WARNING)
    pipeline = pipeline_of(model)
    pipeline.process(raw_image(picture(0), 0), SMALL)
    assert pipeline.status.calibration == NO_CAMERA_INFO
    assert not caplog.records  # which is no fault, of a folder of images least of all
    pipeline.receive("camera_info", info)
    for stamp in (1, 2):
        pipeline.process(raw_image(picture(0), stamp), SMALL)
        assert words in pipeline.status.calibration
    assert [record.message for record in caplog.records] == [pipeline.status.calibration]
    pipeline.receive("camera_info", camera_info(K))
    pipeline.process(raw_image(picture(0), 3), SMALL)
    pipeline.process(raw_image(picture(0)[:40], 4), SMALL)  # a stray one, which is not taken in
    assert pipeline.status.images.frames_rejected == 1
    assert pipeline.status.calibration == pipeline.status.figures()["calibration"] == ""


def test_every_image_is_counted_once_by_what_became_of_it(model):
    pipeline = pipeline_of(model)
    pipeline.process(raw_image(picture(0), 0), SMALL)
    repeated = one(pipeline, raw_image(picture(1), 0), SMALL)
    unknown = one(pipeline, raw_image(picture(1), 1, encoding="secret8"), SMALL)
    with Shortage(0):
        failed = one(pipeline, raw_image(picture(1), 2), SMALL)
    assert isinstance(repeated, Rejected) and "that of the image before" in repeated.reason
    assert isinstance(unknown, Rejected) and "secret8" in unknown.reason
    assert isinstance(failed, Rejected) and failed.reason == pipeline.status.shortage
    assert [each.cause for each in (repeated, unknown, failed)] == ["frames_late", "frames_rejected", "frames_failed"]
    assert pipeline.status.unused == {each.cause: each.reason for each in (repeated, unknown, failed)}
    counts = pipeline.status.images
    assert (counts.frames_received, counts.frames_late, counts.frames_rejected, counts.frames_failed) == (4, 1, 1, 1)


def test_a_frame_without_a_place_says_what_is_missing_until_it_has_one(model):
    config = changed(SMALL, {"base_frame": "base_link"})
    pipeline = pipeline_of(model, config)
    result = one(pipeline, raw_image(picture(0), 0), config)
    assert isinstance(result, Unplaced) and "mounting on base_link is not known" in result.reason
    assert pipeline.status.missing == result.reason
    assert (pipeline.status.images.frames_unplaced, pipeline.status.step.frame) == (1, 0)
    assert isinstance(one(pipeline, raw_image(picture(1), 1), SMALL), Placed)
    assert not pipeline.status.missing


def test_time_that_restarts_and_a_reset_start_new_worlds(model):
    pipeline = pipeline_of(model)
    for seconds in (0, 5, 6, 2, 3):
        pipeline.process(raw_image(picture(0), seconds * SECOND), SMALL)
    assert (pipeline.status.images.resets, pipeline.status.step.frame) == (1, 1)
    pipeline.reset()
    pipeline.process(raw_image(picture(0), 4 * SECOND), SMALL)
    assert (pipeline.status.images.resets, pipeline.status.step.event) == (2, "asked for by ~/reset")


def processed(pipeline, cameras, config=SMALL, first=0):
    """Which of the images of these frame_ids, 33 ms apart, were placed."""
    messages = [raw_image(picture(i), i * SECOND // 30, frame_id=camera) for i, camera in enumerate(cameras, first)]
    return [isinstance(one(pipeline, message, config), Placed) for message in messages]


def test_of_two_cameras_on_one_topic_each_has_its_own_calibration(model):
    pipeline = pipeline_of(model)
    wide, narrow = K.copy(), K.copy()
    narrow[[0, 1], [0, 1]] *= 2
    for left, right in ((wide, narrow), (wide, narrow)):
        for matrix, camera in ((left, "left"), (right, "right")):
            pipeline.receive("camera_info", camera_info(matrix, frame_id=camera))
    placed = one(pipeline, raw_image(picture(0), 0, frame_id="left"), SMALL)
    assert placed.frame.intrinsics[0, 0] == pytest.approx(wide[0, 0] * 56 / 64)
    alone = pipeline_of(model)
    alone.receive("camera_info", camera_info(wide, frame_id="left"))
    alone.receive("camera_info", camera_info(narrow, frame_id="right"))
    third = one(alone, raw_image(picture(0), 0, frame_id="rear"), SMALL)
    assert third.frame.intrinsics[0, 0] != pytest.approx(narrow[0, 0] * 56 / 64)
    assert alone.status.calibration.endswith("none of camera rear, but of left, right")


def test_of_two_cameras_on_one_topic_the_first_is_followed(model, caplog):
    pipeline = pipeline_of(model)
    assert processed(pipeline, ["left", "right", "left", "right", "right", "right", "right", "left"]) == [
        True, False, True, False, False, False, False, True,
    ]  # fmt: skip
    counts = pipeline.status.images
    assert (counts.resets, counts.frames_rejected, pipeline.status.step.frame) == (0, 5, 2)
    refused = one(pipeline, raw_image(picture(0), SECOND, frame_id="right"), SMALL)
    assert "of camera right, and left is followed" in refused.reason and "camera_frame" in refused.reason


def test_another_camera_is_followed_once_that_is_asked_for(model):
    pipeline = pipeline_of(model)
    assert processed(pipeline, ["left", "right"]) == [True, False]
    right = changed(SMALL, {"camera_frame": "right"})
    assert processed(pipeline, ["left", "right", "left", "right"], right, first=2) == [False, True, False, True]
    step = pipeline.status.step
    assert (pipeline.status.images.resets, step.frame) == (1, 1)
    pipeline.reset()
    assert processed(pipeline, ["left", "right"], first=6) == [True, False]
    assert pipeline.status.images.resets == 2


def test_a_camera_whose_image_is_unusable_is_not_followed(model):
    pipeline = pipeline_of(model)
    pipeline.process(raw_image(picture(0), 0, frame_id="left", encoding="secret8"), SMALL)
    assert processed(pipeline, ["right", "right"], first=1) == [True, True]


def test_a_camera_that_sends_nothing_any_more_is_let_go(model):
    pipeline = pipeline_of(model)
    assert processed(pipeline, ["left", *["right"] * (GONE + 1)]) == [True, *[False] * (GONE - 1), True, True]
    step = pipeline.status.step
    assert (pipeline.status.images.resets, step.frame) == (1, 1)


def test_a_camera_that_is_wanted_from_the_start_need_not_come_first(model):
    config = changed(SMALL, {"camera_frame": "right"})
    pipeline = pipeline_of(model, config)
    assert processed(pipeline, ["left", "right", "left", "right"], config) == [False, True, False, True]
    assert (pipeline.status.images.resets, pipeline.status.step.event) == (0, "")


def test_settings_reach_the_cache_between_two_images(model):
    pipeline = pipeline_of(model)
    pipeline.process(raw_image(picture(0), 0), SMALL)
    small = changed(SMALL, {"cache.budget_tokens": 40, "cache.key_bits": 8})
    pipeline.process(raw_image(picture(1), 1), small)
    assert (pipeline.status.step.budget_tokens, pipeline.status.step.key_bits) == (40, 8)


def test_a_reference_that_cannot_be_used_is_said_once_in_a_while(model, caplog):
    caplog.set_level(logging.WARNING)
    config = changed(SMALL, {"scale.source": "depth"})
    pipeline = pipeline_of(model, config)
    for _ in range(3):
        pipeline.receive("reference/depth", raw_image(picture(0), 0))
    assert [record.message.split(":")[0] for record in caplog.records] == ["reference/depth ignored"]


def test_rows_of_high_images_that_are_not_used_are_said_once(model, caplog):
    with caplog.at_level(logging.WARNING):
        for size in ((48, 64), (64, 64), (80, 64)):
            pipeline = pipeline_of(model)
            for world in range(2):
                pipeline.process(raw_image(picture(0, size), world * SECOND), SMALL)
                pipeline.reset()
    (said,) = [message for message in caplog.messages if "not used" in message]
    assert said.startswith("images of 64x80 are higher than wide, and of their rows 20%, at top and bottom")


def test_segments_that_do_not_agree_join_by_the_robots_odometry(model, monkeypatch):
    monkeypatch.setattr(join, "MOST_TURN", -1.0)  # no join is trusted
    settings = {"segment.enabled": True, "segment.overlap": 0.9, "scale.source": "odometry", "loop.enabled": False}
    config = changed(SMALL, {**settings, "base_frame": "cam_optical"})
    pipeline = Pipeline(SegmentedStream(config.stream, model), config, LOG)
    room, events, images = list(room_stream(8, 30, 64, 48, "robot", 4.0)), [], []
    scales = []
    for shot in room:
        pipeline._placement.receive_pose(shot.stamp_ns, shot.T_room_cam)
        (answer,) = pipeline.process(raw_image(shot.rgb, shot.stamp_ns), config)
        events.append(answer.status.step.event)
        images.append(answer.result.frame.image)
        scales.append(answer.status.scale.scale)
    assert any(event.startswith("a join of segments is by the robot's motion") for event in events)
    keyframes = pipeline._stream._chain.map
    second = next(i for i, image in enumerate(images) if (image == keyframes.image(1)[0]).all())
    T = inverse(room[0].T_room_cam) @ room[second].T_room_cam
    relation = keyframes.relations.measured[0, 1]
    np.testing.assert_allclose(relation.rotation, T[:3, :3], atol=1e-6)
    made = next(i for i, event in enumerate(events) if event)
    np.testing.assert_allclose(relation.translation * scales[made - 1], T[:3, 3], atol=1e-6)
