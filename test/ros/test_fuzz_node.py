# SPDX-License-Identifier: Apache-2.0
"""Random messages and parameters to a node in use: bad ones are counted or refused, and the next good image works.

5,000 of the 20,000 messages with --endurance, a tenth of them without; test/test_fuzz.py has the others.
"""

import math
import signal

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from hypothesis import strategies as st
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from support import fuzz
from support.lifecycle import Lifecycle

from xsvggt_ros.camera import Rectifier
from xsvggt_ros.config import NodeConfig, StreamConfig
from xsvggt_ros.messages.decode import decode_image
from xsvggt_ros.messages.topics import TOPICS
from xsvggt_ros.preprocess import STEEPEST, Resize
from xsvggt_ros.settings import settings, values

WIDTH = 56  # of the network's input: small, so that a step is short
# Its world has a name that no random frame has: an image of such a frame would not be placed.
START = dict(device="cpu", dtype="float32", queue="all", queue_size=500, image_width=WIDTH, world_frame="fuzz_world")
CAMERA = "lens"
HEIGHT_WIDTH = (12, 16)  # of good images
SIZES = st.integers(0, 9).flatmap(lambda n: st.just(HEIGHT_WIDTH) if n else fuzz.sizes(20))
LATENESS, GAP = (round(value * 1e9) for value in (StreamConfig.max_lateness, StreamConfig.max_gap))  # ns
BATCH = 50  # messages sent without waiting: fewer than the publisher keeps


class Judge:
    """What must become of images in their order, told without the node."""

    def __init__(self, size_of):
        self.answered: list[int] = []  # stamps, ns
        self.rejected = self.late = 0
        self._size_of = size_of  # (h, w) of an image that can be decoded, else None
        self._size: tuple[int, int] | None = None  # of the images of this world
        self._strays: list[tuple[int, int]] = []
        self._first, self._newest = math.inf, -math.inf  # stamps of this world
        self._before_gap = -math.inf  # stamp of the image before the newest, if that came more than GAP later

    def __call__(self, msg) -> None:
        size, time = self._size_of(msg), msg.header.stamp
        stamp = time.sec * 10**9 + time.nanosec
        # At least one row of patches, and no line.
        usable = size and round(size[0] * WIDTH / size[1] / 14) and size[0] <= STEEPEST * size[1]
        if not usable or time.sec < 0 or time.nanosec >= 10**9 or msg.header.frame_id != CAMERA or self._stray(size):
            self.rejected += 1
            return
        goes_on = 0 < stamp - self._before_gap <= GAP  # the newest was astray
        behind = self._newest - stamp
        if not behind or (0 < behind <= LATENESS and stamp != self._first and not goes_on):
            self.late += 1
            return
        new_world = size != self._size or (behind > 0 and not goes_on)
        if new_world:
            self._first = stamp
        self._before_gap = -math.inf if new_world or -behind <= GAP else self._newest
        self.answered.append(stamp)
        self._newest, self._size, self._strays = stamp, size, []

    def _stray(self, size) -> bool:
        if self._size in (None, size):
            self._strays = []
            return False
        self._strays = [*(stray for stray in self._strays if stray == size), size]
        return len(self._strays) < 3


def raw_size(msg):
    return None if fuzz.rows_of(msg, fuzz.PIXEL_BYTES) is None else (msg.height, msg.width)


def compressed_size(msg):
    try:
        return decode_image(msg).shape[:2]
    except ValueError:
        return None


def compress(msg: Image) -> CompressedImage:
    encoded = cv2.imencode(".png", decode_image(msg)[..., ::-1])[1]
    return CompressedImage(header=msg.header, format="png", data=fuzz.byte_array(encoded))


def exchange(client, send, messages):
    """The status that answers the last of the messages, once all other outputs of its image are there too."""
    for msg in messages:
        send(msg)
    client.until(lambda: all(client.stamps(topic)[-1:] == [client.stamp] for topic in TOPICS))
    return client.received["~/status"][-1]


