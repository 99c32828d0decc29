# SPDX-License-Identifier: Apache-2.0
"""The demo's side of the topics: a camera, and a user who sets parameters and records every output."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
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

from xsvggt_ros.demo.recording import Answer, Played
from xsvggt_ros.frame import InputImage
from xsvggt_ros.geometry import rigid, rotation_matrix
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.topics import TOPICS
from xsvggt_ros.ros.node import message_class
from xsvggt_ros.status import ImageCounts, StepStatus

NODE = "stream"
READY_S = 120.0  # for discovery and for loading the model
RESEND_S = 0.5  # between images while the node is not known to be ready
ANSWER_S = 10.0  # for a service, and for the last image
POLL_S = 0.1  # between two looks at whether to go on
COUNTS = [f.name for f in fields(ImageCounts)]


@dataclass(frozen=True)
class Arrival:
    """One message as it came; it is decoded when the images are through, to leave the processor to the node."""

    topic: str
    time_ns: int
    data: bytes

    def decoded(self) -> Any:
        return deserialize_message(self.data, message_class(TOPICS[self.topic]))


@contextmanager
def demo_client(alive: Callable[[], None]) -> Iterator[DemoClient]:
    """A client in the default context. `alive` is called while waiting; it raises if the node has ended."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = Node("demo")
    try:
        yield DemoClient(node, alive)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


class DemoClient:
    """Sends images to the stream node and keeps all that it publishes.

    The methods raise TimeoutError, saying what did not come, where the node does not answer.
    """

    def __init__(self, node: Node, alive: Callable[[], None]) -> None:
        self._alive = alive
        self._images = node.create_publisher(Image, "image", QoSProfile(depth=10))  # reliable, as most camera drivers
        self._camera_infos = node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
        self._reset: Client = node.create_client(Trigger, f"{NODE}/reset")
        self._parameters = AsyncParameterClient(node, NODE)
        self._arrivals: list[Arrival] = []
        self._warm_up: list[int] = []  # stamps of the images sent before the start
        self._counts = ImageCounts()  # as of the newest status
        self._newest = 0  # its stamp [ns]
        # Messages that were generated here come last: without introspection they leave an error behind, which rmw
        # would print at the next subscription.
        for topic in sorted(TOPICS, key=lambda topic: topic in ("/tf", "~/status")):
            name, keep = topic.replace("~", NODE), partial(self._on_output, topic)
            node.create_subscription(message_class(TOPICS[topic]), name, keep, QoSProfile(depth=100), raw=True)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)

    def wait_until_ready(self, image: InputImage) -> None:
        """Sends the image until every output has come, and has the node forget it."""
        deadline = time.monotonic() + READY_S
        while missing := set(TOPICS) - {arrival.topic for arrival in self._arrivals}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {', '.join(sorted(missing))} from the node within {READY_S:.0f} s")
            self._warm_up.append(self._send(image))
            self._spin_until(time.monotonic() + RESEND_S)
        if not self._spin_for(lambda: self._newest >= self._warm_up[-1]):
            raise TimeoutError("the node stopped answering before the start")
        self._wait(self._reset.call_async(Trigger.Request()), "~/reset")

    def play(self, images: list[InputImage], rate: float, changes: dict[str, Any], change_after: int) -> Played:
        """Sends the images at `rate` per second, and sets the parameters once `change_after` of them are sent."""
        before = self._counts
        started = time.monotonic()
        stamps: list[int] = []
        for i, image in enumerate(images):
            self._spin_until(started + i / rate)
            if i == change_after:
                parameters = [Parameter(name, value=value) for name, value in changes.items()]
                change = self._parameters.set_parameters_atomically(parameters)
            stamps.append(self._send(image))
        sent_rate = (len(images) - 1) / (time.monotonic() - started)
        answer = self._wait(change, "the parameter service").result
        self._spin_for(lambda: self._newest >= stamps[-1])
        self._spin_until(time.monotonic() + RESEND_S)  # the status is not the last output to arrive
        return Played(
            sent_rate=sent_rate,
            counts=_difference(self._counts, before),
            change_after=change_after,
            refusal="" if answer.successful else answer.reason,
            **self._answers(stamps),
        )

    def _send(self, image: InputImage) -> int:
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

    def _on_output(self, topic: str, data: bytes) -> None:
        arrival = Arrival(topic, time.time_ns(), data)
        self._arrivals.append(arrival)
        if topic == "~/status":
            status = arrival.decoded()
            self._newest = stamp_ns(status.header)
            self._counts = ImageCounts(**{name: getattr(status, name) for name in COUNTS})

    def _spin_until(self, end: float) -> None:
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

    def _answers(self, stamps: list[int]) -> dict[str, Any]:
        """Fields of Played, for images with these stamps."""
        outputs = self._outputs()
        for stamp in self._warm_up:
            outputs.pop(stamp, None)
        answers, incomplete = [], []
        for i, stamp in enumerate(stamps):
            messages, arrived = outputs.pop(stamp, ({}, 0))
            missing = sorted(set(TOPICS) - set(messages))
            if not missing:
                answers.append(_answer(i, (arrived - stamp) * 1e-9, messages))
            elif messages:
                incomplete.append(f"image {i}: no {', '.join(missing)}")
        strays = [f"stamp {stamp} on {', '.join(messages)}" for stamp, (messages, _) in outputs.items()]
        return {"answers": answers, "incomplete": incomplete, "strays": strays}

    def _outputs(self) -> dict[int, tuple[dict[str, Any], int]]:
        """{stamp: ({topic: message}, time of the last arrival)}."""
        outputs: dict[int, tuple[dict[str, Any], int]] = {}
        for arrival in self._arrivals:
            message = arrival.decoded()
            stamp = stamp_ns(message.transforms[0].header if arrival.topic == "/tf" else message.header)
            messages, _ = outputs.get(stamp, ({}, 0))
            outputs[stamp] = (messages | {arrival.topic: message}, arrival.time_ns)
        return outputs


def _difference(after: ImageCounts, before: ImageCounts) -> ImageCounts:
    return ImageCounts(**{name: getattr(after, name) - getattr(before, name) for name in COUNTS})


def _answer(image: int, latency: float, messages: dict[str, Any]) -> Answer:
    transform = messages["/tf"].transforms[0].transform
    pose = messages["~/odometry"].pose.pose
    cloud = messages["~/points"]
    return Answer(
        image=image,
        latency=latency,
        T_tf=_matrix(transform.translation, transform.rotation),
        T_odometry=_matrix(pose.position, pose.orientation),
        intrinsics=np.array(messages["~/depth/camera_info"].k).reshape(3, 3),
        depth=_floats(messages["~/depth/image"]),
        confidence=_floats(messages["~/confidence/image"]),
        points=np.frombuffer(cloud.data, "<f4").reshape(cloud.height, cloud.width, 4)[..., :3],
        status=_status(messages["~/status"]),
    )


def _matrix(position: Any, rotation: Any) -> np.ndarray:
    R = rotation_matrix(np.array([rotation.x, rotation.y, rotation.z, rotation.w]))
    return rigid(R, np.array([position.x, position.y, position.z]))


def _floats(image: Any) -> np.ndarray:
    return np.frombuffer(image.data, "<f4").reshape(image.height, image.width)


def _status(message: Any) -> StepStatus:
    same = {f.name: getattr(message, f.name) for f in fields(StepStatus) if f.name != "seconds"}
    names = (name for name in message.get_fields_and_field_types() if name.endswith("_seconds"))
    return StepStatus(**same, seconds={name.removesuffix("_seconds"): getattr(message, name) for name in names})
