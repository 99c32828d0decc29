# SPDX-License-Identifier: Apache-2.0
"""What a user is told where no image comes, or not every one."""

import signal

import pytest

pytest.importorskip("rclpy")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image

from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.ros.monitor import WINDOW_S
from xsvggt_ros.ros.node import SILENCE_REPEAT

WARNING = f"no image for {WINDOW_S:.0f} s on "


def warnings(node) -> list[str]:
    return [line for line in node.output().splitlines() if WARNING in line]


def test_node_without_images_says_who_publishes_what_and_is_heard_when_that_fits(start_node, start_client, endurance):
    client, other = start_client("/quiet"), start_client("/quiet")  # a process cannot have two types on one topic
    strict = {"qos_overrides./quiet/image.subscription.reliability": "reliable"}
    diagnostics = client.listen(DiagnosticArray, "/diagnostics")
    weak = other.node.create_publisher(Image, "weak/image", qos_profile_sensor_data)
    client.node.destroy_publisher(client.images)
    other.node.destroy_publisher(other.images)
    wrong_type = client.node.create_publisher(CompressedImage, "image", QoSProfile(depth=10))
    incompatible = other.node.create_publisher(Image, "image", qos_profile_sensor_data)
    node = start_node("stream", {"__ns": "/quiet"}, device="cpu", image_width=56, **strict)

    def send(publisher):
        publisher.publish(client.image())
        other.until(lambda: True)
        return True

    client.until(lambda: send(incompatible) and send(weak) and warnings(node))
    (warning,) = warnings(node)
    for words in (
        "on /quiet/image (sensor_msgs/msg/Image; `image` after remapping)",
        "/quiet/client (best effort, volatile: incompatible QoS, ",
        "change qos_overrides./quiet/image.subscription.*)",
        "/quiet/client (sends sensor_msgs/msg/CompressedImage, not sensor_msgs/msg/Image; set image_transport to",
        "/quiet/weak/image (sensor_msgs/msg/Image)",
        "`--ros-args -r image:=TOPIC`",
    ):
        assert words in warning
    assert "/quiet/stream/depth/image" not in warning  # its own
    diagnostics.clear()
    client.until(lambda: diagnostics)
    (verdict,) = (status for status in diagnostics[-1].status if status.name == "/quiet/stream")
    assert (verdict.level, verdict.message) == (DiagnosticStatus.STALE, "no image for 5 s")

    for publisher in (wrong_type, incompatible):
        (client if publisher is wrong_type else other).node.destroy_publisher(publisher)
    fitting = client.node.create_publisher(Image, "image", QoSProfile(depth=10))
    client.until(lambda: send(fitting) and client.received["~/status"])
    client.node.destroy_publisher(fitting)
    assert len(warnings(node)) == 1
    if endurance:
        spans = SILENCE_REPEAT  # s, of a look a second
        client.until(lambda: len(warnings(node)) == 3, seconds=2 * spans + 60)  # a silence of its own, said twice
        assert "Its publishers: none." in warnings(node)[1]
        _, second, third = (float(line.split("[")[2].split("]")[0]) for line in warnings(node))
        assert third - second == pytest.approx(spans, abs=1)
    node.send_signal(signal.SIGINT)  # while it waits
    assert node.exit_code() == 0, node.output()


def test_a_time_in_which_images_were_switched_off_is_no_silence(start_node, start_client):
    client = start_client("/off")
    diagnostics = client.listen(DiagnosticArray, "/diagnostics")
    node = start_node("stream", {"__ns": "/off"}, device="cpu", image_width=56)

    def verdict():
        diagnostics.clear()
        client.until(lambda: any(array.status[0].name == "/off/stream" for array in diagnostics))
        return next(array.status[0].message for array in diagnostics if array.status[0].name == "/off/stream")

    client.until(lambda: verdict() == "no image for 5 s")
    client.until(lambda: len(warnings(node)) == 1)
    assert client.enable(False).success
    client.until(lambda: verdict() == "images are ignored: ~/enable")
    assert client.enable(True).success
    client.until(lambda: verdict() != "images are ignored: ~/enable")
    assert verdict() == "every image is used"
    assert len(warnings(node)) == 1
    client.until(lambda: len(warnings(node)) == 2)  # of a silence of its own


def test_images_that_the_middleware_loses_are_counted(start_node, start_client, figures):
    """More than the shared memory holds at a time, best effort: which arrive is up to the machine."""
    client = start_client("/lossy")
    client.node.destroy_publisher(client.images)
    client.images = client.node.create_publisher(Image, "image", qos_profile_sensor_data)
    node = start_node("stream", {"__ns": "/lossy"}, device="cpu", image_width=56, queue="all", queue_size=1000)
    client.until(lambda: "subscribing anew, best effort as the publishers" in node.output())
    client.until(lambda: client.images.publish(client.image()) or client.received["~/status"])
    first = client.exchange(client.image())
    sent = [client.image(seed, height=480, width=640) for seed in range(60)]
    client.reset()  # images of another size follow
    client.play(sent)
    for _ in range(2):
        client.images.publish(client.image())
    client.exchange(client.image())  # the third in a row of its size
    last = client.exchange(client.image())  # a loss may be told just after the next image
    arrived, lost = last.frames_received - first.frames_received, last.frames_lost - first.frames_lost
    figures("large images best effort, default shared memory: sent, arrived, reported lost", f"64, {arrived}, {lost}")
    assert 4 <= arrived <= 64
    assert arrived + lost == 64  # the last one came, so every gap before it is known
    stamps = {stamp_ns(image.header) for image in sent} & set(client.stamps("~/status"))
    assert len(stamps) == arrived - 4
    assert last.frames_refused == last.frames_replaced == 0
