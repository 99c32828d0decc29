# SPDX-License-Identifier: Apache-2.0
"""target_latency_ms and /diagnostics of the node as it runs, with targets that every machine misses or meets."""

import math
from itertools import pairwise
from statistics import median

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from xsvggt_ros.msg import StreamStatus

from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.ros.load_shedding import LEVELS, PATIENCE, RECENT
from xsvggt_ros.status import NO_CAMERA_INFO

BUDGET = 136  # tokens: eight frames; a quarter of it is the floor
MISSED, MET = 0.001, 1e6  # ms
WIDTH, HEIGHT = 56, 42


@pytest.fixture(scope="module")
def node(start_node, client):
    settings = dict(device="cpu", image_width=WIDTH, queue="all", queue_size=1000, path_length=50)
    node = start_node(**settings, point_stride=1, cache__budget_tokens=BUDGET)
    client.connect()
    return node


@pytest.fixture
def user(node, client):
    """The client, with every image answered and no target."""
    assert client.set_parameters(target_latency_ms=0.0).successful
    client.exchange(client.image())
    client.exchange(client.image())
    client.settle()
    return client


@pytest.fixture(scope="module")
def verdicts(client):
    """What /diagnostics says of the node, as (stamp [s], status)."""
    arrays = client.listen(DiagnosticArray, "/diagnostics")
    return lambda: [(stamp_ns(array.header) / 1e9, status) for array in arrays for status in array.status]


def exchange(user, count):
    """Statuses of so many images more, one after the other."""
    return [user.exchange(user.image(seed)) for seed in range(count)]


def check_outputs(user, statuses):
    """What came with each frame is what its level gives out."""
    user.until(lambda: user.stamps("~/odometry")[-1:] == [user.stamp])
    clouds = dict(zip(user.stamps("~/points"), user.received["~/points"], strict=True))
    depths = set(user.stamps("~/depth/image"))
    for status in statuses:
        level, stamp = LEVELS[status.shed_level], stamp_ns(status.header)
        assert status.budget_tokens == BUDGET * level.budget
        dense = status.frame % level.publish_every == 0
        assert (stamp in depths) == (stamp in clouds) == dense
        assert stamp in user.stamps("~/odometry")
        if dense:
            size = (clouds[stamp].height, clouds[stamp].width)
            assert size == (math.ceil(HEIGHT / level.point_stride), math.ceil(WIDTH / level.point_stride))


def test_a_target_that_is_missed_costs_a_level_after_the_other(node, user, verdicts, figures):
    assert user.set_parameters(target_latency_ms=MISSED).successful
    statuses = exchange(user, RECENT * len(LEVELS) + 3)
    expected = [level.number for level in LEVELS for _ in range(RECENT)] + 3 * [len(LEVELS) - 1]
    assert [status.shed_level for status in statuses] == expected
    check_outputs(user, statuses)
    for level in LEVELS[1:]:
        assert f"latency against target_latency_ms 0: now {level.description}" in node.output()
    seen = len(verdicts())
    user.until(lambda: len(verdicts()) > seen)
    verdict = verdicts()[-1][1]
    assert verdict.level == DiagnosticStatus.WARN
    assert verdict.message.startswith(f"too slow for target_latency_ms: {LEVELS[-1].description}")
    for level in LEVELS:
        ages = [1000 * status.age_seconds for status in statuses if status.shed_level == level.number]
        figures(f"age of the outputs on level {level.number} ({level.description})", f"{median(ages):.1f} ms")


def test_a_target_that_is_met_again_gives_all_back(user):
    assert user.set_parameters(target_latency_ms=MISSED).successful
    exchange(user, 2 * RECENT)
    assert user.set_parameters(target_latency_ms=MET).successful
    statuses = exchange(user, 2 * (RECENT + PATIENCE) + 1)
    levels = [status.shed_level for status in statuses]
    assert levels[0] == 2 and levels[-1] == 0
    assert all(before - after in (0, 1) for before, after in pairwise(levels))
    assert levels.count(1) >= PATIENCE
    check_outputs(user, statuses)


def test_without_a_target_nothing_is_given_up_any_more(user):
    assert user.set_parameters(target_latency_ms=MISSED).successful
    assert exchange(user, 6 * RECENT + 1)[-1].shed_level == 6
    assert user.set_parameters(target_latency_ms=0.0).successful
    assert [status.shed_level for status in exchange(user, 3)] == [6, 0, 0]
    check_outputs(user, user.received["~/status"][-2:])


def test_diagnostics_come_each_second_and_agree_with_the_status(user, verdicts, figures):
    status = exchange(user, 5)[-1]
    seen = len(verdicts())
    user.until(lambda: len(verdicts()) >= seen + 4)  # one more, and no image may have come for long
    latest = verdicts()[seen:]
    period = (latest[-1][0] - latest[0][0]) / (len(latest) - 1)
    figures("period of /diagnostics, over three", f"{period:.3f} s")
    assert period == pytest.approx(1, abs=0.3)
    assert {verdict.level for _, verdict in latest} == {DiagnosticStatus.OK}
    assert latest[-1][1].name == "/stream"
    assert latest[-1][1].message.startswith(NO_CAMERA_INFO)
    values = {pair.key: pair.value for pair in latest[-1][1].values}
    assert set(values) == set(StreamStatus.get_fields_and_field_types()) - {"header"}
    for name, text in values.items():
        value = getattr(status, name)
        if name == "input_rate":
            continue  # of the seconds before, which are others
        if isinstance(value, float):
            assert float(text) == pytest.approx(value, rel=1e-5, nan_ok=True), name
        else:
            assert text == str(value), name


def test_diagnostics_warn_once_of_an_image_that_cannot_be_used(user, verdicts):
    seen = len(verdicts())
    bad = user.image()
    bad.encoding = "64FC7"
    user.images.publish(bad)
    user.exchange(user.image())
    user.until(lambda: len(verdicts()) >= seen + 3)
    warnings = [verdict.message for _, verdict in verdicts()[seen:] if verdict.level == DiagnosticStatus.WARN]
    assert [warning.split(" is ")[0] for warning in warnings] == ["1 images unusable: image encoding '64FC7'"]
    assert verdicts()[-1][1].level == DiagnosticStatus.OK