def forget(client) -> None:
    for received in client.received.values():
        received.clear()


def check_batches(client, send, size_of, messages, good):
    """Sends batches of messages, good ones at the end: all are counted, and only answers to good ones come."""
    judge, first = Judge(size_of), good()
    judge(first)
    before = exchange(client, send, [first])
    for start in range(0, len(messages), BATCH):
        forget(client)
        # As many good ones as make a world, should the last have been of another size.
        batch = [*messages[start : start + BATCH], *(good() for _ in range(3))]
        judge.answered, judge.rejected, judge.late = [], 0, 0
        for msg in batch:
            judge(msg)
        after = exchange(client, send, batch)
        assert after.frames_received - before.frames_received == len(batch)
        assert after.frames_rejected - before.frames_rejected == judge.rejected
        assert after.frames_late - before.frames_late == judge.late
        for topic in TOPICS:
            assert client.stamps(topic) == judge.answered, topic
        before = after


def check_end(node) -> None:
    node.send_signal(signal.SIGINT)
    assert node.exit_code() == 0, node.output()
    assert "Traceback" not in node.output()


def stamped(strategy):
    """The messages with random headers: one of ten has the stamp of others, one of ten is of another camera."""
    same = st.integers(0, 9).map(lambda n: fuzz.stamp(5) if n == 0 else None)
    camera = st.integers(0, 9).map(lambda n: CAMERA if n else None)

    def stamp(drawn):
        msg, msg.header, time, frame_id = drawn
        msg.header.stamp = time or msg.header.stamp
        msg.header.frame_id = frame_id or msg.header.frame_id
        return msg

    return st.tuples(strategy, fuzz.headers, same, camera).map(stamp)


@pytest.fixture(scope="module")
def node(start_node, client):
    """One node for all tests but those that need it otherwise."""
    node = start_node(**START)
    client.connect()
    yield node
    check_end(node)


@pytest.fixture
def user(node, client):
    """The client of the node, whose settings are those of START."""
    client.reset()  # the next images may be of any size
    client.exchange(client.image())
    client.settle()
    return client


def test_images(user, endurance, figures):
    messages = fuzz.drawn(endurance, stamped(fuzz.images(wrong=0.9, sizes=SIZES)), 3000)
    user.reset()
    check_batches(user, user.images.publish, raw_size, messages, lambda: user.image(0, *HEIGHT_WIDTH))
    figures("random Images sent to a node in use", len(messages))


def test_compressed_images(start_node, start_client, endurance, figures):
    client = start_client("packed")
    node = start_node(**START, remappings={"__ns": "/packed"}, image_transport="compressed")
    images = client.node.create_publisher(CompressedImage, "image/compressed", QoSProfile(depth=200))

    def good():
        return compress(client.image(0, *HEIGHT_WIDTH))

    def connected():
        images.publish(good())
        return all(client.received.values())

    client.until(connected)
    client.settle()
    damaged = fuzz.compressed(SIZES).filter(lambda drawn: drawn[2].split()[1] != "none")
    drawn = stamped(damaged.map(lambda drawn: drawn[0]))
    messages = fuzz.drawn(endurance, drawn, 1000)
    check_batches(client, images.publish, compressed_size, messages, good)
    figures("random CompressedImages sent to a node in use", len(messages))
    check_end(node)


def test_camera_infos(user, endurance, figures):
    """The newest of many is used, if it can be: its K comes out with the next images, as scaled as they are."""
    messages = fuzz.drawn(endurance, fuzz.camera_infos(), 1000)
    user.reset()
    used = 0
    for first in range(0, len(messages), 10):  # as many as the publisher keeps
        batch = messages[first : first + 10]
        if first % 20:  # what is drawn depends on the modules there are: some are used in any case
            batch.sort(key=lambda info: intrinsics_of(info) is not None)
        for info in batch:
            user.camera_infos.publish(info)
        wanted = intrinsics_of(batch[-1])
        used += wanted is not None
        check_intrinsics(user, batch[-1], wanted)
    assert used > len(messages) / 10 / 4
    figures("random CameraInfos sent to a node in use", len(messages))


