# SPDX-License-Identifier: Apache-2.0
"""What the node survives: those around it that die, return, contradict each other, and time that does what it likes."""

import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version

import numpy as np
import pytest
from support.paths import ROOT

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TransformStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, PointCloud2
from tf2_msgs.msg import TFMessage

from xsvggt_ros.config import CacheConfig
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.topics import TOPICS

SMALL = dict(device="cpu", dtype="float32", image_width=56, point_stride=1, path_length=50)
SMALL |= dict(queue="all", queue_size=1000)
SECOND = 10**9
# Settings that are only ever asked for together: budget -> bits of keys and values.
SETS = {110: (2, 8), 150: (4, 4), 212: (8, 2), 300: (16, 16)}
OUTPUTS = [topic for topic in TOPICS if topic not in ("~/status", "/tf")]  # /tf is of all nodes


@pytest.fixture(scope="module", autouse=True)
def transport():
    """Fast DDS 2, of Jazzy: when a publisher is killed, its shared memory may keep others' images from a reader for
    more than a minute (docs/troubleshooting.md). Over UDP it does not.
    """
    with pytest.MonkeyPatch.context() as patch:
        if int(version("rclpy").partition(".")[0]) < 9:
            patch.setenv("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4")
        yield


@pytest.fixture(scope="module")
def nodes(start_node):
    """The one of most tests, and one that lives in simulated time and wants to know how its camera is mounted."""
    simulated = dict(SMALL, base_frame="base", use_sim_time="true")
    return start_node(**SMALL), start_node("stream", {"__ns": "/sim"}, **simulated)


@pytest.fixture(scope="module")
def connected(nodes, client):
    client.connect()
    return client


@pytest.fixture
def user(connected):
    """The client of the first node, which has answered all so far."""
    connected.exchange(connected.image())
    connected.settle()
    return connected


@pytest.fixture
def process_of_images():
    """Starts a process that publishes a hundred images a second without end; it may be killed."""
    started = []

    def start():
        command = [sys.executable, ROOT / "test/support/publish_images.py"]
        started.append(subprocess.Popen(command))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def while_images_flow(client, *work):
    """Does the work, each part in a thread of its own; returns the stamps of the images sent meanwhile."""
    with ThreadPoolExecutor(len(work)) as pool, client.flow() as sent:
        futures = [pool.submit(part) for part in work]
        client.until(lambda: len(sent) > 30 and all(future.done() for future in futures), seconds=600)
    for future in futures:
        future.result()
    client.until(lambda: sent[-1] in client.stamps("~/status"))
    return sent


def check_all_used(before, after, sent):
    """Every image sent was received and stepped, whether or not the status of each came through."""
    assert stamp_ns(after.header) == sent[-1]
    assert after.frame - before.frame == after.frames_received - before.frames_received == len(sent)


def verdicts(diagnostics, name, level=None):
    """What they say of a node, or only that of a level."""
    found = [status for array in diagnostics for status in array.status if status.name == name]
    return [status for status in found if level in (None, status.level)]


def warned(node, words):
    return [line for line in node.output().splitlines() if words in line]


# Those around it


def test_a_publisher_that_vanishes_and_returns(user):
    before = user.exchange(user.image())
    for _ in range(3):
        user.node.destroy_publisher(user.images)
        user.images = user.node.create_publisher(Image, "image", QoSProfile(depth=200))
        user.until(lambda: user.images.get_subscription_count())
        status = user.exchange(user.image())
    assert (status.frame, status.resets) == (before.frame + 3, before.resets)  # the same world


def test_a_publisher_that_is_killed_while_it_publishes(user, process_of_images):
    answered = len(user.received["~/status"])
    process = process_of_images()
    user.until(lambda: len(user.received["~/status"]) > answered + 20)
    process.kill()
    process.wait()
    user.stamp = time.time_ns()
    user.exchange(user.image())
    answered = len(user.received["~/status"])
    process_of_images()
    user.until(lambda: len(user.received["~/status"]) > answered + 20)


def test_two_publishers_of_different_sizes_on_one_topic(user):
    """The world goes on with the images of its size."""
    other = user.node.create_publisher(Image, "image", QoSProfile(depth=200))
    user.until(lambda: other.get_subscription_count())
    before = user.exchange(user.image())

    def counted(strays):
        """Whether the strays have come: the two publishers' images may overtake each other."""
        return user.exchange(user.image()).frames_rejected == before.frames_rejected + strays

    for turn in range(5):
        other.publish(user.image(turn, 112, 112))
        user.until(lambda strays=turn + 1: counted(strays))
    after = user.exchange(user.image())
    assert (after.resets, after.frames_rejected) == (before.resets, before.frames_rejected + 5)
    user.until(lambda: all(user.stamps(topic)[-1:] == [user.stamp] for topic in OUTPUTS))
    for topic in ("~/depth/image", "~/confidence/image", "~/depth/camera_info", "~/points"):
        assert {(msg.height, msg.width) for msg in user.received[topic]} == {(42, 56)}
    user.node.destroy_publisher(other)


