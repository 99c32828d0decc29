# SPDX-License-Identifier: Apache-2.0
"""Images that the node takes in together: each has its outputs, whatever comes between."""

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray
from support.lifecycle import Lifecycle

from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.topics import TOPICS

CHUNK = 3


@pytest.fixture(scope="module")
def lifecycle(start_node, client):
    start_node(device="cpu", image_width=56, queue="all", queue_size=300)
    client.connect()
    return Lifecycle(client)


@pytest.fixture
def user(lifecycle, client):
    """The client of a node that is active and takes CHUNK images in at once; none waits."""
    assert client.set_parameters(cache__chunk=1).successful
    client.exchange(client.image())
    client.settle()
    assert client.set_parameters(cache__chunk=CHUNK).successful
    return client


def send(user, count):
    """Stamps of as many images, sent."""
    images = [user.image(seed) for seed in range(count)]
    for image in images:
        user.images.publish(image)
    return [stamp_ns(image.header) for image in images]


def wait_for(user, stamps):
    """Until the outputs of these images have come, and of no others."""
    user.until(lambda: all(user.stamps(topic)[-1:] == stamps[-1:] for topic in TOPICS))
    for topic in TOPICS:
        assert user.stamps(topic) == stamps, topic


def test_the_outputs_of_a_chunk_come_with_its_last_image_each_with_its_own_stamp(user):
    stamps = send(user, 2 * CHUNK + 1)
    wait_for(user, stamps[:-1])
    statuses = user.received["~/status"]
    first = statuses[0].frame
    assert [s.frame for s in statuses] == list(range(first, first + 2 * CHUNK))
    assert "cache settings changed" in statuses[0].event and not any(s.event for s in statuses[1:])
    assert all(s.frames_waiting == 0 and s.quantizer == "rotated" for s in statuses[CHUNK - 1 :: CHUNK])
    assert user.set_parameters(cache__chunk=1).successful
    wait_for(user, stamps + send(user, 1))  # another chunk takes in what waits


def test_what_waits_when_the_world_is_reset_is_taken_in_before(user):
    stamps = send(user, CHUNK + 1)
    wait_for(user, stamps[:-1])
    before = user.received["~/status"][-1]
    assert user.reset().success
    stamps += send(user, CHUNK)
    wait_for(user, stamps)
    last, *world = user.received["~/status"][CHUNK:]
    assert last.frame == before.frame + 1
    assert [s.frame for s in world] == list(range(CHUNK))
    assert world[-1].resets == before.resets + 1


def test_what_waits_when_the_node_is_deactivated_is_taken_in_before(lifecycle, user):
    diagnostics = user.listen(DiagnosticArray, "/diagnostics")
    stamps = send(user, CHUNK - 1)
    waiting = ("frames_waiting", str(CHUNK - 1))
    user.until(lambda: any(waiting in [(v.key, v.value) for v in a.status[0].values] for a in diagnostics))
    assert not user.received["~/status"]
    assert lifecycle.change("DEACTIVATE")
    wait_for(user, stamps)
    assert lifecycle.change("ACTIVATE")
    for messages in user.received.values():
        messages.clear()
    assert user.set_parameters(cache__chunk=1).successful
    user.connect()  # the first images may come before the node's new subscription is known


def test_a_cache_that_the_machine_has_no_memory_for_is_refused_when_it_is_set(user):
    wait_for(user, send(user, CHUNK))
    before = user.received["~/status"][-1]
    user.settle()
    result = user.set_parameters(cache__budget_tokens=10**12, cache__key_bits=8)
    assert not result.successful
    assert "MiB; lower cache.budget_tokens" in result.reason
    wait_for(user, send(user, CHUNK))
    status = user.received["~/status"][-1]
    assert (status.budget_tokens, status.key_bits, status.event) == (before.budget_tokens, before.key_bits, "")


def test_a_cache_that_the_machine_has_no_memory_for_ends_the_launch_with_the_reason(start_node):
    node = start_node("large", device="cpu", cache__budget_tokens=10**12)
    assert node.exit_code() == 1
    (error,) = [line for line in node.output().splitlines() if "[ERROR]" in line]
    assert "takes" in error and "has room for" in error and "; lower cache.budget_tokens" in error
    assert "Traceback" not in node.output()
