# SPDX-License-Identifier: Apache-2.0
"""Depth is computed while someone subscribes to it, where that is asked for; poses go on without."""

import numpy as np
import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray
from sensor_msgs.msg import Image

from xsvggt_ros.messages.decode import stamp_ns


@pytest.fixture(scope="module")
def user(start_node, start_client):
    """A client that wants to know where the camera is, and nothing else."""
    client = start_client(topics=("/tf", "~/odometry", "~/status"))
    settings = dict(device="cpu", dtype="float32", queue="all", queue_size=300)
    start_node(**settings, dense="subscribed", refine=False)

    def connected():
        client.images.publish(client.image())
        return all(client.received.values())

    client.until(lambda: client.images.get_subscription_count())
    client.until(connected)
    return client


def test_depth_comes_and_goes_with_its_subscribers(user):
    diagnostics = user.listen(DiagnosticArray, "/diagnostics")
    status = user.exchange(user.image())
    assert not status.dense
    user.until(lambda: user.stamp in user.stamps("/tf"))
    user.until(lambda: diagnostics and "depth: not computed, nobody subscribes" in diagnostics[-1].status[0].message)
    depths = user.listen(Image, "stream/depth/image")
    subscription = list(user.node.subscriptions)[-1]
    user.until(lambda: user.exchange(user.image()).dense)
    user.until(lambda: user.stamp in [stamp_ns(depth.header) for depth in depths])
    assert np.isfinite(np.frombuffer(depths[-1].data, np.float32)).all()
    user.node.destroy_subscription(subscription)
    user.until(lambda: not user.exchange(user.image()).dense)


def test_it_is_there_for_nobody_where_it_is_always_asked_for(user):
    assert user.set_parameters(dense="always").successful
    assert user.exchange(user.image()).dense
    assert user.set_parameters(dense="subscribed").successful
    assert not user.exchange(user.image()).dense


def test_poses_by_what_images_show_need_it_and_the_status_says_by_how_many_points(user):
    before = user.exchange(user.image())
    assert user.set_parameters(refine=True).successful
    statuses = [user.exchange(user.image()) for _ in range(3)]
    assert user.set_parameters(refine=False).successful
    after = user.exchange(user.image())
    assert [status.dense for status in (before, *statuses, after)] == [False, True, True, True, False]
    assert statuses[-1].refined_points >= 50 and 0 < statuses[-1].refine_seconds < statuses[-1].step_seconds
    assert before.refined_points == after.refined_points == 0
