# SPDX-License-Identifier: Apache-2.0
"""The node with streams of segments: what it sends, its maps, and settings that change while images come."""

import re
from dataclasses import fields
from functools import partial

import numpy as np
import pytest

pytest.importorskip("rclpy")

from geometry_msgs.msg import PoseArray
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from support.recordings import SECOND, raw_image, write_bag

from xsvggt_ros.cli import main
from xsvggt_ros.config import LoopConfig, SegmentConfig
from xsvggt_ros.geometry import rigid, rotation_matrix
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.topics import TOPICS
from xsvggt_ros.rooms import stream
from xsvggt_ros.segments.map import Map
from xsvggt_ros.settings import settings
from xsvggt_ros.status import SegmentStatus

SIZE = (84, 112)
FRAMES = 18
CLOSURE = 11  # the first frame of a segment that began at a keyframe seen before
SOON = {"segment.enabled": True, "segment.work": 1.0, "segment.overlap": 0.9, "segment.shared": 1}
AT_ANY_RATE = {
    "loop.likeness": 0.3,
    "loop.agreement": 0.1,
    "loop.match": 0.2,
    "loop.keyframes": 16,
    "loop.max_turn": 35.0,
}
USUAL = SOON | AT_ANY_RATE | {"loop.enabled": True, "loop.folder": ""}
EXACT = {"device": "cpu", "dtype": "float32"}


def with_underscores(values):
    return {name.replace(".", "__"): value for name, value in values.items()}


@pytest.fixture(scope="module")
def pictures():
    return [truth.rgb for truth in stream(3, FRAMES, SIZE[1], SIZE[0], "robot", 4.0)]


@pytest.fixture(scope="module")
def node(start_node, client):
    """One node for all tests: each must leave it usable."""
    options = {name: value for name, value in (EXACT | USUAL).items() if value != ""}
    node = start_node(queue="all", queue_size=1000, **with_underscores(options))
    client.keyframes = client.listen(PoseArray, "stream/keyframes")
    client.save, client.load = (client.node.create_client(Trigger, f"stream/{what}_map") for what in ("save", "load"))
    client.connect()
    return node


@pytest.fixture
def user(node, client):
    """The client, before the first image of a new world, with the settings as above."""
    assert client.set_parameters(**with_underscores(USUAL)).successful
    assert client.reset().success
    client.keyframes.clear()
    return client


def call(client, service):
    service.wait_for_service(timeout_sec=20)
    return client.response(service.call_async(Trigger.Request()))


def shot(client, picture):
    """With the next stamp."""
    msg = client.image(height=SIZE[0], width=SIZE[1])
    msg.encoding = "rgb8"
    msg.data = msg.data[:0]
    msg.data.frombytes(np.ascontiguousarray(picture).tobytes())
    return msg


def show(client, pictures):
    """Sends them, and returns the status that answers each."""
    images = [shot(client, picture) for picture in pictures]
    for image in images:
        client.images.publish(image)
    sent = [stamp_ns(image.header) for image in images]
    client.until(lambda: client.stamps("~/status")[-1:] == sent[-1:])
    found = dict(zip(client.stamps("~/status"), client.received["~/status"], strict=True))
    return [found[stamp] for stamp in sent]


def answered(client, image):
    """Waits for the status of an image."""
    client.until(lambda: stamp_ns(image.header) in client.stamps("~/status"))


