# SPDX-License-Identifier: Apache-2.0
"""A camera and a user for the stream node: sends images, sets parameters, and keeps every output as it comes."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import rclpy
from builtin_interfaces.msg import Time
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from xsvggt_ros.frame import InputImage
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.ros.types import message_class

NODE = "stream"
READY_S = 120.0  # for discovery and for loading the model
RESEND_S = 0.5  # between images while the node is not known to be ready
ANSWER_S = 10.0  # for a service, and for the last image
POLL_S = 0.1  # between two looks at whether to go on


@dataclass(frozen=True)
class Arrival:
    """One message as it came; it is decoded when the images are through, to leave the processor to the node."""

    topic: str
    time_ns: int
    kind: str  # its message type
    data: bytes

    def decoded(self) -> Any:
        return deserialize_message(self.data, message_class(self.kind))


@contextmanager
def stream_client(alive: Callable[[], None], topics: dict[str, str]) -> Iterator[StreamClient]:
    """A client in the default context.

    alive: called while waiting; it raises if the node has ended. topics: what the node sends, with its message types.
    """
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = Node("client")
    try:
        yield StreamClient(node, alive, topics)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


class StreamClient:
    """Sends images to the stream node and keeps all that it publishes.

    The methods raise TimeoutError, saying what did not come, where the node does not answer.
    """

    def __init__(self, node: Node, alive: Callable[[], None], topics: dict[str, str]) -> None:
        self.topics = topics
        self.arrivals: list[Arrival] = []
        self.warm_up: list[int] = []  # stamps of the images sent before the node was ready
        self.status: Any = None  # the newest StreamStatus
        self._alive = alive
        self._images = node.create_publisher(Image, "image", QoSProfile(depth=10))  # reliable, as most camera drivers
        self._camera_infos = node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self._reset: Client = node.create_client(Trigger, f"{NODE}/reset")
        self._parameters = AsyncParameterClient(node, NODE)
        # Messages that were generated here come last: without introspection they leave an error behind, which rmw
        # would print at the next subscription.
        for topic in sorted(topics, key=lambda topic: topic in ("/tf", "~/status")):
            name, kind = topic.replace("~", NODE), topics[topic]
            keep = partial(self._on_output, topic, kind)
            node.create_subscription(message_class(kind), name, keep, QoSProfile(depth=100), raw=True)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)

    def wait_until_ready(self, image: InputImage) -> None:
        """Sends the image until every output has come, and has the node forget it."""
        deadline = time.monotonic() + READY_S
        while missing := set(self.topics) - {arrival.topic for arrival in self.arrivals}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {', '.join(sorted(missing))} from the node within {READY_S:.0f} s")
            self.warm_up.append(self.send(image))
            self.spin_until(time.monotonic() + RESEND_S)
        if not self.answered(self.warm_up[-1]):
            raise TimeoutError("the node stopped answering before the start")
        self._wait(self._reset.call_async(Trigger.Request()), "~/reset")

    def set_parameters(self, changes: dict[str, Any]) -> Future:
        """Asks the node for other parameters, all of them or none; for `refusal`."""
        return self._parameters.set_parameters_atomically([Parameter(name, value=v) for name, v in changes.items()])

    def refusal(self, change: Future) -> str:
        """Why the node refused a change; empty: it did not."""
        answer = self._wait(change, "the parameter service").result
        return "" if answer.successful else answer.reason

    def answered(self, stamp_ns: int) -> bool:
        """Whether the status of an image with that stamp or a later one comes soon."""
        return self._spin_for(lambda: self._newest >= stamp_ns)

    def send(self, image: InputImage) -> int:
        """Publishes the image under the present time, which is returned [ns]."""
        stamp = time.time_ns()
        sec, nanosec = divmod(stamp, 1_000_000_000)
        header = Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=image.frame_id)
        height, width = image.image.shape[:2]
        if image.intrinsics is not None:
            k = image.intrinsics.ravel().astype(float)
            self._camera_infos.publish(CameraInfo(header=header, height=height, width=width, k=k))
        self._images.publish(
            Image(
                header=header,
                height=height,
                width=width,
                encoding="rgb8",
                step=3 * width,
                data=array("B", image.image.tobytes()),
            )
        )
        return stamp

    def _on_output(self, topic: str, kind: str, data: bytes) -> None:
        arrival = Arrival(topic, time.time_ns(), kind, data)
        self.arrivals.append(arrival)
        if topic == "~/status":
            self.status = arrival.decoded()

    @property
    def _newest(self) -> int:
        """Stamp of the newest status [ns]."""
        return stamp_ns(self.status.header) if self.status else 0

    def spin_until(self, end: float) -> None:
        """Receives until that time (monotonic, seconds)."""
        self._alive()
        while (left := end - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=min(left, POLL_S))
            self._alive()

    def _spin_for(self, done: Callable[[], bool]) -> bool:
        """Whether it is done within ANSWER_S."""
        deadline = time.monotonic() + ANSWER_S
        while not done() and time.monotonic() < deadline:
            self._alive()
            self._executor.spin_once(timeout_sec=POLL_S)
        return done()

    def _wait(self, future: Future, what: str) -> Any:
        if not self._spin_for(future.done):
            raise TimeoutError(f"{what} of the node did not answer within {ANSWER_S:.0f} s")
        return future.result()
