# SPDX-License-Identifier: Apache-2.0
"""Two processes over real DDS: the node as users run it, and a client."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy")

from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from support.two_processes import STREAM_NODE

from xsvggt_ros import CacheConfig, GeometryStream, StreamConfig
from xsvggt_ros.geometry import ros_pose, rotation_matrix, transform
from xsvggt_ros.messages.decode import decode_image, stamp_ns
from xsvggt_ros.messages.topics import TOPICS

BUDGET = 212  # tokens: four frames of the demo model at 112 x 84
START = dict(device="cpu", dtype="float32", queue_size=300, point_stride=1)
LIVE = dict(queue="all", cache__budget_tokens=BUDGET, cache__key_bits=4, cache__value_bits=4)


@pytest.fixture(scope="module")
def node(start_node, client):
    """One node for all tests: each must leave it usable."""
    node = start_node(**START)
    client.connect()
    return node


@pytest.fixture
def user(node, client):
    """The client, with every image so far answered and the live settings as above."""
    assert client.set_parameters(**LIVE).successful
    assert client.reset().success  # the images before were of any size
    client.exchange(client.image())
    client.settle()
    return client


def array(msg, channels=1):
    """Values of a 32FC1 image or an x y z rgb cloud, float32 [h, w] or [h, w, 4]."""
    return np.frombuffer(msg.data, np.float32).reshape(msg.height, msg.width, channels).squeeze()


def matrix(translation, rotation):
    T = np.eye(4)
    T[:3, :3] = rotation_matrix(np.array([rotation.x, rotation.y, rotation.z, rotation.w]))
    T[:3, 3] = translation.x, translation.y, translation.z
    return T


def test_images_at_30_hz_come_back_on_every_topic_with_their_stamps(user):
    images = [user.image(seed) for seed in range(60)]
    sent = [stamp_ns(image.header) for image in images]
    user.play(images)
    user.until(lambda: all(user.stamps(topic)[-1:] == sent[-1:] for topic in TOPICS))
    for topic in TOPICS:
        assert user.stamps(topic) == sent, topic
    statuses = user.received["~/status"]
    assert [s.frame for s in statuses] == list(range(statuses[0].frame, statuses[0].frame + 60))
    assert all(s.tokens == s.budget_tokens == BUDGET for s in statuses[4:])
    assert len({(s.frames_replaced, s.frames_refused) for s in statuses}) == 1


def test_encodings_sizes_and_frames(user):
    user.reset()
    user.exchange(user.image(height=168, width=224))
    user.until(lambda: all(user.received.values()))
    depth, confidence, info, cloud = (
        user.received[topic][0] for topic in ("~/depth/image", "~/confidence/image", "~/depth/camera_info", "~/points")
    )
    assert depth.encoding == confidence.encoding == "32FC1"
    sizes = {(m.height, m.width) for m in (depth, confidence, info, cloud)}
    assert sizes == {(84, 112)}
    assert (cloud.point_step, cloud.row_step, len(cloud.data)) == (16, 16 * 112, 16 * 112 * 84)
    assert {m.header.frame_id for m in (depth, confidence, info, cloud)} == {"lens"}
    (stamped,) = user.received["/tf"][0].transforms
    odometry = user.received["~/odometry"][0]
    assert (stamped.header.frame_id, stamped.child_frame_id) == ("odom", "lens")
    assert (odometry.header.frame_id, odometry.child_frame_id) == ("odom", "lens")
    assert user.received["~/path"][0].header.frame_id == "odom"


def test_what_is_published_is_what_the_stream_says(user):
    """Depth and camera_info give the points, and TF takes them to the world of the same stream run here."""
    user.reset()
    cache = CacheConfig(budget_tokens=BUDGET, key_bits=4, value_bits=4)
    stream = GeometryStream(StreamConfig(device="cpu", dtype="float32", cache=cache))
    for seed in range(6):
        image = user.image(seed)
        user.exchange(image)
        user.until(lambda: all(messages for messages in user.received.values()))
        frame = stream.step(decode_image(image))
        got = {topic: messages.pop() for topic, messages in user.received.items()}

        depth, cloud = array(got["~/depth/image"]), array(got["~/points"], 4)
        K = got["~/depth/camera_info"].k.reshape(3, 3)
        v, u = np.indices(depth.shape)
        unprojected = np.stack([(u - K[0, 2]) / K[0, 0] * depth, (v - K[1, 2]) / K[1, 1] * depth, depth], -1)
        np.testing.assert_allclose(cloud[..., :3], unprojected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(depth, frame.depth, rtol=1e-4)

        transformed = got["/tf"].transforms[0].transform
        T_odom_cam = matrix(transformed.translation, transformed.rotation)
        pose = got["~/odometry"].pose.pose
        np.testing.assert_allclose(T_odom_cam, matrix(pose.position, pose.orientation), atol=1e-12)
        world = transform(T_odom_cam, cloud[..., :3].astype(np.float64))
        expected = transform(ros_pose(np.eye(4)), frame.points_world().astype(np.float64))
        np.testing.assert_allclose(world, expected, atol=1e-4)


def test_parameters_change_between_two_frames_while_images_flow(user):
    images = [user.image(seed) for seed in range(60)]
    futures = []
    change = dict(cache__budget_tokens=110, cache__key_bits=2, cache__value_bits=8)
    user.play(images, at={20: lambda: futures.append(user.ask_parameters(**change))})
    assert user.response(futures[0]).result.successful
    user.until(lambda: user.stamp in user.stamps("~/status"))
    statuses = user.received["~/status"]
    assert user.stamps("~/status") == [stamp_ns(image.header) for image in images]
    settings = [(s.budget_tokens, s.key_bits, s.value_bits) for s in statuses]
    switch = settings.index((110, 2, 8))
    assert 0 < switch < 60
    assert settings == [(BUDGET, 4, 4)] * switch + [(110, 2, 8)] * (60 - switch)
    assert statuses[switch].event
    assert all(s.tokens <= s.budget_tokens for s in statuses)
    assert [s.frame for s in statuses] == list(range(statuses[0].frame, statuses[0].frame + 60))
    assert statuses[-1].cache_bytes < statuses[0].cache_bytes


def test_next_status_shows_a_change_that_was_accepted(user):
    for budget, bits in ((106, 16), (150, 2), (5, 8)):
        assert user.set_parameters(cache__budget_tokens=budget, cache__key_bits=bits).successful
        status = user.exchange(user.image())
        assert (status.budget_tokens, status.key_bits) == (max(budget, status.floor_tokens), bits)
        assert status.budget_raised == (budget < status.floor_tokens)
        assert status.tokens <= status.budget_tokens


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (dict(cache__budget_tokens=100, cache__key_bits=5), "one of 1, 2, 3, 4, 8, 16, got 5"),
        (dict(cache__budget_tokens=100, dtype="float16"), "dtype can only change before the node is configured"),
        (dict(cache__budget_tokens=-1), "Min: 0"),
    ],
)
def test_bad_parameter_is_refused_with_the_reason_and_nothing_changes(user, bad, reason):
    result = user.set_parameters(**bad)
    assert not result.successful
    assert reason in result.reason
    status = user.exchange(user.image())
    assert (status.budget_tokens, status.key_bits, status.event) == (BUDGET, 4, "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(encoding="64FC7"), "'64FC7' is not supported"),
        (dict(height=0), "112 x 0 pixels"),
        (dict(step=100), "step is 100 bytes"),
        (dict(height=85), "28224 bytes; step 336 x height 85"),
        (dict(encoding="mono16", is_bigendian=1), "little-endian"),
    ],
)
def test_bad_image_is_counted_and_the_next_good_one_works(node, user, change, reason):
    before = user.exchange(user.image())
    bad = user.image()
    for name, value in change.items():
        setattr(bad, name, value)
    user.images.publish(bad)
    after = user.exchange(user.image())
    assert after.frames_rejected == before.frames_rejected + 1
    assert (after.frame, after.resets) == (before.frame + 1, before.resets)


def test_rejection_is_logged_with_its_reason(node, user):
    assert "image not used: image encoding '64FC7' is not supported; convert it to one of rgb8" in node.output()


def test_repeated_stamp_is_late(user):
    before = user.exchange(user.image())
    again = user.image()
    user.restamp(again, stamp_ns(before.header))
    user.images.publish(again)
    after = user.exchange(user.image())
    assert (after.frames_late, after.frame) == (before.frames_late + 1, before.frame + 1)


def test_late_image_is_not_a_new_world(user):
    before = user.exchange(user.image())
    late = user.image()
    user.restamp(late, stamp_ns(before.header) - 16_000_000)
    user.images.publish(late)
    after = user.exchange(user.image())
    assert (after.frames_late, after.frame) == (before.frames_late + 1, before.frame + 1)
    assert after.resets == before.resets


def test_image_of_another_camera_is_not_used(user):
    before = user.exchange(user.image())
    other = user.image()
    other.header.frame_id = "rear_camera"
    user.images.publish(other)
    after = user.exchange(user.image())
    assert (after.frames_rejected, after.frame) == (before.frames_rejected + 1, before.frame + 1)


def test_stamp_that_goes_back_starts_a_new_world(user):
    before = user.exchange(user.image())
    user.stamp -= 10**10
    after = user.exchange(user.image())
    assert (after.frame, after.resets) == (0, before.resets + 1)
    assert "went back by 9.967 s" in after.event
    assert user.exchange(user.image()).frame == 1


def test_another_image_size_starts_a_new_world(user):
    before = user.exchange(user.image())
    for _ in range(2):  # these could be strays
        user.images.publish(user.image(height=98, width=112))
    after = user.exchange(user.image(height=98, width=112))
    assert (after.frame, after.resets) == (0, before.resets + 1)
    assert after.frames_rejected == before.frames_rejected + 2
    assert "size" in after.event
    user.until(lambda: after.header.stamp in [m.header.stamp for m in user.received["~/depth/image"]])
    assert (user.received["~/depth/image"][-1].height, user.received["~/depth/image"][-1].width) == (98, 112)


def test_reset_service_starts_a_new_world(user):
    before = user.exchange(user.image())
    assert user.reset().success
    after = user.exchange(user.image())
    assert (after.frame, after.resets) == (0, before.resets + 1)
    assert "reset" in after.event


def test_disabled_node_ignores_images_and_goes_on_where_it_was(user):
    before = user.exchange(user.image())
    assert user.enable(False).success
    user.images.publish(user.image())
    assert user.enable(True).success
    after = user.exchange(user.image())
    assert (after.frame, after.frames_received) == (before.frame + 1, before.frames_received + 1)


def test_camera_info_unprojects_and_a_bad_one_is_ignored(node, user):
    user.reset()
    info = CameraInfo(height=168, width=224, k=[200.0, 0.0, 111.5, 0.0, 210.0, 83.5, 0.0, 0.0, 1.0])

    def intrinsics(k):
        """Of the frame after this camera_info has arrived."""
        info.k = k
        user.camera_infos.publish(info)
        user.received["~/depth/camera_info"].clear()
        for _ in range(5):  # the two topics race
            user.exchange(user.image(height=168, width=224))
        user.until(lambda: user.stamps("~/depth/camera_info")[-1:] == [user.stamp])
        return user.received["~/depth/camera_info"][-1].k.reshape(3, 3)

    # Half the size; pixel centres lie at integers: c' = (c + 0.5) / 2 - 0.5.
    np.testing.assert_allclose(intrinsics(info.k), [[100, 0, 55.5], [0, 105, 41.5], [0, 0, 1]])
    assert intrinsics([np.nan, *info.k[1:]])[0, 0] != 100
    assert "camera_info ignored: camera_info K has values that are not finite" in node.output()


def test_newest_image_wins_by_default_and_the_others_are_counted(user):
    assert user.set_parameters(queue="latest").successful
    before = user.exchange(user.image())
    for seed in range(30):
        user.images.publish(user.image(seed))
    user.until(lambda: user.stamp in user.stamps("~/status"))
    after = user.received["~/status"][-1]
    assert after.frames_replaced > before.frames_replaced
    answered = after.frame - before.frame
    assert after.frames_received - before.frames_received == answered + after.frames_replaced - before.frames_replaced


def test_compressed_images_follow_the_remapping_of_image(start_node, client):
    node = start_node("compressed", {"image": "camera/image"}, device="cpu", image_transport="compressed")
    images = client.node.create_publisher(CompressedImage, "camera/image/compressed", 10)
    jpeg = cv2.imencode(".jpg", np.zeros((84, 112, 3), np.uint8))[1].tobytes()

    def publish_until(words):
        for data in (jpeg, jpeg[:-20]):
            msg = CompressedImage(format="jpeg", header=client.image().header)
            msg.data.frombytes(data)
            images.publish(msg)
        return words in node.output()

    client.until(lambda: publish_until("cache:"))
    client.until(lambda: publish_until("it is a damaged or cut off JPEG"))


def test_large_images_all_arrive_from_a_reliable_camera(user):
    """640x480 is more than Fast DDS's shared memory holds: best effort, nearly none of them would."""
    images = [user.image(seed, height=480, width=640) for seed in range(30)]
    user.reset()
    user.play(images)
    user.until(lambda: user.stamp in user.stamps("~/status"))
    assert user.stamps("~/status") == [stamp_ns(image.header) for image in images]


def test_a_best_effort_camera_is_heard_too(start_node, client):
    node = start_node("best_effort", {"image": "weak/image"}, device="cpu")
    images = client.node.create_publisher(Image, "weak/image", qos_profile_sensor_data)

    def answered():
        images.publish(client.image())
        return "cache:" in node.output()

    client.until(answered)


@pytest.mark.parametrize("passed_over", ["--cache.key_bits 8", "cache.key_bits:=8"])
def test_arguments_that_ros_passes_over_are_refused_with_the_remedy(passed_over):
    done = subprocess.run(
        [sys.executable, STREAM_NODE, *passed_over.split()], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"arguments that mean nothing here: {passed_over}; give parameters as --ros-args -p" in done.stderr
    assert "Traceback" not in done.stderr