# --- what it sends ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replayed(pictures, tmp_path_factory):
    """The output of a replay, and the images that were replayed."""
    folder = tmp_path_factory.mktemp("replayed")
    stamps = [1000 * SECOND + i * SECOND // 10 for i in range(FRAMES)]
    images = [("/image", stamp, raw_image(p, stamp, "lens")) for p, stamp in zip(pictures, stamps, strict=True)]
    settings = {n: v for n, v in (EXACT | USUAL).items() if v is not True and n != "loop.folder"}  # of the node alone
    flags = [item for name, value in settings.items() for item in (f"--{name}", str(value))]
    bag = write_bag(folder / "in", images)
    assert main(["replay", str(bag), "--output", str(folder / "out"), "--segment.enabled", *flags]) == 0
    return folder / "out", messages(bag, "/image", Image)


def messages(bag, topic, kind):
    """Of a topic, as rclpy's."""
    with AnyReader([bag]) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        return [deserialize_message(bytes(data), kind) for _, _, data in reader.messages(connections)]


def of_pose(pose):
    p, q = pose.position, pose.orientation
    return [p.x, p.y, p.z, q.x, q.y, q.z, q.w]


def of_transform(stamped):
    p, q = stamped.transform.translation, stamped.transform.rotation
    return [p.x, p.y, p.z, q.x, q.y, q.z, q.w]


def matrix(stamped):
    numbers = np.array(of_transform(stamped))
    return rigid(rotation_matrix(numbers[3:]), numbers[:3])


def floats(msg):
    return np.frombuffer(msg.data, np.float32)


FIGURES = ["frame", "tokens", "cache_bytes", *(field.name for field in fields(SegmentStatus))]
NUMBERS = {
    "/tf": lambda m: [number for transform in m.transforms for number in of_transform(transform)],
    "~/keyframes": lambda m: [number for pose in m.poses for number in of_pose(pose)],
    "~/odometry": lambda m: [*of_pose(m.pose.pose), *m.pose.covariance],
    "~/path": lambda m: [number for stamped in m.poses for number in of_pose(stamped.pose)],
    "~/depth/image": floats,
    "~/depth/camera_info": lambda m: m.k,
    "~/confidence/image": floats,
    "~/points": floats,
    "~/status": lambda m: [getattr(m, name) for name in FIGURES],
}


@pytest.fixture
def answers(user, replayed):
    """What the node says to the images of the replay: {topic: messages}."""
    _, images = replayed
    for received in user.received.values():
        received.clear()
    for image in images:
        user.images.publish(image)
    stamps = [stamp_ns(image.header) for image in images]
    user.until(lambda: all(user.stamps(topic)[-1:] == stamps[-1:] for topic in TOPICS))
    user.until(lambda: [stamp_ns(m.header) for m in user.keyframes][-1:] == stamps[-1:])
    assert [stamp_ns(m.header) for m in user.keyframes] == user.stamps("/tf") == stamps
    return user.received | {"~/keyframes": list(user.keyframes)}


def test_queue_all_gives_what_replay_gives_to_the_last_bit(answers, replayed):
    output, _ = replayed
    for topic, numbers in NUMBERS.items():
        ours = answers[topic]
        theirs = messages(output / "bag", topic.replace("~", "/stream"), type(ours[0]))
        assert len(ours) == len(theirs) == FRAMES
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(numbers(a), numbers(b), err_msg=topic)
    assert answers["~/status"][-1].closures >= 1


def test_map_to_odom_and_keyframes_come_with_every_frame(answers):
    names = {tuple((t.header.frame_id, t.child_frame_id) for t in msg.transforms) for msg in answers["/tf"]}
    assert names == {(("odom", "lens"), ("map", "odom"))}
    assert {msg.header.frame_id for msg in answers["~/keyframes"]} == {"map"}
    corrected = [matrix(msg.transforms[1]) for msg in answers["/tf"]]
    for T in corrected[:4]:
        np.testing.assert_allclose(T, np.eye(4), atol=1e-9)
    assert np.abs(corrected[-1] - np.eye(4)).max() > 0.01
    assert len(answers["~/keyframes"][0].poses) == 1 and len(answers["~/keyframes"][-1].poses) >= 2
    np.testing.assert_allclose(of_pose(answers["~/keyframes"][0].poses[0]), [0, 0, 0, 0, 0, 0, 1], atol=1e-9)


# --- settings that change ---------------------------------------------------------------------------

CHANGES = [
    ("segment.overlap", 0.95), ("segment.shared", 3), ("segment.work", 0.1), ("segment.work", 1.0),
    ("segment.shared", 1), ("loop.keyframes", 3), ("loop.enabled", False), ("loop.enabled", True),
    ("loop.likeness", 0.0), ("loop.agreement", 0.0), ("loop.match", 0.0), ("loop.max_turn", 180.0),
    ("segment.enabled", False), ("segment.overlap", 0.9), ("segment.enabled", True), ("loop.keyframes", 40),
    ("loop.folder", "/somewhere"), ("segment.carried", 0.0), ("refine", False), ("refine", True),
]  # fmt: skip


def test_every_setting_of_segments_and_loops_changes_while_images_come(user, pictures):
    names = {f"segment.{s.name}" for s in settings(SegmentConfig)} | {f"loop.{s.name}" for s in settings(LoopConfig)}
    assert {name for name, _ in CHANGES} == names | {"refine"}
    show(user, pictures[:2])
    images = [shot(user, pictures[i % FRAMES]) for i in range(3 * len(CHANGES) + 6)]
    for received in user.received.values():
        received.clear()
    futures = []
    for i, (name, value) in enumerate(CHANGES):
        ask = partial(user.ask_parameters, **with_underscores({name: value}))
        user.play(images[3 * i : 3 * i + 3], at={0: lambda ask=ask: futures.append(ask())})
        assert user.response(futures[-1]).result.reason == ""
        answered(user, images[3 * i + 2])  # what changes twice between two images that are taken is one change
    user.play(images[3 * len(CHANGES) :])
    answered(user, images[-1])
    statuses = user.received["~/status"]
    assert user.stamps("~/status") == [stamp_ns(image.header) for image in images]
    assert [status.frame for status in statuses] == list(range(2, 2 + len(images)))  # no new world, none lost
    assert statuses[-1].segment >= 1
    said = "; ".join(status.event for status in statuses)
    assert "segments are off" in said and "segments are on" in said
    sizes = {status.keyframe_bytes for status in statuses}
    assert sizes == {Map.nbytes_of(count, 84, 112) for count in (16, 3, 40)}


def test_the_fewest_keyframes_are_enough_to_go_on(user, pictures):
    assert user.set_parameters(loop__keyframes=3, loop__enabled=False).successful
    statuses = show(user, [*pictures, *pictures[::-1]])
    assert [status.frame for status in statuses] == list(range(2 * FRAMES))
    assert statuses[-1].frames_rejected == statuses[0].frames_rejected
    assert statuses[-1].keyframes == 3 and statuses[-1].segment >= 2


def test_segments_that_are_enabled_in_the_middle_begin_there(user, node, pictures):
    assert user.set_parameters(segment__enabled=False).successful
    before = show(user, pictures[:4])
    assert {status.keyframes for status in before} == {0}
    assert user.set_parameters(segment__enabled=True).successful
    after = show(user, pictures[4:10])
    assert [status.frame for status in after] == list(range(4, 10))
    assert after[-1].keyframes >= 1 and after[-1].located
    assert "Warning" not in node.output()  # as Python's


def test_keyframes_that_take_the_whole_budget_are_refused_with_the_reason(user, pictures):
    show(user, pictures[:2])
    assert user.set_parameters(cache__budget_mib=4.0).successful
    result = user.set_parameters(loop__keyframes=10_000)
    assert user.set_parameters(cache__budget_mib=0.0).successful
    assert not result.successful and "loop.keyframes" in result.reason


def test_reset_in_the_middle_of_a_join_begins_with_one_keyframe(user, pictures):
    assert user.set_parameters(segment__work=0.5, segment__shared=30).successful
    first, *rest = show(user, pictures[:12])
    assert rest[-1].segment == 0 and 2 * rest[-1].cache_bytes == 3 * first.cache_bytes  # the next segment is filled
    assert user.reset().success
    again = show(user, pictures[:6])
    assert (again[0].frame, again[0].segment, again[0].keyframes) == (0, 0, 1) and "reset" in again[0].event
    assert again[0].cache_bytes == first.cache_bytes
    assert user.set_parameters(segment__work=1.0, segment__shared=1).successful
    last = show(user, pictures[6:])[-1]
    assert last.frame == FRAMES - 1 and last.segment >= 1


# --- maps -------------------------------------------------------------------------------------------


def test_a_map_that_is_saved_and_loaded_is_found_again(user, pictures, tmp_path):
    assert user.set_parameters(loop__folder=str(tmp_path / "map")).successful
    statuses = show(user, pictures)
    saved = call(user, user.save)
    assert saved.success and saved.message == f"{statuses[-1].keyframes} keyframes are in {tmp_path / 'map'}"
    assert {path.name for path in (tmp_path / "map").iterdir()} == {"map.json", "keyframes.safetensors"}
    loaded = call(user, user.load)
    assert loaded.success and f"{statuses[-1].keyframes} keyframes of {tmp_path / 'map'}" in loaded.message
    again = show(user, pictures)
    assert (again[0].frame, again[0].located, again[0].keyframes) == (0, False, statuses[-1].keyframes + 1)
    assert "a map was loaded" in again[0].event
    known = [status.located for status in again].index(True)
    assert all(status.located for status in again[known:]) and again[known].closures == 1
    assert any("the place is known again" in status.event for status in again)
    assert show(user, pictures[:1])[0].keyframes >= again[-1].keyframes  # it goes on


@pytest.mark.parametrize(
    ("folder", "reason"),
    [("", "no folder is set for maps: set loop.folder"), ("{}/none", "holds no map that can be read")],
)
def test_no_map_is_no_reason_to_start_anew(user, pictures, tmp_path, folder, reason):
    assert user.set_parameters(loop__folder=folder.format(tmp_path)).successful
    before = show(user, pictures[:2])[-1]
    answer = call(user, user.load)
    assert not answer.success and reason in answer.message
    assert show(user, pictures[2:3])[0].frame == before.frame + 1


def test_a_map_without_keyframes_does_not_replace_one_that_has_some(user, pictures, tmp_path):
    """Segments have just been enabled, and the first of them is not filled yet."""
    assert user.set_parameters(loop__folder=str(tmp_path), segment__work=0.1).successful
    show(user, pictures[:2])
    assert call(user, user.save).success
    assert user.set_parameters(segment__enabled=False).successful and user.reset().success
    show(user, pictures[:2])
    assert user.set_parameters(segment__enabled=True).successful
    assert show(user, pictures[2:3])[0].keyframes == 0
    answer = call(user, user.save)
    assert not answer.success and "no keyframes" in answer.message
    assert call(user, user.load).success


@pytest.mark.parametrize("folder", ["{}/file", "{}/file/below", "/proc/self/maps_of_mine", "~nobody-of-this-name/map"])
def test_a_folder_that_cannot_be_written_costs_a_sentence(user, node, pictures, tmp_path, folder):
    (tmp_path / "file").write_text("")
    assert user.set_parameters(loop__folder=folder.format(tmp_path)).successful
    before = show(user, pictures[:2])[-1]
    answer = call(user, user.save)
    assert not answer.success and answer.message
    assert show(user, pictures[2:3])[0].frame == before.frame + 1 and node.running()


def test_an_unfinished_file_that_is_in_the_way_costs_a_sentence(user, node, pictures, tmp_path):
    """As any other failure of the disk while the numbers are written."""
    (tmp_path / "map" / "keyframes.safetensors.part").mkdir(parents=True)
    assert user.set_parameters(loop__folder=str(tmp_path / "map")).successful
    before = show(user, pictures[:2])[-1]
    answer = call(user, user.save)
    assert not answer.success and answer.message
    assert show(user, pictures[2:3])[0].frame == before.frame + 1 and node.running()


def test_before_the_first_image_there_is_no_map_to_save(start_node, start_client, tmp_path):
    client = start_client("alone")
    start_node(remappings={"__ns": "/alone"}, loop__folder=tmp_path / "map", **with_underscores(EXACT | SOON))
    answers = [call(client, client.node.create_client(Trigger, f"stream/{what}_map")) for what in ("save", "load")]
    assert not any(answer.success for answer in answers)
    assert re.search("there are no keyframes yet: .*send images", answers[0].message)
    assert "holds no map that can be read" in answers[1].message
    assert not (tmp_path / "map").exists()