def intrinsics_of(info):
    """K [3, 3] that the node is to make of it; None: it cannot be used."""
    try:
        _, K = Rectifier()(np.zeros((*fuzz.SIZE, 3), np.uint8), info, True)
    except ValueError:
        return None
    return Resize.of(*fuzz.SIZE, WIDTH, 14).intrinsics(K)


def check_intrinsics(user, info, wanted):
    """That the node comes to use K `wanted`; None: that it works on. The two topics race, and one may lose messages."""

    def of_next_image():
        forget(user)
        user.camera_infos.publish(info)
        exchange(user, user.images.publish, [user.image(height=fuzz.SIZE[0], width=fuzz.SIZE[1])])
        return user.received["~/depth/camera_info"][-1].k.reshape(3, 3)

    for _ in range(20):
        K = of_next_image()
        if wanted is None or np.allclose(K, wanted, rtol=1e-9):
            return
    raise AssertionError(f"{info} should give\n{wanted}, not\n{K}")


# Parameters

ANY = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    fuzz.floats,
    fuzz.names,
    st.binary(max_size=3).map(lambda data: [data[n : n + 1] for n in range(len(data))]),
    st.lists(st.integers(-9, 9), min_size=1, max_size=3),
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=3),
    st.lists(fuzz.names, min_size=1, max_size=3),
    st.none(),
)
LARGE = 300
# Of integers, those that a cache of this machine's memory could just hold are left out: they are many and slow.
INTEGERS = st.integers(-2, LARGE) | st.sampled_from([2**31 - 1, 2**31, 2**53, 2**63 - 1, -(2**63)])

# Values that are allowed may take all the memory of the machine, and minutes.
COSTLY = ("cache.budget_tokens", "cache.camera_window", "cache.query_pool", "image_width")


def random_values(setting):
    """Two of three of the setting's type."""
    drawn = st.integers(0, 2).flatmap(lambda choice: of_type(setting) if choice else ANY)
    if setting.name in COSTLY:
        return drawn.filter(lambda value: type(value) is not int or not LARGE < value <= setting.maximum)
    return drawn


def of_type(setting):
    """Values of the setting's type, allowed or not."""
    bounds = [bound for bound in (setting.minimum, setting.maximum) if bound is not None]
    if setting.type is bool:
        return st.booleans()
    if setting.type is str:
        return st.sampled_from(setting.choices) | fuzz.names if setting.choices else fuzz.names
    if setting.type is int:
        around = [int(bound) + n for bound in bounds for n in (-1, 0, 1)]
        return (
            st.sampled_from([*around, *(setting.choices or ())]) | INTEGERS if around or setting.choices else INTEGERS
        )
    return st.sampled_from([*bounds, *(math.nextafter(bound, 0) for bound in bounds), 0.5]) | fuzz.floats


class ParameterServices:
    """The node's parameters, by its services."""

    def __init__(self, client):
        self._client = client
        self._services = AsyncParameterClient(client.node, "stream")

    def all(self) -> dict:
        names = list(values(NodeConfig()))
        answer = self._client.response(self._services.get_parameters(names))
        return dict(zip(names, map(parameter_value_to_python, answer.values), strict=True))

    def set(self, name: str, value):
        (result,) = self._client.response(self._services.set_parameters([Parameter(name, value=value)])).results
        return result


def same(value, other) -> bool:
    return type(value) is type(other) and value == other


