# SPDX-License-Identifier: Apache-2.0
"""The node as a process of its own, and a client that uses it over DDS."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import SetBool, Trigger

from support.paths import ROOT
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.topics import TOPICS

STREAM_NODE = ROOT / "scripts" / "stream_node"
PERIOD_NS = 33_333_333  # 30 Hz


class NodeProcess:
    """scripts/stream_node with some remappings and parameters (__ for the dot), its output in a file."""

    def __init__(self, log: Path, remappings: dict, parameters: dict):
        settings = [item for old, new in remappings.items() for item in ("-r", f"{old}:={new}")]
        settings += [
            item for name, value in parameters.items() for item in ("-p", f"{name.replace('__', '.')}:={value}")
        ]
        self._log = log
        with log.open("w") as output:
            command = [sys.executable, STREAM_NODE, "--ros-args", *settings]
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def output(self) -> str:
        return self._log.read_text()

    def catches_signals(self) -> bool:
        """Whether the handlers are in place (Linux)."""
        return bool(int(self._field("SigCgt"), 16) >> (signal.SIGTERM - 1) & 1)

    def address_space(self) -> int:
        """Bytes that it has reserved (Linux)."""
        return 1024 * int(self._field("VmSize"))

    def _field(self, name: str) -> str:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))

    def maps(self, path: Path) -> bool:
        """Whether it has that file in its memory (Linux)."""
        return str(path) in Path(f"/proc/{self.pid}/maps").read_text()

    def memory(self) -> dict[str, int]:
        """Bytes that it uses (Linux): Rss, in all; Anonymous, without the files and what it shares with others."""
        fields = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()[1:]
        sizes = {name.rstrip(":"): 1024 * int(size) for name, size, *_ in map(str.split, fields)}
        return {name: sizes[name] for name in ("Rss", "Anonymous")}

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def exit_code(self) -> int:
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class Client:
    """Publishes images and collects everything that the node `stream` of a namespace gives out."""

    def __init__(self, namespace: str = "", topics=tuple(TOPICS)):
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = Node("client", namespace=namespace, context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.received = {}
        for topic in topics:
            package, _, name = TOPICS[topic].split("/")
            message_class = getattr(import_module(f"{package}.msg"), name)
            self.received[topic] = self.listen(message_class, topic.replace("~", "stream"))
        self.images = self.node.create_publisher(Image, "image", QoSProfile(depth=200))
        self.camera_infos = self.node.create_publisher(CameraInfo, "camera_info", QoSProfile(depth=10))
        self._reset = self.node.create_client(Trigger, "stream/reset")
        self._enable = self.node.create_client(SetBool, "stream/enable")
        # Answers to all clients come to each, and push out unread ones: with the usual depth, 10, some would be lost.
        self.parameters = AsyncParameterClient(self.node, "stream", qos_profile=QoSProfile(depth=1000))
        self.stamp = 1_700_000_000_000_000_001  # of the last image, ns

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()

    def listen(self, kind: type, topic: str) -> list:
        """What comes on a topic from now on."""
        received: list = []
        self.node.create_subscription(kind, topic, received.append, QoSProfile(depth=200))
        return received

    def until(self, condition, seconds: float = 60) -> None:
        """Spins until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            self._executor.spin_once(timeout_sec=0.02)

    def spin(self, seconds: float) -> None:
        """Spins for that long."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end)

    def image(self, seed: int = 0, height: int = 84, width: int = 112) -> Image:
        """Random bgr8 image with the next stamp."""
        self.stamp += PERIOD_NS
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        msg = Image(height=height, width=width, encoding="bgr8", step=3 * width)
        msg.data.frombytes(pixels.tobytes())
        msg.header.frame_id = "lens"
        self.restamp(msg, self.stamp)
        return msg

    def restamp(self, msg, stamp: int) -> None:
        msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp, 10**9)

    def connect(self) -> None:
        """Sends images until each output has come once, then forgets them."""

        def connected():
            self.images.publish(self.image())
            return all(self.received.values())

        self.until(lambda: self.images.get_subscription_count() and self.camera_infos.get_subscription_count())
        self.until(connected)
        self.settle()

    def settle(self) -> None:
        """Waits until every image sent so far is answered, and forgets the answers."""
        self.until(lambda: self.stamp in self.stamps("~/status"))
        self.until(lambda: all(self.stamps(topic)[-1:] == [self.stamp] for topic in TOPICS))
        for messages in self.received.values():
            messages.clear()

    def stamps(self, topic: str) -> list[int]:
        """Of the messages received, ns."""
        return [stamp_ns((m.transforms[0] if topic == "/tf" else m).header) for m in self.received[topic]]

    def exchange(self, msg: Image):
        """The status that answers an image."""
        stamp = stamp_ns(msg.header)
        self.images.publish(msg)
        self.until(lambda: stamp in self.stamps("~/status"))
        return self.received["~/status"][-1]

    def play(self, images: list[Image], at=None) -> None:
        """Publishes at 30 Hz; `at` {index: action} runs actions before the image of that index."""
        waiting = list(enumerate(images))

        def publish():
            if waiting:
                index, msg = waiting.pop(0)
                (at or {}).get(index, lambda: None)()
                self.images.publish(msg)

        timer = self.node.create_timer(PERIOD_NS * 1e-9, publish)
        self.until(lambda: not waiting)
        self.node.destroy_timer(timer)

    @contextmanager
    def flow(self):
        """Images at 30 Hz whenever the client spins; gives the list of their stamps."""
        sent: list[int] = []

        def publish():
            self.images.publish(self.image(len(sent)))
            sent.append(self.stamp)

        timer = self.node.create_timer(PERIOD_NS * 1e-9, publish)
        yield sent
        self.node.destroy_timer(timer)

    def ask_parameters(self, **values):
        """Future of an atomic change; dots in names are written as __."""
        parameters = [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]
        return self.parameters.set_parameters_atomically(parameters)

    def set_parameters(self, **values):
        return self.response(self.ask_parameters(**values)).result

    def response(self, future):
        self.until(future.done)
        return future.result()

    def reset(self):
        return self.response(self._reset.call_async(Trigger.Request()))

    def enable(self, value: bool):
        return self.response(self._enable.call_async(SetBool.Request(data=value)))
