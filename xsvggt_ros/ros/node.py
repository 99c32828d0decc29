# SPDX-License-Identifier: Apache-2.0
"""The node: convert, step, publish.

The executor runs in the main thread, and its callbacks only put images into a mailbox; one worker
thread owns the stream. So a step of any length delays neither a parameter nor a service.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, NoReturn

import numpy as np
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.ros.conversions import TOPICS, FrameMessages, InputCounts, decode_image, decode_intrinsics, stamp_ns
from xsvggt_ros.ros.mailbox import Mailbox
from xsvggt_ros.ros.parameters import Parameters
from xsvggt_ros.stream import Frame, GeometryStream, Status

IMAGE_TYPES = {"sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"}
SILENCE_S = 5.0  # without an image for this long the user is told what there is instead
THROTTLE_S = 5.0  # between two warnings of the same kind
PUBLISHERS_S = 0.5  # between two looks at who publishes images
OVERRIDABLE = QoSOverridingOptions.with_default_policies()
# Reliable where all publishers are; middleware and rclpy decide it as they subscribe. Humble cannot.
AS_PUBLISHED = getattr(ReliabilityPolicy, "BEST_AVAILABLE", ReliabilityPolicy.BEST_EFFORT)


def message_class(name: str) -> Any:
    """Class of a message type name such as "sensor_msgs/msg/Image"."""
    package, _, kind = name.split("/")
    return getattr(import_module(f"{package}.msg"), kind)


class StreamNode(Node):
    """Camera images in; pose, depth, points and status out, each with its image's stamp.

    Raises ValueError with the reason for an initial parameter that is not allowed.
    """

    def __init__(self) -> None:
        super().__init__("stream")
        self.settings = Parameters(self)
        self.mailbox: Mailbox[Any] = Mailbox()
        self._publishers_reliable = True
        self._images = self._subscribe_to_images()
        self.create_subscription(
            CameraInfo, "camera_info", self._on_camera_info, qos_profile_sensor_data, qos_overriding_options=OVERRIDABLE
        )
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.outputs = {t: self.create_publisher(message_class(n), t, QoSProfile(depth=10)) for t, n in TOPICS.items()}
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(PUBLISHERS_S, self._on_publishers_timer, clock=steady)
        self.create_timer(SILENCE_S, self._on_silence_timer, clock=steady)
        # Written by the executor, read by the worker.
        self._enabled = True
        self._reset_asked = threading.Event()
        self._camera_info: CameraInfo | None = None
        self._received_before = 0
        # The worker's own.
        self.loaded = threading.Event()
        self._messages = FrameMessages(message_class)
        self._cache = self.settings.config.stream.cache
        self._worlds = 0
        self._rejected = 0

    # The executor's thread

    def _subscribe_to_images(self) -> Subscription:
        config = self.settings.config
        # The mailbox drops images, not the middleware: so they are counted, and `queue` can change live.
        qos = QoSProfile(depth=config.queue_size, reliability=AS_PUBLISHED)
        # As image_transport does: remapping `image` is enough for both transports.
        topic, kind = self.resolve_topic_name("image"), Image
        if config.image_transport == "compressed":
            topic, kind = f"{topic}/compressed", CompressedImage
        return self.create_subscription(kind, topic, self._on_image, qos, qos_overriding_options=OVERRIDABLE)

    def _on_publishers_timer(self) -> None:
        """Subscribes anew when publishers came whose reliability another subscription would suit better.

        An image has many datagrams; with one lost it is lost whole, unless the middleware sends it again.
        """
        publishers = self.get_publishers_info_by_topic(self._images.topic_name)
        reliable = all(p.qos_profile.reliability == ReliabilityPolicy.RELIABLE for p in publishers)
        if reliable != self._publishers_reliable:
            self._publishers_reliable = reliable
            kind = "reliable" if reliable else "best effort"
            self.get_logger().info(f"subscribing anew, {kind} as the publishers of {self._images.topic_name}")
            self.destroy_subscription(self._images)
            self._images = self._subscribe_to_images()

    def _on_image(self, msg: Any) -> None:
        if self._enabled:
            config = self.settings.config
            self.mailbox.put(msg, limit=config.queue_size if config.queue == "all" else None)

    def _on_camera_info(self, msg: CameraInfo) -> None:
        self._camera_info = msg

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._reset_asked.set()
        response.success, response.message = True, "the next image starts a new world"
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        response.success, response.message = True, "images are used" if request.data else "images are ignored"
        return response

    def _on_silence_timer(self) -> None:
        received = self.mailbox.received
        if self._enabled and received == self._received_before:
            topic = self._images.topic_name
            publishers = self.count_publishers(topic)
            self.get_logger().warning(
                f"no image on {topic} for {SILENCE_S:.0f} s; it has {publishers} publishers. "
                f"Image topics there are: {', '.join(self._image_topics()) or 'none'}; "
                "choose one with `--ros-args -r image:=TOPIC`"
            )
        self._received_before = received

    def _image_topics(self) -> list[str]:
        """Those of other nodes, with their type."""
        own = {publisher.topic_name for publisher in self.outputs.values()}
        return [
            f"{topic} ({kind})"
            for topic, kinds in self.get_topic_names_and_types()
            for kind in kinds
            if kind in IMAGE_TYPES and topic not in own and self.count_publishers(topic)
        ]

    # The worker's thread

    def work(self) -> None:
        """Loads the model, then serves images until the mailbox closes.

        Raises ValueError or FileNotFoundError, with the fix, for weights or settings that do not work.
        """
        config = self.settings.config.stream
        stream = GeometryStream(config)
        self.loaded.set()
        weights = config.weights or "the package's own weights, which know synthetic rooms only"
        self.get_logger().info(
            f"ready: {config.model} with {weights}, on {stream.device}, {stream.dtype}, "
            f"attention by {stream.model.attend.__name__}"
        )
        while (msg := self.mailbox.get()) is not None:
            self._serve(stream, msg, self.settings.config)

    def _serve(self, stream: GeometryStream, msg: Any, config: NodeConfig) -> None:
        try:
            image = decode_image(msg)
            stream.advance(stamp_ns(msg.header))
            self._apply(stream, config)
            frame = stream.step(image, self._intrinsics(image))
        except ValueError as error:
            self._rejected += 1
            self.get_logger().warning(f"image rejected: {error}", throttle_duration_sec=THROTTLE_S)
        else:
            self._report(frame.status)
            self._publish(frame, msg.header, config)

    def _apply(self, stream: GeometryStream, config: NodeConfig) -> None:
        """What users asked for since the last image."""
        if self._reset_asked.is_set():
            self._reset_asked.clear()
            stream.reset("asked for by ~/reset")
        if config.stream.cache != self._cache:
            self._cache = config.stream.cache
            try:
                stream.reconfigure(self._cache)
            except ValueError as error:
                self.get_logger().error(f"cache settings not applied: {error}")

    def _intrinsics(self, image: np.ndarray) -> np.ndarray | None:
        """K for this image, float64 [3, 3]; None where no usable camera_info came."""
        if self._camera_info is None:
            return None
        try:
            return decode_intrinsics(self._camera_info, image.shape[:2])
        except ValueError as error:
            self.get_logger().warning(f"camera_info ignored: {error}", throttle_duration_sec=THROTTLE_S)
            return None

    def _report(self, status: Status) -> None:
        """Says what the cache is whenever that may be news."""
        first = status.frame == 0
        self._worlds += first
        if first and status.event:
            self.get_logger().warning(f"a new world starts: {status.event}")
        if (first or status.event) and status.budget_raised:
            self.get_logger().warning(
                f"the budget asked for is below what {status.policy} works with: raised to {status.floor_tokens} tokens"
            )
        if first or status.event:
            self.get_logger().info(
                f"cache: {status.policy}, {status.budget_tokens or 'unlimited'} tokens per layer, "
                f"{status.key_bits} bit keys, {status.value_bits} bit values, "
                f"{status.cache_bytes / 2**20:.2f} MiB"
            )

    def _publish(self, frame: Frame, header: Header, config: NodeConfig) -> None:
        counts = InputCounts(
            frames_received=self.mailbox.received,
            frames_dropped=self.mailbox.dropped,
            frames_rejected=self._rejected,
            resets=self._worlds - 1,
        )
        # An empty frame_id is no frame; "camera" at least can be looked up.
        makers = self._messages.convert(frame, stamp_ns(header), header.frame_id or "camera", config, counts)
        for topic, make in makers.items():
            if self.outputs[topic].get_subscription_count():
                self.outputs[topic].publish(make())


def main(stop: threading.Event, args: list[str] | None = None) -> int:
    """Runs the node until `stop` is set or its worker fails; returns the exit code."""
    if stop.is_set():
        return 0
    # The caller's signal handlers set `stop`; rclpy's would shut the context under a worker that publishes.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    error = run(stop)
    if error:
        expected = isinstance(error, (ValueError, OSError))  # their text names the fix
        get_logger("stream").fatal(str(error) if expected else "".join(traceback.format_exception(error)))
    rclpy.try_shutdown()
    return 1 if error else 0


def run(stop: threading.Event) -> BaseException | None:
    """Runs node and worker until `stop` is set or the worker ends; returns the error that ended them."""
    try:
        node = StreamNode()
    except ValueError as error:
        return error
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    with ThreadPoolExecutor(max_workers=1) as pool:
        worker = pool.submit(node.work)
        try:
            while not (stop.is_set() or worker.done()):
                executor.spin_once(timeout_sec=0.1)
        finally:
            node.mailbox.close()
            if stop.is_set() and not (node.loaded.is_set() or worker.done()):
                _leave(node)
    executor.shutdown()
    node.destroy_node()
    return worker.exception()


def _leave(node: StreamNode) -> NoReturn:
    """Ends the process while the worker still reads weights, which takes long and has nothing to lose."""
    node.destroy_node()
    rclpy.try_shutdown()
    sys.stdout.flush()
    os._exit(0)
