# SPDX-License-Identifier: Apache-2.0
"""The node's states, driven from outside as `ros2 lifecycle` and a lifecycle manager do."""

import re
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy")

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from support.lifecycle import Lifecycle

from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.ros.node import refuse_unknown_transitions

MIB = 2**20
CACHE_MIB = 200  # far more than weights, allocator and all else
SMALL = dict(device="cpu", image_width=56, queue="all", queue_size=1000)
CACHE = dict(cache__budget_tokens=0, cache__budget_mib=float(CACHE_MIB), cache__key_bits=16, cache__value_bits=16)
# Transitions from a state back to unconfigured.
BACK = {State.PRIMARY_STATE_ACTIVE: ["DEACTIVATE", "CLEANUP"], State.PRIMARY_STATE_INACTIVE: ["CLEANUP"]}


@pytest.fixture(scope="module")
def node(start_node):
    return start_node(**SMALL, **CACHE, autostart="false")


@pytest.fixture
def lifecycle(node, client):
    """Of the node, which is unconfigured."""
    lifecycle = Lifecycle(client)
    lifecycle.wait()
    for transition in BACK.get(lifecycle.state(), []):
        assert lifecycle.change(transition)
    assert lifecycle.state() == State.PRIMARY_STATE_UNCONFIGURED
    client.set_parameters(weights="")
    return lifecycle


def started(lifecycle) -> bool:
    return lifecycle.change("CONFIGURE") and lifecycle.change("ACTIVATE")


def subscriptions(client) -> set[str]:
    """Topics that the node reads."""
    return {name for name, _ in client.node.get_subscriber_names_and_types_by_node("stream", "/")}


def test_the_node_waits_for_transitions_where_it_is_told_to(lifecycle, node, client):
    assert lifecycle.state() == State.PRIMARY_STATE_UNCONFIGURED
    client.until(lambda: "/image" not in subscriptions(client))
    assert not lifecycle.change("ACTIVATE")
    assert lifecycle.state() == State.PRIMARY_STATE_UNCONFIGURED
    assert lifecycle.change("CONFIGURE")
    assert lifecycle.state() == State.PRIMARY_STATE_INACTIVE
    assert "/image" not in subscriptions(client)
    assert lifecycle.change("ACTIVATE")
    assert lifecycle.state() == State.PRIMARY_STATE_ACTIVE
    client.connect()
    client.until(lambda: {"/image", "/camera_info"} <= subscriptions(client))


def test_weights_that_cannot_be_loaded_leave_the_node_usable(lifecycle, node, client, tmp_path):
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    reasons = {"/nowhere/model.pt": "no weights file at", truncated: "not a complete safetensors"}
    for weights, reason in reasons.items():
        assert client.set_parameters(weights=str(weights)).successful
        assert not lifecycle.change("CONFIGURE")
        assert lifecycle.state() == State.PRIMARY_STATE_UNCONFIGURED
        client.until(lambda reason=reason: reason in node.output())
    assert client.set_parameters(weights="").successful
    assert started(lifecycle)
    client.connect()
    assert "Traceback" not in node.output()


def test_what_is_read_when_configured_is_refused_from_then_on(lifecycle, client):
    assert client.set_parameters(image_width=70).successful
    assert lifecycle.change("CONFIGURE")
    refused = client.set_parameters(image_width=56)
    assert not refused.successful
    assert "image_width can only change before the node is configured" in refused.reason
    assert client.set_parameters(point_stride=1).successful
    assert lifecycle.change("ACTIVATE")
    client.connect()
    client.exchange(client.image())
    client.until(lambda: client.received["~/depth/image"])
    assert client.received["~/depth/image"][-1].width == 70
    assert lifecycle.change("DEACTIVATE") and lifecycle.change("CLEANUP")
    assert client.set_parameters(image_width=56).successful