def test_parameters(user, node, endurance, figures):
    """Random values for each: accepted ones are in force and the node works; others get a reason and change nothing."""
    services = ParameterServices(user)
    start = services.all()
    tried = accepted = 0
    for setting in settings(NodeConfig):
        for value in fuzz.drawn(endurance, random_values(setting), 40):
            before = services.all()
            result = services.set(setting.name, value)
            tried, accepted = tried + 1, accepted + result.successful
            if result.successful:
                value = setting.check(value)  # in the setting's own form
                assert same(services.all()[setting.name], value)
                check_in_force(user, node, setting.name, value)
            else:
                assert result.reason.strip(), (setting.name, value)
                assert services.all() == before
            assert setting.live or result.successful <= same(value, start[setting.name])
        assert services.set(setting.name, start[setting.name]).successful
    assert services.all() == start
    user.exchange(user.image())
    user.settle()
    figures("random parameter values sent to a node in use, of which accepted", f"{tried}, {accepted}")


def check_in_force(user, node, name, value) -> None:
    """That the next image is answered, under the setting where its status has it or the log says why not yet."""
    if name == "camera_frame" and value not in ("", CAMERA):
        return  # no image that the user sends is to be answered
    said = reasons_not_to(node)
    forget(user)
    status = user.exchange(user.image())
    fields = {"cache.policy": "policy", "cache.key_bits": "key_bits", "cache.value_bits": "value_bits"}
    if name in fields:
        assert getattr(status, fields[name]) == value
    # 0 contradicts the policy, and waits.
    if name == "cache.budget_tokens" and value and reasons_not_to(node) == said:
        assert status.budget_tokens == max(value, status.floor_tokens)


def reasons_not_to(node) -> int:
    """How often the log says that the cache does not follow its settings."""
    return node.output().count("cache settings not applied")


# What may be set before the node is configured; `model: streamvggt` takes gigabytes.
BEFORE = {
    "weights": ["random", "/nowhere", ".", "\n", "x.pt"],
    "device": ["auto", "cuda:77", "xyz", "", "meta"],
    "dtype": ["auto", "bfloat16", "float16"],
    "attention": ["auto", "sdpa", "flash"],
    "compile": ["none", "graph"],
    "model": ["streamvggt"],
    "image_width": [14, 70],
    "point_head": [True],
    "queue_size": [1, 10_000],
    "world_frame": ["lens", "ünïcode", "/x y"],
    "base_frame": ["lens", "ünïcode", "/x y"],
    "scale.source": ["fixed", "camera_height", "odometry", "depth"],
    "scale.parent_frame": ["", "ünïcode"],
    "image_transport": ["compressed"],
}


def check_answered(client, node, compressed) -> None:
    """That images get a status, or the log says why they cannot be used."""
    if compressed:  # another topic, see test_compressed_images
        return
    said = len(node.output())
    forget(client)

    def answered():
        client.images.publish(client.image())
        return client.received["~/status"] or "rejected" in node.output()[said:] or "[ERROR]" in node.output()[said:]

    client.until(answered)


@pytest.mark.slow
def test_parameters_before_the_node_is_configured(start_node, start_client):
    """A node that accepts a value is configured and activated with it, or says why not and can be had otherwise."""
    client = start_client("early")
    node = start_node(**START, remappings={"__ns": "/early"}, autostart="false")
    lifecycle, services = Lifecycle(client), ParameterServices(client)
    lifecycle.wait()
    start = services.all()
    for name, tried in BEFORE.items():
        for value in tried:
            assert services.set(name, value).successful
            said = len(node.output())
            if lifecycle.change("CONFIGURE") and lifecycle.change("ACTIVATE"):
                check_answered(client, node, compressed=value == "compressed")
            else:
                client.until(lambda said=said: "[ERROR]" in node.output()[said:])
            assert "Traceback" not in node.output(), (name, value)
            for transition in ("DEACTIVATE", "CLEANUP"):
                lifecycle.change(transition)
            assert services.set(name, start[name]).successful
    assert lifecycle.change("CONFIGURE") and lifecycle.change("ACTIVATE")
    client.connect()
    check_end(node)
