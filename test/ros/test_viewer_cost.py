# SPDX-License-Identifier: Apache-2.0
"""What a live page costs the node that has it: the same images in turns to a node with and to one without."""

import time
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("viser", reason="the extra `live` is not installed")

from sensor_msgs.msg import Image
from support import live_page
from support.browser import browser
from websockets.exceptions import ConnectionClosed

from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.rooms.sequence import stream

BLOCKS, IMAGES = 20, 20  # in turns; of each block
WARM_UP = 40  # images, so that the caches are full
RATE = 10.0  # images a second


@contextmanager
def receiver(address):
    """A client that takes all that comes and draws nothing."""
    with live_page.client(address) as connection:
        live_page.look(connection)

        def read():
            try:
                while True:
                    connection.recv()
            except ConnectionClosed:
                pass

        Thread(target=read, daemon=True).start()
        yield


@contextmanager
def screen(address):
    """A browser, which draws on this machine's processor."""
    with browser() as user:
        user.open(address)
        user.until(lambda: user.figure("page"))
        yield


class Robot:
    """A node in a namespace of its own, and who sends it images."""

    def __init__(self, name, start_node, start_client, **parameters):
        self.process = start_node(remappings={"__ns": f"/{name}"}, device="cpu", publish_tf=False, **parameters)
        self.client = start_client(name, topics=("~/status",))
        # Of each block, seconds an image: the median step and the fastest, and processor time of the stepping thread.
        self.median: list[float] = []
        self.fastest: list[float] = []
        self.processor: list[float] = []

    def send(self, image):
        client, before = self.client, len(self.client.received["~/status"])
        msg = Image(height=image.shape[0], width=image.shape[1], encoding="rgb8", step=3 * image.shape[1])
        msg.data.frombytes(image.tobytes())
        msg.header.frame_id = "lens"
        client.stamp += round(1e9 / RATE)
        client.restamp(msg, client.stamp)
        client.images.publish(msg)
        client.until(lambda: len(client.received["~/status"]) > before)
        assert stamp_ns(client.received["~/status"][-1].header) == client.stamp
        return client.received["~/status"][-1].step_seconds

    def block(self, images):
        before, steps = self._threads(), []
        for image in images:
            due = time.monotonic() + 1 / RATE
            steps.append(self.send(image))
            self.client.spin(max(0.0, due - time.monotonic()))
        after = self._threads()
        self.median.append(float(np.median(steps)))
        self.fastest.append(min(steps))
        self.processor.append(max(after[thread] - before.get(thread, 0.0) for thread in after) / len(images))

    def _threads(self):
        """Seconds of the processor that each thread has had (Linux)."""
        files = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return {file.parent.name: int(file.read_text().split()[0]) / 1e9 for file in files}


@pytest.mark.slow
@pytest.mark.parametrize("watcher", [receiver, screen])
def test_what_a_page_costs_the_steps_of_a_node(watcher, start_node, start_client, endurance, figures):
    if not endurance:
        pytest.skip("measures, for minutes: --endurance")
    rendered = [frame.rgb for frame in stream(0, 60, 320, 240)]
    images = [*rendered, *reversed(rendered)]
    nodes = {"plain": {}, "shown": dict(viewer=True, viewer_port=0)}
    robots = {
        name: Robot(f"{name}_{watcher.__name__}", start_node, start_client, **parameters)
        for name, parameters in nodes.items()
    }
    for robot in robots.values():
        robot.client.until(robot.client.images.get_subscription_count)
        for image in images[:WARM_UP]:
            robot.send(image)
    with watcher(live_page.address(robots["shown"].process.output)):
        for number in range(2 * BLOCKS):
            chosen = [images[(number // 2 * IMAGES + i) % len(images)] for i in range(IMAGES)]
            robots[tuple(nodes)[(number + number // 2) % 2]].block(chosen)
    plain, shown = robots["plain"], robots["shown"]
    for what in ("median", "fastest", "processor"):
        without, with_page = (np.array(getattr(robot, what)) for robot in (plain, shown))
        low, middle, high = np.quantile(with_page / without, (0.25, 0.5, 0.75))
        figures(
            f"step with a page and one {watcher.__name__} over without, {what}: median of {BLOCKS} pairs (quartiles)",
            f"{middle:.3f} ({low:.3f} to {high:.3f}); {1000 * np.median(with_page):.1f} over "
            f"{1000 * np.median(without):.1f} ms",
        )
    assert len(shown.median) == len(plain.median) == BLOCKS