def test_deactivated_the_node_reads_and_gives_out_nothing_and_then_goes_on(lifecycle, client):
    assert started(lifecycle)
    client.connect()
    before = client.exchange(client.image())
    for seed in range(100):
        client.images.publish(client.image(seed))
    assert lifecycle.change("DEACTIVATE")  # with most of them waiting
    client.until(lambda: not client.images.get_subscription_count())
    for messages in client.received.values():
        messages.clear()
    unseen = client.image()
    client.images.publish(unseen)
    assert lifecycle.change("ACTIVATE")
    client.until(client.images.get_subscription_count)
    client.until(lambda: client.images.publish(client.image()) or client.received["~/status"])
    client.settle()
    after = client.exchange(client.image())
    assert after.frame > before.frame  # the same world
    assert after.resets == before.resets
    assert stamp_ns(unseen.header) not in client.stamps("~/status")
    answered = after.frame - before.frame
    assert after.frames_received - before.frames_received == answered + after.frames_replaced - before.frames_replaced


def test_cleanup_gives_the_memory_back_every_time(lifecycle, node, client, figures):
    rounds = []
    for _ in range(3):
        assert started(lifecycle)
        client.connect()
        active = node.memory()["Anonymous"]
        status = client.exchange(client.image())
        assert status.cache_bytes == pytest.approx(CACHE_MIB * MIB, rel=1e-4)
        assert status.resets == 0
        assert lifecycle.change("DEACTIVATE") and lifecycle.change("CLEANUP")
        rounds.append((active, node.memory()["Anonymous"]))
    text = ", ".join(f"{active / MIB:.0f} -> {clean / MIB:.0f}" for active, clean in rounds)
    figures(f"anonymous memory active -> cleaned up, cache {CACHE_MIB} MiB, three rounds [MiB]", text)
    for active, clean in rounds:
        assert active - clean > CACHE_MIB * MIB
    assert rounds[-1][1] - rounds[0][1] < 25 * MIB  # the weights alone are more, each time


def test_the_node_starts_by_itself_says_what_runs_and_ends_when_shut_down(lifecycle, start_node, start_client, node):
    lifecycle.ask("UNCONFIGURED_SHUTDOWN")  # the node of the tests above
    assert node.exit_code() == 0, node.output()

    node, client = start_node("stream", {"__ns": "/own"}, **SMALL), start_client("/own")
    lifecycle = Lifecycle(client)
    lifecycle.wait()
    client.until(lambda: lifecycle.state() == State.PRIMARY_STATE_ACTIVE)
    client.connect()
    (line,) = (line for line in node.output().splitlines() if "configured:" in line)
    pattern = (
        r"demo with (?P<weights>.+), on (?P<device>cpu), torch\.(?P<dtype>\w+), attention by (?P<attention>\w+); "
        r".*? is (?P<per_frame>\d+) tokens, and the cache \(coreset\) keeps "
        r"(?P<tokens>\d+) tokens per layer = (?P<frames>[\d.]+) frames = (?P<mib>[\d.]+) MiB"
    )
    said = re.search(pattern, line)
    assert said, line
    status = client.exchange(client.image())  # the image is 4:3
    assert int(said["tokens"]) == status.budget_tokens
    assert float(said["frames"]) == pytest.approx(status.budget_tokens / int(said["per_frame"]), abs=0.05)
    assert float(said["mib"]) == pytest.approx(status.cache_bytes / MIB, abs=0.05)
    lifecycle.ask("ACTIVE_SHUTDOWN")
    assert node.exit_code() == 0, node.output()
    assert "Traceback" not in node.output()


def test_a_transition_that_rclpy_raises_at_is_refused_with_its_reason():
    """As Jazzy's does, where Kilted's says that it failed."""

    def change(request, response):
        raise RuntimeError(f"no transition {request.transition.id} in this state")

    said = []
    service = SimpleNamespace(srv_type=ChangeState, callback=change)
    others = [SimpleNamespace(srv_type=GetState, callback=None)]
    logger = SimpleNamespace(error=said.append)
    refuse_unknown_transitions(SimpleNamespace(services=[service, *others], get_logger=lambda: logger))
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_ACTIVATE))
    assert not service.callback(request, ChangeState.Response(success=True)).success
    assert said == ["transition 3 is refused: no transition 3 in this state"]
