# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node: what arrives goes to the worker, what the worker makes goes out.

The executor runs in the main thread, and its callbacks only hand messages on; the worker's thread owns the
stream. So a step of any length delays neither a parameter nor a service.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from functools import partial, wraps
from typing import Any, NoReturn

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.qos import DurabilityPolicy, QoSPolicyKind, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.utilities import remove_ros_args
from std_srvs.srv import SetBool, Trigger

from xsvggt_ros.live.server import check_page
from xsvggt_ros.live.viewer import Viewer
from xsvggt_ros.memory import give_back
from xsvggt_ros.messages import topics
from xsvggt_ros.obstacles import why_no_obstacles
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.ros.calibration import CalibrationWatch
from xsvggt_ros.ros.monitor import WINDOW_S, diagnostic
from xsvggt_ros.ros.parameters import Parameters
from xsvggt_ros.ros.path import SerializedPath
from xsvggt_ros.ros.silence import why_silent
from xsvggt_ros.ros.types import message_class
from xsvggt_ros.ros.viewer import page_owner
from xsvggt_ros.ros.worker import Worker
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.status import ImageCounts, Status

try:
    from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
except ModuleNotFoundError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks, UnsupportedEventTypeError

SILENCE_REPEAT = 30  # looks, a second apart, after which a user is told of a silence again
PUBLISHERS_S = 0.5  # between two looks at who publishes images
DIAGNOSTICS_S = 1.0
POLL_S = 0.05  # between two looks at what another thread is doing
OVERRIDABLE = QoSOverridingOptions(
    [QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY, QoSPolicyKind.DURABILITY]
)
# Reliable where all publishers are; middleware and rclpy decide it as they subscribe. Humble cannot.
AS_PUBLISHED = getattr(ReliabilityPolicy, "BEST_AVAILABLE", ReliabilityPolicy.BEST_EFFORT)
TRANSFORMS = QoSProfile(depth=100)
STATIC_TRANSFORMS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

Transition = Callable[["StreamNode", LifecycleState], TransitionCallbackReturn]


