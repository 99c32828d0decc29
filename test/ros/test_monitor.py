# SPDX-License-Identifier: Apache-2.0
from dataclasses import asdict, fields, replace
from itertools import pairwise
from threading import Thread

import numpy as np
import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.serialization import deserialize_message, serialize_message

from xsvggt_ros.ros.load_shedding import LEVELS
from xsvggt_ros.ros.monitor import STEPS, WINDOW_S, Monitor, diagnostic
from xsvggt_ros.status import NO_CAMERA_INFO, ImageCounts, Performance, ScaleStatus, SegmentStatus, Status, StepStatus

OK, WARN, ERROR, STALE = (getattr(DiagnosticStatus, level) for level in ("OK", "WARN", "ERROR", "STALE"))


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Node:
    """A worker's status, with a clock to turn, and what is said of it."""

    def __init__(self):
        self.clock = Clock()
        self.monitor = Monitor(self.clock)
        self.input = self.before = ImageCounts()
        self.step, self.scale, self.level = StepStatus(), ScaleStatus(), LEVELS[0]
        self.missing = self.shortage = self.calibration = ""

    def status(self):
        performance = replace(self.monitor.performance(), shed_level=self.level.number)
        silent = self.monitor.silent()
        return Status(
            self.step, self.scale, self.input, performance, self.missing, self.shortage, silent, self.calibration
        )

    def diagnostic(self, idle=""):
        said = diagnostic("/stream", self.status(), self.before, idle)
        self.before = self.input
        return said

    def count(self, **more):
        self.input = replace(self.input, **{name: getattr(self.input, name) + n for name, n in more.items()})

    def images(self, count, rate=30.0):
        for _ in range(count):
            self.clock.now += 1 / rate
            self.monitor.received(self.clock.now)
        self.count(frames_received=count)

    def verdict(self):
        status = self.diagnostic()
        return status.level, status.message


@pytest.fixture
def node():
    node = Node()
    node.images(10)
    return node


@pytest.mark.parametrize("rate", [0.5, 7.0, 30.0, 1000.0])
def test_the_input_rate_is_right_from_the_second_image_on(rate):
    node = Node()
    node.images(2, rate)
    assert node.monitor.performance().input_rate == pytest.approx(rate)
    node.images(int(20 * rate), rate)
    assert node.monitor.performance().input_rate == pytest.approx(rate, abs=1.001 / WINDOW_S)  # one image


def test_the_input_rate_forgets_and_starts_again_after_a_pause(node):
    node.images(300, 30.0)
    node.images(30, 10.0)
    assert node.monitor.performance().input_rate == pytest.approx((30 + 2 * 30) / 5, abs=0.5)  # 3 s and 2 s
    node.clock.now += 0.6 * WINDOW_S
    assert 0 < node.monitor.performance().input_rate < 7
    node.clock.now += 0.5 * WINDOW_S
    assert node.monitor.performance().input_rate == 0
    node.images(11, 20.0)
    assert node.monitor.performance().input_rate == pytest.approx(20)


def test_times_are_those_of_the_last_steps_and_the_newest_output():
    monitor = Monitor()
    assert monitor.performance() == Performance()
    steps = np.random.default_rng(0).uniform(0.01, 0.1, 3 * STEPS)
    for step in steps:
        monitor.published(step, 2 * step)
    performance = monitor.performance()
    assert performance.step_median_seconds == pytest.approx(np.median(steps[-STEPS:]))
    assert performance.step_worst_seconds == steps[-STEPS:].max()
    assert performance.age_seconds == 2 * steps[-1]


