# SPDX-License-Identifier: Apache-2.0
"""The same images give the same outputs: by `xsvggt replay` twice, and by the node that gets them over DDS."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support.paths import ROOT

pytest.importorskip("rclpy")

from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import deserialize_message
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import CameraInfo, Image
from support.recordings import SECOND, camera_info, header, message, raw_image, write_bag
from tf2_msgs.msg import TFMessage

from xsvggt_ros.cli import main
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.messages.topics import TOPICS

START = 1_000 * SECOND
STEP = SECOND // 10
SIZE = (96, 128)
FRAMES = 12
K = np.array([[120.0, 0, 62.5], [0, 118.0, 49.0], [0, 0, 1]])
LARGE = {"output.resolution": "input"}
MOUNTED = {"base_frame": "base_link", "scale.source": "fixed", "scale.factor": 2.5}
CASES = {
    "plain": ({}, False, False),
    "mounted": (MOUNTED, True, False),
    "lens": ({}, False, True),
    "all": (MOUNTED | {"cache.policy": "random", "cache.budget_tokens": 250, "point_stride": 1} | LARGE, True, True),
}


def pictures():
    """RGB noise that moves, uint8 [H, W, 3]."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[0], SIZE[1] + 4 * FRAMES, 3), np.uint8)
    return [noise[:, 4 * i : 4 * i + SIZE[1]].copy() for i in range(FRAMES)]


def mounting():
    """The camera 0.3 m ahead of base_link and 0.6 m above it, looking 20 degrees down."""
    half = np.deg2rad(20) / 2
    level, down = np.array([-0.5, 0.5, -0.5, 0.5]), np.array([-np.sin(half), 0, 0, np.cos(half)])
    q = dict(zip("xyzw", _product(level, down), strict=True))
    transform = message(
        "geometry_msgs/msg/Transform",
        translation=message("geometry_msgs/msg/Vector3", x=0.3, y=0.0, z=0.6),
        rotation=message("geometry_msgs/msg/Quaternion", **q),
    )
    stamped = message(
        "geometry_msgs/msg/TransformStamped",
        header=header(START, "base_link"),
        child_frame_id="cam_optical",
        transform=transform,
    )
    return message("tf2_msgs/msg/TFMessage", transforms=[stamped])


def _product(p, q):
    """Of quaternions x y z w."""
    v = p[3] * q[:3] + q[3] * p[:3] + np.cross(p[:3], q[:3])
    return [*map(float, v), float(p[3] * q[3] - p[:3] @ q[:3])]


def make_bag(path, transforms, lens):
    messages = [("/cam/image_raw", START + i * STEP, raw_image(p, START + i * STEP)) for i, p in enumerate(pictures())]
    if lens:
        info = camera_info(K, SIZE)
        info.distortion_model, info.d = "plumb_bob", np.array([-0.2, 0.05, 0.001, -0.002, 0.01])
        messages.insert(0, ("/cam/camera_info", START, info))
    if transforms:
        messages.append(("/tf_static", START + FRAMES * STEP, mounting()))  # as from a latched publisher seen late
    return write_bag(path, messages)


def arguments(bag, output, settings):
    flags = [item for name, value in settings.items() for item in (f"--{name}", str(value))]
    return ["replay", str(bag), "--output", str(output), "--device", "cpu", "--dtype", "float32", *flags]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name == "all" else pytest.mark.slow) for name in CASES]
)
def case(request, tmp_path_factory):
    """Settings, bag and the output of its replay."""
    settings, transforms, lens = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    bag = make_bag(folder / "in", transforms, lens)
    assert main(arguments(bag, folder / "out", settings)) == 0
    return settings, bag, folder / "out"


def test_two_replays_give_the_same_files(case, tmp_path):
    """Also from another process, of another time zone and another order of sets."""
    settings, bag, first = case
    command = [sys.executable, "-m", "xsvggt_ros.cli", *arguments(bag, tmp_path / "out", settings)]
    surroundings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7", "TZ": "Asia/Kolkata"}
    subprocess.run(command, env=surroundings, cwd=ROOT, check=True)
    once, again = files(first), files(tmp_path / "out")
    assert {"trajectory.txt", "cloud.ply", "depth/000011.png", "bag/bag.mcap", "bag/metadata.yaml"} <= once.keys()
    assert once.keys() == again.keys()
    assert [name for name in once if once[name] != again[name]] == []