def log_failure(transition: Transition) -> Transition:
    """The transition, which says why it failed: rclpy would swallow that."""

    @wraps(transition)
    def run(node: StreamNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(node, state)
        except (ValueError, OSError) as error:  # their text names the fix
            node.get_logger().error(str(error))
            return TransitionCallbackReturn.FAILURE
        except Exception:
            node.get_logger().error(traceback.format_exc())
            raise

    return run


def refuse_unknown_transitions(node: LifecycleNode) -> None:
    """Answers a request for a transition that the node's state does not have: before Kilted, rclpy raises and answers
    nothing.
    """
    (service,) = (service for service in node.services if service.srv_type is ChangeState)
    change = service.callback

    def answer(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        try:
            return change(request, response)
        except RuntimeError as error:  # what rclpy raises in C++; what a transition raises does not come here
            node.get_logger().error(f"transition {request.transition.id} is refused: {error}")
            response.success = False
            return response

    service.callback = answer


class StreamNode(LifecycleNode):
    """Camera images in; pose, depth, points and status out, each with its image's stamp.

    Weights are loaded in configure, topics are read in activate, memory is given back in cleanup.
    stop: set from outside to end the process, at any time.
    Raises ValueError with the reason for an initial parameter that is not allowed.
    """

    def __init__(self, stop: threading.Event) -> None:
        super().__init__("stream")
        refuse_unknown_transitions(self)
        self.settings = Parameters(self)
        self.finished = False
        self._stop = stop
        self._enabled = True
        self._worker: Worker | None = None
        self._viewer: Viewer | None = None
        self._serving: Future[None] | None = None
        self._images: Subscription | None = None
        self._others: list[Subscription] = []
        self._latched = False  # whether a latched camera_info is among them
        self._silent_looks = 0
        self._calibration = CalibrationWatch(self)
        self._diagnosed = ImageCounts()  # at the last diagnosis
        self.create_service(Trigger, "~/reset", self._on_reset)
        self.create_service(SetBool, "~/enable", self._on_enable)
        self.create_service(Trigger, "~/save_map", partial(self._on_map, "save_map"))
        self.create_service(Trigger, "~/load_map", partial(self._on_map, "load_map"))
        self._outputs = {
            topic: self.create_lifecycle_publisher(
                message_class(kind), topic, QoSProfile(depth=10), qos_overriding_options=OVERRIDABLE
            )
            for topic, kind in (
                topics.TOPICS | topics.COMPRESSED | topics.OBSTACLES | topics.TRACKS | topics.KEYFRAMES
            ).items()
        }
        self._path = SerializedPath()
        self._diagnostics = self.create_publisher(
            DiagnosticArray, "/diagnostics", 10, qos_overriding_options=OVERRIDABLE
        )
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # time that stands still must not silence these
        self.create_timer(DIAGNOSTICS_S, self._on_diagnostics_timer, clock=steady)
        self._searching = self.create_timer(PUBLISHERS_S, self._on_publishers_timer, clock=steady)
        self._searching.cancel()
        back = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=False)
        # Kept: the clock calls it even after it is gone, and crashes.
        self._jumps = self.get_clock().create_jump_callback(back, post_callback=self._on_time_went_back)

    # Lifecycle

    def start(self) -> bool:
        """Configures and activates; whether both worked."""
        done = (transition() for transition in (self.trigger_configure, self.trigger_activate))
        return all(result == TransitionCallbackReturn.SUCCESS for result in done)

    @property
    def paused(self) -> str:
        """What becomes of images while ~/enable has them so; empty: they are used."""
        return "" if self._enabled else "images are ignored"

    @property
    def failure(self) -> BaseException | None:
        """What ended the worker, if something has."""
        return self._serving.exception() if self._serving and self._serving.done() else None

    @log_failure
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        config = self.settings.settled()
        if config.viewer:
            check_page(config.page)  # before the weights are loaded
        pool = ThreadPoolExecutor(max_workers=1)
        loading = pool.submit(SegmentedStream, config.stream)
        while not loading.done():
            if self._stop.wait(POLL_S):
                _leave()
        try:
            stream = loading.result()
            worker = Worker(
                stream, self.settings, message_class, self._publish, self._wanted, self.get_logger(), self._show
            )
            if config.viewer:
                self._viewer = Viewer(page_owner(self, worker), self.get_logger())
                self.get_logger().info(self._viewer.where)
        except BaseException:
            pool.shutdown()
            raise
        self.settings.check = lambda config: stream.check_all(config.stream)
        self._worker, self._serving, self._pool = worker, pool.submit(worker.run), pool
        pool.shutdown(wait=False)  # no other work comes; the thread ends with this one
        self.get_logger().info(f"configured: {stream.summary()}")
        if config.base_frame and config.scale.source == "none":
            self.get_logger().warning("scale.source is none: the mounting's metres are mixed with the model's own unit")
        return super().on_configure(state)

    @log_failure
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        config = self.settings.config
        assert self._worker
        self._worker.listen()
        self._publishers_reliable = True
        self._images = self._subscribe_to_images()
        self._subscribe(topics.CAMERA_INFO_TYPE, topics.CAMERA_INFO, qos_profile_sensor_data)
        self._subscribe_to_latched()
        if config.stream.track_groups:
            for topic, kind in topics.POINTS_TO_TRACK.items():
                self._subscribe(kind, topic, QoSProfile(depth=10))
        for topic in topics.references(config):
            qos = {topics.TF: TRANSFORMS, topics.TF_STATIC: STATIC_TRANSFORMS}.get(topic, qos_profile_sensor_data)
            self._subscribe(topics.REFERENCES[topic], topic, qos)
        self._searching.reset()
        return super().on_activate(state)

    @log_failure
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._unsubscribe()
        if self._worker and self._serving:
            self._worker.clear()
            finished = self._worker.finish()
            while not (finished.wait(POLL_S) or self._serving.done()):
                pass  # a step, at most two
        return super().on_deactivate(state)

    @log_failure
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.release()
        return super().on_cleanup(state)

    @log_failure
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.release()
        self.finished = True
        return super().on_shutdown(state)

    @log_failure
    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.release()
        return super().on_error(state)

    def release(self) -> None:
        """Ends the worker after the step at hand, and gives its memory back."""
        self._unsubscribe()
        if self._worker and self._serving:
            self._worker.close()
            self._serving.exception()  # waits
            self._pool.shutdown()  # until its thread has let go of the stream too
        if self._viewer:
            self._viewer.close()
        self._worker = self._serving = self._viewer = None
        self._path = SerializedPath()
        self.settings.check = None
        give_back()

    # Input

    def _subscribe(self, kind: str, topic: str, qos: QoSProfile, **options: Any) -> None:
        options = options or {"qos_overriding_options": OVERRIDABLE}
        qos = copy(qos)  # rclpy writes the overrides of a topic into it
        receive = partial(self._receive, topic)
        self._others.append(self.create_subscription(message_class(kind), topic, receive, qos, **options))

    def _subscribe_to_latched(self) -> None:
        """A camera_info that was published once, before this node was there, comes to a latched subscription only.

        Made where there is such a publisher: others would warn that they do not fit. What comes twice does no harm.
        """
        publishers = self.get_publishers_info_by_topic(self.resolve_topic_name(topics.CAMERA_INFO))
        latched = any(p.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for p in publishers)
        if latched and not self._latched:
            quiet = SubscriptionEventCallbacks(use_default_callbacks=False)
            self._subscribe(topics.CAMERA_INFO_TYPE, topics.CAMERA_INFO, LATCHED, event_callbacks=quiet)
            self._latched = True

    def _unsubscribe(self) -> None:
        self._searching.cancel()
        for subscription in [*self._others, self._images]:
            if subscription:
                self.destroy_subscription(subscription)
        self._images, self._others, self._latched = None, [], False

    def _subscribe_to_images(self) -> Subscription:
        config = self.settings.config
        # The mailbox drops images, not the middleware: so they are counted, and `queue` can change live.
        qos = QoSProfile(depth=config.queue_size, reliability=AS_PUBLISHED)
        # As image_transport does: remapping `image` is enough for both transports.
        topic = self.resolve_topic_name(topics.IMAGE) + "/compressed" * (config.image_transport == "compressed")
        subscribe = partial(
            self.create_subscription,
            message_class(self._image_type()),
            topic,
            partial(self._receive, topics.IMAGE),
            qos,
            qos_overriding_options=OVERRIDABLE,
        )
        try:
            return subscribe(event_callbacks=SubscriptionEventCallbacks(message_lost=self._on_lost))
        except UnsupportedEventTypeError:  # not every middleware says it
            return subscribe()

    def _image_type(self) -> str:
        return next(kind for kind, name in topics.IMAGE_TYPES.items() if name == self.settings.config.image_transport)

    def _receive(self, topic: str, msg: Any) -> None:
        if self._worker and (self._enabled or topic != topics.IMAGE):
            self._worker.receive(topic, msg)

    def _on_lost(self, event: Any) -> None:
        if self._worker:
            self._worker.lost += event.total_count_change

    def _on_time_went_back(self, jump: TimeJump) -> None:
        """The transforms of the time to come are of another run of the bag. The images' stamps reset the stream."""
        if self._worker:
            self._worker.time_restarted()

    def _on_publishers_timer(self) -> None:
        """Subscribes anew when publishers came that another subscription would suit better."""
        self._subscribe_to_latched()
        self._follow_reliability()

    def _follow_reliability(self) -> None:
        """As the publishers of the images.

        An image has many datagrams; with one lost it is lost whole, unless the middleware sends it again.
        """
        assert self._images
        publishers = self.get_publishers_info_by_topic(self._images.topic_name)
        reliable = all(p.qos_profile.reliability == ReliabilityPolicy.RELIABLE for p in publishers)
        if reliable != self._publishers_reliable:
            self._publishers_reliable = reliable
            kind = "reliable" if reliable else "best effort"
            self.get_logger().info(f"subscribing anew, {kind} as the publishers of {self._images.topic_name}")
            self.destroy_subscription(self._images)
            self._images = self._subscribe_to_images()

    def _look_around(self, status: Status) -> str:
        """Says what there is instead of images, or of their calibration; the second is returned too."""
        assert self._images
        if not status.silent:
            self._silent_looks = 0
            return self._calibration.look(status.calibration, self.resolve_topic_name(topics.CAMERA_INFO))
        if self._silent_looks % SILENCE_REPEAT == 0:
            why = why_silent(self, self._images, self._image_type(), status.images.frames_lost)
            self.get_logger().warning(f"no image for {WINDOW_S:.0f} s {why}")
        self._silent_looks += 1
        return ""

    def _explain_missing(self) -> None:
        """Says to whoever waits for obstacles, or depth as PNG, why none come, if that is by the settings."""
        config, log = self.settings.config, self.get_logger()
        why = why_no_obstacles(config)
        if why and any(map(self._listens, topics.OBSTACLES)):
            log.warning(f"~/obstacles is not published: {why}", throttle_duration_sec=SILENCE_REPEAT)
        (png,) = topics.COMPRESSED
        if not config.output.compressed_depth and self._listens(png):
            log.warning(f"{png} is not published: set compressed_depth to true", throttle_duration_sec=SILENCE_REPEAT)

    # Services and output

    def ask(self, what: str) -> str:
        """Does what a service is for, or its opposite "disable"; what there is to say. For the node's thread.

        Raises ValueError with the reason where that is not possible.
        """
        if what in ("enable", "disable"):
            answer = self._on_enable(SetBool.Request(data=what == "enable"), SetBool.Response())
        else:
            service = self._on_reset if what == "reset" else partial(self._on_map, what)
            answer = service(Trigger.Request(), Trigger.Response())
        if not answer.success:
            raise ValueError(answer.message)
        return answer.message

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._worker:
            self._worker.reset()
        response.success = self._worker is not None
        response.message = "the next image starts a new world" if self._worker else "the node is not configured"
        return response

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        if request.data and not self._enabled and self._worker:
            self._worker.listen()
        self._enabled = request.data
        response.success, response.message = True, "images are used" if request.data else "images are ignored"
        return response

    def _on_map(self, what: str, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._worker is None:
            response.success, response.message = False, "the node is not configured"
            return response
        try:
            folder = self.settings.config.stream.loop.folder
            response.success, response.message = True, getattr(self._worker, what)(folder)
        except (ValueError, OSError) as error:
            response.success, response.message = False, str(error)
        return response

    def _listens(self, topic: str) -> bool:
        return bool(self._outputs[topic].get_subscription_count())

    def _wanted(self, topic: str) -> bool:
        """Whether someone listens, or looks at the page, which shows what is on all of them."""
        return self._listens(topic) or (self._viewer is not None and self._viewer.watched)

    def _show(self, placed: Placed) -> None:
        if self._viewer:
            self._viewer.show(placed)

    def _publish(self, topic: str, make: Callable[[], Any]) -> None:
        if self._listens(topic):
            message = make()
            self._outputs[topic].publish(self._path.serialize(message) if topic == "~/path" else message)

    def _on_diagnostics_timer(self) -> None:
        idle = "images are ignored: ~/enable" if not self._enabled else ""
        if not self._images:
            idle = "not active" if self._worker else "not configured"
        status = self._worker.status() if self._worker else None
        calibrations = self._look_around(status) if status and not idle else ""
        self._explain_missing()
        name = self.get_fully_qualified_name()
        array = DiagnosticArray(status=[diagnostic(name, status, self._diagnosed, idle, calibrations)])
        self._diagnosed = status.images if status else ImageCounts()
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def main(stop: threading.Event) -> int:
    """Runs the node until `stop` is set, it is shut down or something fails; returns the exit code."""
    if stop.is_set():
        return 0
    try:
        # The caller's signal handlers set `stop`; rclpy's would shut the context under a worker that publishes.
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        _check_arguments()
        node = StreamNode(stop)
    except (ValueError, RuntimeError) as error:  # arguments, parameters; middleware or security: their text says what
        get_logger("stream").fatal(str(error))
        return 1
    failed = run(node, stop)
    rclpy.try_shutdown()
    return int(failed)


def _check_arguments() -> None:
    """Raises ValueError for arguments that ROS passes over."""
    passed_over = " ".join(remove_ros_args()[1:])
    if passed_over:
        raise ValueError(
            f"arguments that mean nothing here: {passed_over}; give parameters as --ros-args -p NAME:=VALUE (all of "
            "them: `xsvggt parameters`), topics as -r image:=/camera/image_raw"
        )


def run(node: StreamNode, stop: threading.Event) -> bool:
    """Runs node and worker until `stop` is set, the node is shut down or something fails; whether that was it."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    failed = node.settings.config.autostart and not node.start()
    while not (failed or stop.is_set() or node.finished or node.failure):
        executor.spin_once(timeout_sec=0.1)
    if node.failure:
        failed = True
        get_logger("stream").fatal("".join(traceback.format_exception(node.failure)))
    node.release()
    executor.shutdown()
    node.destroy_node()
    return failed


def _leave() -> NoReturn:
    """Ends the process while another thread reads weights, which takes long and has nothing to lose."""
    rclpy.try_shutdown()
    sys.stdout.flush()
    os._exit(0)