class Hammer:
    """Asks for SETS in turn, at 100 Hz while at most four answers are open; every seventh request is a bad one."""

    def __init__(self, client, requests):
        self.asked = 0
        self.seconds = []  # each answer took
        self.wrong = []  # answers
        self._client, self._requests = client, requests
        client.until(client.parameters.services_are_ready)

    def run(self):
        timer = self._client.node.create_timer(0.01, self._ask)
        self._client.until(lambda: len(self.seconds) == self._requests, seconds=self._requests)
        self._client.node.destroy_timer(timer)

    def _ask(self):
        if self.asked == self._requests or self.asked - len(self.seconds) > 3:
            return
        bad = self.asked % 7 == 6
        budget, (keys, values) = (999, (5, 5)) if bad else list(SETS.items())[self.asked % len(SETS)]
        request = self._client.ask_parameters(
            cache__budget_tokens=budget, cache__key_bits=keys, cache__value_bits=values
        )
        request.add_done_callback(partial(self._on_answer, "one of 1, 2, 3, 4, 8, 16, got 5" * bad, time.monotonic()))
        self.asked += 1

    def _on_answer(self, reason, asked_at, future):
        self.seconds.append(time.monotonic() - asked_at)
        result = future.result().result
        if result.successful == bool(reason) or reason not in result.reason:
            self.wrong.append(result)


def test_two_clients_change_parameters_all_the_time(user, start_client, endurance, figures):
    assert user.set_parameters(cache__budget_tokens=110, cache__key_bits=2, cache__value_bits=8).successful
    before = user.exchange(user.image())
    hammers = [Hammer(start_client(topics=()), 6000 if endurance else 100) for _ in range(2)]
    began = time.monotonic()
    sent = while_images_flow(user, *(hammer.run for hammer in hammers))
    seconds = [each for hammer in hammers for each in hammer.seconds]
    rate = len(seconds) / (time.monotonic() - began)
    assert [hammer.wrong for hammer in hammers] == [[], []]
    check_all_used(before, user.received["~/status"][-1], sent)
    seen = [(status.budget_tokens, (status.key_bits, status.value_bits)) for status in user.received["~/status"]]
    assert set(seen) <= set(SETS.items())
    assert len(set(seen)) > 1
    took = f"{rate:.0f} requests/s, {np.median(seconds) * 1e3:.1f} ms, {max(seconds) * 1e3:.0f} ms"
    figures(f"{len(seconds)} requests of two clients, images at 30 Hz, all answered: rate, median, longest", took)


def test_a_subscriber_that_comes_and_goes(user, start_client):
    visitor = start_client(topics=())

    def visit():
        for _ in range(5):
            got = []
            subscription = visitor.node.create_subscription(PointCloud2, "stream/points", got.append, 10)
            visitor.until(lambda got=got: len(got) > 2)
            visitor.node.destroy_subscription(subscription)

    before = user.exchange(user.image())
    sent = while_images_flow(user, visit)
    user.until(lambda: all(user.stamps(topic)[-1:] == sent[-1:] for topic in OUTPUTS))
    check_all_used(before, user.received["~/status"][-1], sent)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_memory_that_runs_out_costs_a_frame_and_half_the_cache(nodes, user):
    """The process may have 8 MiB more than it has, while its cache keeps everything and grows."""
    everything = dict(cache__policy="full", cache__key_bits=16, cache__value_bits=16)
    assert user.reset().success and user.set_parameters(**everything).successful
    before = user.exchange(user.image())
    user.settle()
    diagnostics = user.listen(DiagnosticArray, "/diagnostics")
    free = resource.prlimit(nodes[0].pid, resource.RLIMIT_AS)
    try:
        resource.prlimit(nodes[0].pid, resource.RLIMIT_AS, (nodes[0].address_space() + 8 * 2**20, free[1]))
        with user.flow() as sent:
            user.until(lambda: verdicts(diagnostics, "/stream", DiagnosticStatus.ERROR))
    finally:
        resource.prlimit(nodes[0].pid, resource.RLIMIT_AS, free)
    user.until(lambda: sent[-1] in user.stamps("~/status"))
    after = user.received["~/status"][-1]
    assert after.frames_failed > before.frames_failed
    assert after.frames_received - before.frames_received == len(sent)
    assert len(user.received["~/status"]) == len(sent) - (after.frames_failed - before.frames_failed)
    (event,) = {status.event for status in user.received["~/status"] if status.event}
    assert event.startswith("out of memory: ")
    assert verdicts(diagnostics, "/stream", DiagnosticStatus.ERROR)[-1].message.startswith(event)
    assert after.policy == CacheConfig().policy and 0 < after.tokens <= after.budget_tokens
    diagnostics.clear()
    assert user.set_parameters(cache__policy="xstream", cache__budget_tokens=150).successful
    assert user.exchange(user.image()).budget_tokens == 150
    user.until(lambda: verdicts(diagnostics, "/stream", DiagnosticStatus.OK))