def test_threads_may_receive_publish_and_ask_at_once():
    clock = Clock()
    monitor, asked = Monitor(clock), []

    def receive():
        for _ in range(20_000):
            clock.now += 0.001
            monitor.received(clock.now)

    threads = [
        Thread(target=receive),
        Thread(target=lambda: [monitor.published(0.1, 0.2) for _ in range(5000)]),
        Thread(target=lambda: asked.extend((monitor.performance(), monitor.silent()) for _ in range(2000))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(asked) == 2000
    assert monitor.performance().input_rate == pytest.approx(1000, rel=0.01)
    assert monitor.performance().step_worst_seconds == 0.1


def test_all_is_well_while_every_image_is_used(node):
    assert node.verdict() == (OK, "every image is used")


@pytest.mark.parametrize(
    "cause, sentence",
    [
        ("frames_refused", "3 images refused: the queue is full"),
        ("frames_lost", "3 images lost by the middleware"),
        ("frames_late", "3 images late"),
        ("frames_rejected", "3 images unusable"),
    ],
)
def test_images_that_are_not_used_are_a_warning_until_it_stops(node, cause, sentence):
    for _ in range(2):
        node.images(10)
        node.count(**{cause: 3})
        level, message = node.verdict()
        assert level == WARN and message.startswith(sentence)
    node.images(10)
    assert node.verdict() == (OK, "every image is used")


def test_replacing_images_is_said_and_is_what_the_queue_is_for(node):
    node.count(frames_replaced=3)
    assert node.verdict() == (OK, "3 images replaced by newer ones")


def test_frames_that_find_no_place_are_a_warning_with_the_reason(node):
    node.missing = "the camera's mounting is not known"
    assert node.verdict() == (WARN, "nothing published: the camera's mounting is not known")
    node.missing = ""
    assert node.verdict()[0] == OK


@pytest.mark.parametrize("level", LEVELS[1:])
def test_what_is_given_up_for_the_latency_is_a_warning(node, level):
    node.level = level
    assert node.verdict() == (WARN, f"too slow for target_latency_ms: {level.description}")


def test_a_join_that_is_uncertain_is_a_warning_until_the_next(node):
    for uncertain, level, message in (
        (True, WARN, "the newest join of segments is uncertain: odometry may be off there"),
        (False, OK, "every image is used"),
    ):
        node.step = StepStatus(segments=SegmentStatus(segment=3, join_uncertain=uncertain, join_rotation_spread=0.25))
        status = node.diagnostic()
        assert (status.level, status.message) == (level, message)
        values = {value.key: value.value for value in status.values}
        assert (values["segment"], values["join_uncertain"]) == ("3", str(uncertain))
        assert values["join_rotation_spread"] == "0.25"


def test_a_place_that_the_map_does_not_know_is_said_and_is_no_warning(node):
    node.step = StepStatus(segments=SegmentStatus(located=False))
    level, message = node.verdict()
    assert level == OK and message.startswith("the map does not say where the camera is")
    node.step = StepStatus(segments=SegmentStatus(located=False, join_uncertain=True))
    level, message = node.verdict()
    assert level == WARN and message.startswith("the newest join") and "the map does not say" in message


def test_without_a_map_all_that_is_said_of_one_is_nothing(node):
    of_map = asdict(SegmentStatus())
    for segments, located in ((SegmentStatus(), "False"), (SegmentStatus(keyframes=1), "True")):
        node.step = StepStatus(segments=segments)
        values = {value.key: value.value for value in node.diagnostic().values if value.key in of_map}
        said = {key: value for key, value in values.items() if value not in ("0", "False")}
        assert values["located"] == located and said.keys() == (
            {"keyframes", "located"} if segments.keyframes else set()
        )


def test_that_nobody_wants_depth_is_said_and_is_no_warning(node):
    node.step = StepStatus(dense=False)
    assert node.verdict() == (OK, "depth: not computed, nobody subscribes")


def test_a_cache_cut_for_want_of_memory_is_an_error_until_it_is_set_anew(node):
    node.shortage = "out of memory: xstream goes on with 106 tokens per layer"
    node.count(frames_failed=1)
    for _ in range(3):
        node.images(10)
        assert node.verdict() == (ERROR, node.shortage)
    node.shortage = ""
    assert node.verdict()[0] == OK


def test_without_images_the_values_are_stale(node):
    assert Node().verdict() == (STALE, "no image for 5 s")
    node.clock.now += WINDOW_S - 0.1
    assert node.verdict()[0] == OK
    node.clock.now += 0.2
    assert node.verdict() == (STALE, "no image for 5 s")
    node.images(1)
    assert node.verdict()[0] == OK


def test_a_silence_counts_from_when_images_are_wanted(node):
    node.clock.now += 2 * WINDOW_S  # switched off
    node.monitor.listen()
    assert node.verdict()[0] == OK
    node.clock.now += WINDOW_S - 0.1
    assert node.verdict()[0] == OK
    node.clock.now += 0.2
    assert node.verdict() == (STALE, "no image for 5 s")
    node.images(1)
    node.clock.now += WINDOW_S - 0.1
    assert node.verdict()[0] == OK


def test_without_a_calibration_all_may_be_well_but_it_is_said(node):
    node.calibration = NO_CAMERA_INFO
    assert node.verdict() == (OK, NO_CAMERA_INFO)
    said = diagnostic("/stream", node.status(), node.before, calibrations="camera_info is read on /a")
    assert said.message == f"{NO_CAMERA_INFO}; camera_info is read on /a"
    assert {pair.key: pair.value for pair in said.values}["calibration"] == NO_CAMERA_INFO
    node.count(frames_rejected=1)
    level, message = node.verdict()
    assert level == WARN and message.endswith(NO_CAMERA_INFO)


def test_a_calibration_that_cannot_be_used_is_a_warning_until_another_can(node):
    node.calibration = "camera_info ignored: it is for 320 x 240 pixels"
    for _ in range(2):
        node.images(10)
        assert node.verdict() == (WARN, node.calibration)
    node.calibration = ""
    assert node.verdict() == (OK, "every image is used")


def test_of_several_complaints_the_worst_gives_the_level_and_all_are_said(node):
    node.count(frames_replaced=4, frames_rejected=2)
    node.shortage, node.level = "out of memory: x", LEVELS[2]
    level, message = node.verdict()
    assert level == ERROR
    parts = ["out of memory: x", LEVELS[2].description, "2 images unusable", "4 images replaced"]
    assert all(0 <= message.find(a) < message.find(b) for a, b in pairwise(parts))


def test_a_node_that_does_not_work_on_images_says_why(node):
    node.count(frames_replaced=4)
    status = node.diagnostic("not active")
    assert (status.level, status.message) == (STALE, "not active")
    assert {pair.key: pair.value for pair in status.values}["frames_replaced"] == "4"
    status = diagnostic("/stream", None, ImageCounts(), "not configured")
    assert (status.level, status.message, status.name) == (STALE, "not configured", "/stream")


def test_the_values_are_all_that_the_status_message_has(node):
    from xsvggt_ros.msg import StreamStatus

    stages = ("preprocess", "encoder", "aggregator", "camera", "dense", "step")
    node.step = StepStatus(frame=7, policy="xstream", seconds=dict.fromkeys(stages, 0.0123456789))
    node.scale = ScaleStatus("odometry", 1.25, 0.02, 40)
    node.level = LEVELS[3]
    node.count(frames_lost=2)
    status = node.diagnostic()
    values = {pair.key: pair.value for pair in status.values}
    assert len(values) == len(status.values)
    assert set(values) == set(StreamStatus.get_fields_and_field_types()) - {"header"}
    expected = dict(frame="7", policy="xstream", encoder_seconds="0.0123457", shed_level="3", frames_lost="2")
    expected |= dict(scale_source="odometry", scale="1.25", frames_received="10", input_rate="30")
    assert {name: values[name] for name in expected} == expected
    assert deserialize_message(serialize_message(status), DiagnosticStatus) == status


def test_each_count_has_a_cause_or_is_none():
    """A count that is added must be thought of here."""
    causes = {"frames_replaced", "frames_refused", "frames_lost", "frames_late", "frames_rejected", "frames_abandoned"}
    elsewhere = {"frames_received", "frames_unplaced", "frames_failed", "frames_waiting", "resets"}
    assert {f.name for f in fields(ImageCounts)} == causes | elsewhere