def of_bag(path, topic, kind):
    """The messages of a topic, as rclpy's."""
    with AnyReader([path]) as reader:
        connections = [c for c in reader.connections if c.topic == topic]
        rows = reader.messages(connections) if connections else ()
        return [deserialize_message(bytes(data), kind) for _, _, data in rows]


def prepare(client, bag):
    """What the bag has beside images is known to the node, which then starts a new world."""
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    transforms = client.node.create_publisher(TFMessage, "/tf_static", latched)
    for msg in of_bag(bag, "/tf_static", TFMessage):
        transforms.publish(msg)
    infos = of_bag(bag, "/cam/camera_info", CameraInfo)
    client.stamp = START - 1000 * STEP

    def known():
        for info in infos:
            client.camera_infos.publish(info)
        image = client.image(height=SIZE[0], width=SIZE[1])
        image.header.frame_id = "cam_optical"
        client.images.publish(image)
        seen = client.received["~/depth/camera_info"]
        return seen and (not infos or np.isclose(seen[-1].k[4] / seen[-1].k[0], K[1, 1] / K[0, 0], rtol=1e-9))

    client.until(known)
    client.until(lambda: client.stamps("~/status")[-1:] == [client.stamp])
    assert client.reset().success
    return transforms


def test_the_node_gives_what_replay_gives(case, start_node, start_client, figures):
    """Queue all. Poses, depth and points are the same to the last bit: both run the same code on one thread."""
    settings, bag, output = case
    client = start_client()
    parameters = {name.replace(".", "__"): value for name, value in settings.items()}
    node = start_node("stream", device="cpu", dtype="float32", queue="all", queue_size=1000, **parameters)
    transforms = prepare(client, bag)
    for received in client.received.values():
        received.clear()
    images = of_bag(bag, "/cam/image_raw", Image)
    for image in images:
        client.images.publish(image)
    stamps = [stamp_ns(image.header) for image in images]
    client.until(lambda: all(client.stamps(topic)[-1:] == stamps[-1:] for topic in TOPICS))
    client.node.destroy_publisher(transforms)
    node.kill()
    worst = max(difference(client, output, topic, field) for topic, field in FIELDS.items())
    rows = np.loadtxt(output / "trajectory.txt")
    assert rows[:, 0].tolist() == [stamp / SECOND for stamp in stamps]
    poses = [[*xyz(m.pose.pose.position), *xyz(m.pose.pose.orientation)] for m in client.received["~/odometry"]]
    np.testing.assert_allclose(poses, [[*row[1:4], *row[4:7]] for row in rows], atol=1e-9)
    assert np.ptp(rows[:, 1:4], axis=0).max() > 1e-4  # it moved
    figures("node against replay, largest difference of a pose's, depth's or point's number", worst)
    assert worst == 0


def xyz(vector):
    return vector.x, vector.y, vector.z


FIELDS = {
    "/tf": lambda m: [*xyz(m.transforms[0].transform.translation), *xyz(m.transforms[0].transform.rotation)],
    "~/odometry": lambda m: [*xyz(m.pose.pose.position), *xyz(m.pose.pose.orientation), *m.pose.covariance],
    "~/path": lambda m: [value for p in m.poses for value in (*xyz(p.pose.position), *xyz(p.pose.orientation))],
    "~/depth/image": lambda m: np.frombuffer(m.data, np.float32),
    "~/depth/camera_info": lambda m: m.k,
    "~/confidence/image": lambda m: np.frombuffer(m.data, np.float32),
    "~/rgb/image": lambda m: np.frombuffer(m.data, np.uint8),
    "~/rgb/camera_info": lambda m: [m.width, m.height, *m.k, *m.p],
    "~/points": lambda m: np.frombuffer(m.data, np.float32).reshape(-1, 4)[:, :3],
}


def difference(client, output, topic, numbers):
    """Largest between the node's messages and the replay's; NaN equals NaN."""
    received = client.received[topic]
    recorded = of_bag(output / "bag", topic.replace("~", "/stream"), type(received[0]))
    assert len(received) == len(recorded) == FRAMES
    found = []
    for ours, theirs in zip(received, recorded, strict=True):
        a, b = np.asarray(numbers(ours), np.float64), np.asarray(numbers(theirs), np.float64)
        assert a.shape == b.shape and np.array_equal(np.isnan(a), np.isnan(b))
        found.append(np.abs(np.nan_to_num(a - b)).max())
    return max(found)