# Time


def test_stamps_that_repeat_or_are_zero(user):
    before = user.exchange(user.image())
    for stamp in 3 * [stamp_ns(before.header)]:
        image = user.image()
        user.restamp(image, stamp)
        user.images.publish(image)
    zeros = [user.image() for _ in range(3)]
    for image in zeros:
        user.restamp(image, 0)
        user.images.publish(image)
    after = user.exchange(user.image())
    assert user.stamps("~/status")[-2:] == [0, stamp_ns(after.header)]
    assert (after.frame, after.resets) == (1, before.resets + 1)  # the first of the zeros began a world
    assert after.frames_late == before.frames_late + 5


def test_a_bag_in_a_loop_gives_the_same_poses_in_each(user):
    user.reset()
    images = [user.image(seed) for seed in range(30)]
    stamps = [stamp_ns(image.header) for image in images]
    loops, compared = [], ("~/status", "~/odometry", "~/path")
    for _ in range(3):
        for messages in user.received.values():
            messages.clear()
        for image in images:
            user.images.publish(image)
        user.until(lambda: all(len(user.received[topic]) == len(images) for topic in compared))
        assert user.stamps("~/odometry") == stamps
        assert [status.frame for status in user.received["~/status"]] == list(range(len(images)))
        assert len(user.received["~/path"][-1].poses) == len(images)
        poses = [msg.pose.pose for msg in user.received["~/odometry"]]
        loops.append([(p.position.x, p.position.y, p.position.z, p.orientation.w) for p in poses])
    assert "went back by" in user.received["~/status"][0].event
    assert loops[0] == loops[1] == loops[2]
    assert len(set(loops[0])) == len(images)


# Simulated time and the camera's mounting. The tests follow one upon the other.


@pytest.fixture(scope="module")
def robot(nodes, start_client):
    return Robot(nodes[1], start_client("/sim"))


class Robot:
    """Around the second node: its clock, its transforms, its camera."""

    def __init__(self, node, client):
        self.node, self.client = node, client
        self.diagnostics = client.listen(DiagnosticArray, "/diagnostics")
        self._clock = client.node.create_publisher(Clock, "/clock", 10)
        self._tf = client.node.create_publisher(TFMessage, "/tf", 100)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._tf_static = client.node.create_publisher(TFMessage, "/tf_static", latched)
        client.until(lambda: client.images.get_subscription_count() and self._tf.get_subscription_count())

    def set_clock(self, now_ns: int) -> None:
        """Waits until the node goes by that time, which the stamps of its diagnostics say."""
        msg = Clock()
        msg.clock.sec, msg.clock.nanosec = divmod(now_ns, SECOND)

        def arrived():
            self._clock.publish(msg)
            return self.times()[-1:] == [now_ns]

        self.client.until(arrived)

    def times(self) -> list[int]:
        """Stamps of the node's diagnostics, ns."""
        return [stamp_ns(array.header) for array in self.diagnostics if array.status[0].name == "/sim/stream"]

    def mount(self, child: str, stamp: int = 0, static: bool = False) -> None:
        transform = TransformStamped(child_frame_id=child)
        transform.header.frame_id = "base"
        transform.header.stamp.sec, transform.header.stamp.nanosec = divmod(stamp, SECOND)
        transform.transform.translation.x = 0.3
        rotation = transform.transform.rotation
        rotation.x, rotation.y, rotation.z, rotation.w = -0.5, 0.5, -0.5, 0.5
        (self._tf_static if static else self._tf).publish(TFMessage(transforms=[transform]))

    def look(self, stamp: int, camera: str):
        """The status that answers an image of that stamp; whether it came with a pose."""
        image = self.client.image(stamp % 97)
        image.header.frame_id = camera
        self.client.restamp(image, stamp)
        status = self.client.exchange(image)
        return status, stamp in self.client.stamps("~/odometry")

    def look_mounted(self, stamp: int, camera: str):
        """From that stamp on images with transforms until one is placed; its stamp, and the status."""
        while True:
            stamp += SECOND // 100
            self.mount(camera, stamp)
            self.client.until(lambda: True)
            status, placed = self.look(stamp, camera)
            if placed:
                return stamp, status


