# SPDX-License-Identifier: Apache-2.0
"""The next image is at work while what came of the last is published: in order, one at a time, and nothing lost."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy")

from support.messages import SCALE, place, rclpy_class

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.messages.topics import COMPRESSED, DEPTH, IMAGE, OBSTACLES, TOPICS, TRACKS
from xsvggt_ros.pipeline import Answer, Arrival
from xsvggt_ros.ros import worker as module
from xsvggt_ros.ros.load_shedding import LEVELS, RECENT
from xsvggt_ros.ros.worker import Worker
from xsvggt_ros.settings import changed
from xsvggt_ros.status import Status, StepStatus

PATIENCE_S = 30.0
A_WHILE_S = 0.2  # in which what must not happen would


class Pipeline:
    """As pipeline.Pipeline: a frame for each image, which is its number, or for each chunk."""

    chunk = 1

    def __init__(self, stream, config, log):
        self.begun, self.limits, self.waiting, self.dense = [], [], [], []
        self.status = Status()
        self.reset = self.time_restarted = self.save_map = self.load_map = lambda: None

    def process(self, message, config, arrived, dense):
        self.dense.append(dense)
        self.begun.append(message)
        self.waiting.append(self.answer(message, arrived))
        return self.flush() if len(self.waiting) >= self.chunk else []

    def flush(self):
        done, self.waiting = self.waiting, []
        return done

    def limit(self, fraction):
        self.limits.append((len(self.begun), fraction))

    def answer(self, number, arrived):
        depth = np.full((2, 2), 1.0, np.float32)
        image, step = np.zeros((2, 2, 3), np.uint8), StepStatus(frame=number, seconds={"step": 0.0})
        frame = Frame(number, np.eye(4), np.eye(3), depth, depth, image, step)
        return Answer(Arrival(str(number), arrived), place(frame, stamp=number), Status(step, SCALE))


class Outside:
    """A worker that runs, and what it publishes, each time through a gate."""

    def __init__(self, pool, **settings):
        self.sent, self.statuses, self.failure = [], [], None
        self.gate, self.reached = Event(), Event()
        self.listened = set(TOPICS)
        self.settings = SimpleNamespace(config=NodeConfig(queue="all", **settings))
        log = SimpleNamespace(warning=lambda *a, **k: None)
        self.worker = Worker(None, self.settings, rclpy_class, self.publish, self.listened.__contains__, log)
        self.pipeline = self.worker._pipeline
        self.running = pool.submit(self.worker.run)

    def publish(self, topic, make):
        self.reached.set()
        assert self.gate.wait(PATIENCE_S)
        if self.failure:
            raise self.failure
        message = make()
        if topic == "~/status":
            self.statuses.append(message)
        self.sent.append((message.transforms[0] if topic == "/tf" else message).header.stamp.nanosec)

    def put(self, *numbers):
        for number in numbers:
            self.worker.receive(IMAGE, number)

    def close(self):
        self.gate.set()
        self.worker.close()


@pytest.fixture
def outside(monkeypatch):
    monkeypatch.setattr(module, "Pipeline", Pipeline)
    with ThreadPoolExecutor() as pool:
        worker = Outside(pool)
        yield worker
        worker.close()


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def test_the_next_image_is_at_work_meanwhile_and_the_one_after_that_waits(outside):
    outside.put(0, 1, 2, 3)
    assert outside.reached.wait(PATIENCE_S)
    until(lambda: outside.pipeline.begun == [0, 1])
    time.sleep(A_WHILE_S)
    assert outside.pipeline.begun == [0, 1] and outside.sent == []
    outside.gate.set()
    until(lambda: len(outside.statuses) == 4)
    assert outside.sent == [number for number in range(4) for _ in TOPICS]


@pytest.mark.parametrize("more", [(), (1, 2)])
def test_what_fails_while_publishing_ends_the_worker_whether_or_not_images_follow(outside, more):
    outside.failure = RuntimeError("the middleware is gone")
    outside.gate.set()
    outside.put(0, *more)
    assert outside.running.exception(PATIENCE_S) is outside.failure
    assert outside.sent == []


def test_all_is_out_when_what_waits_is_finished(outside):
    outside.pipeline.chunk = 3
    outside.put(0, 1, 2, 3)
    done = outside.worker.finish()
    until(lambda: outside.pipeline.begun == [0, 1, 2, 3])
    time.sleep(A_WHILE_S)
    assert not done.is_set()
    outside.gate.set()
    assert done.wait(PATIENCE_S)
    assert [status.frame for status in outside.statuses] == [0, 1, 2, 3]


def test_all_that_was_taken_in_is_out_when_the_worker_ends(outside):
    outside.put(0, 1)
    until(lambda: outside.pipeline.begun == [0, 1])
    outside.worker.close()
    time.sleep(A_WHILE_S)
    assert not outside.running.done()
    outside.gate.set()
    assert outside.running.result(PATIENCE_S) is None
    assert [status.frame for status in outside.statuses] == [0, 1]


def test_an_age_is_counted_until_the_outputs_are_out(outside):
    outside.put(0)
    assert outside.reached.wait(PATIENCE_S)
    time.sleep(A_WHILE_S)
    outside.gate.set()
    until(lambda: outside.statuses)
    assert outside.statuses[0].age_seconds >= A_WHILE_S


def test_a_frame_says_at_which_level_it_was_made_and_the_next_is_made_at_the_new_one(outside):
    outside.settings.config = NodeConfig(queue="all", target_latency_ms=0.001)
    outside.gate.set()
    count = (RECENT + 1) * len(LEVELS)
    for number in range(count):
        outside.put(number)
        until(lambda done=number: len(outside.statuses) > done)
    levels = [status.shed_level for status in outside.statuses]
    assert levels == [min(number // RECENT, len(LEVELS) - 1) for number in range(count)]
    halved = next(level for level in LEVELS if level.budget < 1)
    begun, fraction = next(limit for limit in outside.pipeline.limits if limit[1] < 1)
    assert (begun, fraction) == (halved.number * RECENT, halved.budget)


def test_depth_is_asked_for_where_it_always_is_and_where_someone_listens(outside):
    outside.gate.set()
    cases = [
        ("always", {"/tf"}, {}),
        ("subscribed", {"/tf", "~/depth/camera_info"}, {}),
        ("subscribed", {"~/tracks"}, {"track_groups": 1}),
        ("subscribed", {"~/depth/image/compressedDepth"}, {"compressed_depth": True}),
        ("subscribed", {*TRACKS, *COMPRESSED, *OBSTACLES}, {}),  # which are not published
        ("subscribed", {"~/points"}, {}),
    ]
    for number, (dense, topics, changes) in enumerate(cases):
        outside.settings.config = changed(NodeConfig(queue="all", dense=dense), changes)
        outside.listened.clear()
        outside.listened.update(topics)
        outside.put(number)
        until(lambda done=number: len(outside.statuses) > done)
    assert outside.pipeline.dense == [True, False, True, True, False, True]


def test_other_messages_do_not_wait(outside):
    received = []
    outside.pipeline.receive = lambda topic, message: received.append((topic, message))
    outside.put(0, 1)
    outside.worker.receive(DEPTH, "depth")
    assert received == [(DEPTH, "depth")]