def test_without_its_mounting_there_is_no_pose_and_with_it_there_is(robot):
    client, node = robot.client, robot.node
    statuses = [client.exchange(client.image(seed)) for seed in range(20)]
    assert [status.frame for status in statuses] == list(range(20))
    assert statuses[-1].frames_unplaced == 20
    assert not any(client.received[topic] for topic in OUTPUTS)
    assert "base" not in {t.child_frame_id for msg in client.received["/tf"] for t in msg.transforms}
    reason = "the camera's mounting on base is not known: TF has no frame 'base'"
    warnings = warned(node, f"nothing published: {reason}")
    assert 1 <= len(warnings) < 5
    assert "static_transform_publisher; in a bag /tf_static) or leave base_frame empty" in warnings[0]
    client.until(lambda: robot.times() and reason in verdicts(robot.diagnostics, "/sim/stream")[-1].message)
    assert verdicts(robot.diagnostics, "/sim/stream")[-1].level == DiagnosticStatus.WARN

    robot.mount("lens", static=True)
    client.until(lambda: client.exchange(client.image()) and client.received["~/odometry"])
    first = client.received["~/odometry"][0]
    assert (first.header.frame_id, first.child_frame_id) == ("odom", "base")
    client.until(lambda: client.received["~/path"])
    assert len(client.received["~/path"][0].poses) == 1
    unplaced = client.received["~/status"][-1].frames_unplaced
    assert client.exchange(client.image()).frames_unplaced == unplaced
    client.until(lambda: client.stamp in client.stamps("~/odometry"))


def test_clock_that_jumps_takes_the_transforms_with_it(robot):
    client, camera = robot.client, "swivel"  # on a joint: no static transform
    assert client.set_parameters(camera_frame=camera).successful
    day = client.stamp + 10 * SECOND
    robot.set_clock(day)
    later, before = robot.look_mounted(day, camera)
    status, placed = robot.look(later + SECOND // 100, camera)  # the transform is new enough
    assert placed and status.frame == before.frame + 1

    robot.set_clock(day - 100 * SECOND)  # back
    status, placed = robot.look(later + SECOND // 50, camera)
    assert not placed and status.resets == before.resets
    status, placed = robot.look(day - 100 * SECOND, camera)
    assert not placed and status.frame == 0 and status.resets == before.resets + 1
    assert "the stamp went back by 100." in status.event
    client.received["~/path"].clear()
    stamp, first = robot.look_mounted(day - 100 * SECOND, camera)
    assert robot.look(stamp + SECOND // 100, camera)[1]
    client.until(lambda: client.received["~/path"][-1:] and len(client.received["~/path"][-1].poses) == 2)
    assert all(stamp_ns(pose.header) < day - 90 * SECOND for pose in client.received["~/path"][-1].poses)

    robot.set_clock(day + 1000 * SECOND)  # forward
    status, placed = robot.look(day + 1000 * SECOND, camera)
    assert not placed and status.resets == first.resets  # the newest transform is too old; the world goes on
    assert "older than the time asked for" in complaint(robot)
    _, status = robot.look_mounted(day + 1000 * SECOND, camera)
    assert status.resets == first.resets


def complaint(robot):
    """What the next diagnostics say."""
    seen = len(robot.times())
    robot.client.until(lambda: len(robot.times()) > seen)
    return verdicts(robot.diagnostics, "/sim/stream")[-1].message


def test_clock_that_stands_still_stops_nothing(robot):
    client, camera = robot.client, "lens"  # mounted statically
    assert client.set_parameters(camera_frame=camera).successful
    now = robot.times()[-1]
    stamp = stamp_ns(client.received["~/status"][-1].header)
    seen = len(robot.times())
    while len(robot.times()) < seen + 3:
        stamp += SECOND // 100
        assert robot.look(stamp, camera)[0].frames_rejected == 0
    client.until(lambda: stamp in client.stamps("~/odometry"))
    assert set(robot.times()[seen:]) == {now}


# Last: the first node does not outlive it.


def test_a_node_that_is_killed_and_started_again_answers(nodes, user, start_node):
    before = user.exchange(user.image())
    with user.flow() as sent:
        user.until(lambda: len(sent) == 10)
        nodes[0].kill()
        user.until(lambda: len(sent) == 20)
        node = start_node(**SMALL)
        user.until(lambda: user.received["~/status"][-1].frames_received < before.frames_received)
    user.settle()
    status = user.exchange(user.image())
    assert status.frame == status.frames_received - 1
    assert user.set_parameters(path_length=5).successful
    assert user.reset().success
    assert user.exchange(user.image()).frame == 0
    assert "Traceback" not in node.output()
