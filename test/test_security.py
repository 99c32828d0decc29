# SPDX-License-Identifier: Apache-2.0
"""What hostile files and full disks do: nothing beyond what was asked for.

Weights: that loading them runs no code is shown with payloads that would leave a folder behind; test_weights.py has the
plain checkpoint. Replay: every path that Python opens for writing, or changes, is seen by an audit hook, and what its
libraries do in C by a comparison of all files around, temporary folder and home included, before and after. (strace
shows one more: a semaphore of tqdm's in /dev/shm, which is gone at the end.) Network: the hook sees what Python asks
for, and the kernel kills the process at the first socket, whoever opens it (Linux).
Disk: what the kernel says of a file size limit, and of a full tmpfs where one may be mounted.
"""

import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rosbags.rosbag2 import StoragePlugin, Writer
from safetensors.torch import save_file
from support.frames import frame, read_ply
from support.full_disk import limited
from support.paths import ROOT
from support.recordings import SECOND, TYPES, camera_info, picture, raw_image, write_bag, write_folder
from support.watched import ASKS, CHANGES, UNFILTERED
from torch import nn

from xsvggt_ros.cli import main
from xsvggt_ros.messages.bag import open_bag
from xsvggt_ros.model.weights import load_weights
from xsvggt_ros.replay.files import write_depth

# Weights


class Payload:
    """A pickle of it calls the function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def network():
    return nn.Linear(4, 3)


def load(path):
    load_weights(network(), path, lambda name: torch.float32, "cpu")


def payloads(trace):
    """Ways to make the folder `trace`."""
    return {
        "mkdir": Payload(os.mkdir, trace),
        "exec": Payload(exec, f"import os; os.mkdir({trace!r})"),
        "eval": Payload(eval, f"__import__('os').mkdir({trace!r})"),
        "system": Payload(os.system, f"mkdir {trace}"),
        "popen": Payload(subprocess.Popen, ["mkdir", trace]),
        "nested pickle": Payload(pickle.loads, pickle.dumps(Payload(os.mkdir, trace))),
    }


def write_pickle(content, path):
    path.write_bytes(pickle.dumps(content))


def write_zip(content, path):
    """As torch.save does, but with the pickle as it is."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(content))
        file.writestr("archive/version", "3")


def write_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


WRITERS = {"torch.save": torch.save, "pickle": write_pickle, "zip": write_zip, "legacy": write_legacy}
PLACES = {
    "value": lambda payload: network().state_dict() | {"x": payload},
    "key": lambda payload: {("k", payload): torch.ones(1)},
    "whole": lambda payload: payload,
    "nested": lambda payload: {"model": network().state_dict(), "args": [({"lr": (payload,)},)]},
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("writer", WRITERS)
def test_code_in_weights_is_not_run(tmp_path, writer, suffix):
    """Wherever in the file it is, and whatever the file says that it is."""
    trace = tmp_path / "trace"
    for name, payload in payloads(str(trace)).items():
        for place, make in PLACES.items():
            path = tmp_path / f"weights{suffix}"
            WRITERS[writer](make(payload), path)
            with pytest.raises(ValueError, match=r"refused|not a complete"):
                load(path)
            assert not trace.exists(), (name, place)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.script(network()).save(str(tmp_path / "weights.pt"))
    with pytest.raises(ValueError, match=r"weights\.pt"):
        load(tmp_path / "weights.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_damaged_weights_load_or_are_refused(tmp_path, suffix, endurance):
    """Bytes flipped where the file says what it holds: ValueError, or tensors of the model's shapes."""
    path = tmp_path / f"weights{suffix}"
    save_file(network().state_dict(), path) if suffix == ".safetensors" else torch.save(network().state_dict(), path)
    whole, random_ = path.read_bytes(), random.Random(0)
    for _ in range(3000 if endurance else 300):
        damaged = bytearray(whole)
        for _ in range(random_.randint(1, 4)):
            damaged[random_.randrange(len(damaged))] ^= 1 << random_.randrange(8)
        path.write_bytes(damaged)
        try:
            load(path)
        except ValueError as error:
            assert str(path) in str(error)


# Replay and the core, watched


class Watched:
    """watched.py in a process of its own, whose home and temporary folder are below a folder; what it did."""

    def __init__(self, folder):
        self.home = folder / "home"
        self.home.mkdir()
        self.log = folder / "audit.jsonl"

    def run(self, *arguments):
        command = [sys.executable, ROOT / "test/support/watched.py", self.log, *map(str, arguments)]
        places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), str(self.home))
        surroundings = os.environ | places | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, env=surroundings, cwd=self.home, capture_output=True, text=True)

    def events(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def changed_paths(self):
        """What was opened for writing, or changed otherwise."""
        paths = [
            path
            for event, args in self.events()
            if event in ("open", *CHANGES)
            for path in args[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]
        ]
        return {Path(self.home, path) for path in paths if not path.isdecimal()}  # numbers are files open already

    def asked(self):
        """For sockets and processes."""
        return [[event, *args] for event, args in self.events() if event.startswith(ASKS)]


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path)


ALLOWED = {Path(os.devnull)}


def contents(folder, but):
    """{path: what it is} of all below a folder, except one tree."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if but not in (path, *path.parents):
            digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[path] = os.readlink(path) if path.is_symlink() else digest
    return found


def hostile_bag(path):
    """Names of topics and frames that would lead elsewhere, were they taken for paths."""
    topics = ["/../../../escaped/image_raw", "/../../../escaped/camera_info"]
    messages = []
    for i in range(4):
        messages.append((topics[0], i * SECOND, raw_image(picture(i), i * SECOND, frame_id="../../../escaped/frame")))
    messages.insert(0, (topics[1], 0, camera_info(np.diag([50.0, 50.0, 1.0]))))
    return write_bag(path, messages)


@pytest.mark.parametrize("through_link", [False, True])
def test_replay_writes_only_below_its_output(watched, tmp_path, through_link):
    """A link as output means the folder that it leads to."""
    bag, output = hostile_bag(tmp_path / "in"), tmp_path / "below" / "out"
    if through_link:
        output.mkdir(parents=True)
        (tmp_path / "link").symlink_to(output)
    before = contents(tmp_path, output)
    done = watched.run("replay", bag, "--output", tmp_path / "link" if through_link else output)
    assert done.returncode == 0, done.stderr
    given = tmp_path / "link" if through_link else output
    elsewhere = [p for p in watched.changed_paths() if given not in (p, *p.parents) and p not in ALLOWED]
    assert elsewhere == ([] if through_link else [output.parent])  # made on the way
    after = contents(tmp_path, output)
    mine = {output.parent, watched.log}
    assert {path: after[path] for path in after.keys() - mine} == {path: before[path] for path in before.keys() - mine}
    assert len(list((output / "depth").iterdir())) == 4
    with open_bag(output / "bag") as written:
        assert written.counts["/stream/odometry"] == 4


@pytest.mark.parametrize("name", ["trajectory.txt", "cloud.ply", "depth", "bag", ".writable"])
@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
def test_links_in_the_output_are_not_followed(tmp_path, capsys, name, target):
    """Those of a replay's own names are refused."""
    images, output, aside = write_folder(tmp_path / "images", 2), tmp_path / "out", tmp_path / "aside"
    output.mkdir()
    aside.mkdir()
    (aside / "folder").mkdir()
    (aside / "file").write_text("precious")
    (output / name).symlink_to(aside / target)
    before = contents(tmp_path, output)
    code = main(["replay", str(images), "--output", str(output)])
    assert code == (0 if name == ".writable" else 2)
    assert code == 0 or f"already has {name}" in capsys.readouterr().err
    assert contents(tmp_path, output) == before


def test_nothing_asks_for_a_socket_or_a_process(watched, tmp_path):
    """Neither `xsvggt replay` nor the stream alone."""
    done = watched.run("replay", hostile_bag(tmp_path / "in"), "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    done = watched.run("step_alone")
    assert done.returncode == 0, done.stderr
    assert watched.asked() == []


def test_a_socket_that_python_does_not_see_is_the_end(watched):
    """So that the test above has shown something of the libraries in C, too."""
    done = watched.run("open_socket_unseen")
    if [UNFILTERED, []] in watched.events():
        pytest.skip("this kernel takes no filter")
    assert done.returncode == -signal.SIGSYS


REFERENCES = {
    "/tf": "tf2_msgs/msg/TFMessage",
    "/tf_static": "tf2_msgs/msg/TFMessage",
    "/odometry": "nav_msgs/msg/Odometry",
    "/cam/camera_info": "sensor_msgs/msg/CameraInfo",
}
NEEDS_ALL = ["--base_frame", "base", "--scale.source", "odometry", "--reference", "/odometry"]


def bag_of_bytes(path, kinds, data):
    """Two images, and between them messages of other topics that are these bytes."""
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        types = {"/cam/image_raw": "sensor_msgs/msg/Image"} | kinds
        topics = {topic: writer.add_connection(topic, kind, typestore=TYPES) for topic, kind in types.items()}
        for i in range(2):
            image = raw_image(picture(i), i * SECOND)
            writer.write(topics["/cam/image_raw"], i * SECOND, TYPES.serialize_cdr(image, types["/cam/image_raw"]))
            for topic in kinds:
                writer.write(topics[topic], i * SECOND + 1, data)
    return path


@pytest.mark.parametrize("length", [0, 3, 4, 5, 40, 400])
def test_bytes_that_are_no_messages_are_ignored(tmp_path, caplog, length):
    data = b"\0\1\0\0"[:length] + random.Random(length).randbytes(max(0, length - 4))
    bag = bag_of_bytes(tmp_path / "in", REFERENCES, data)
    assert main(["replay", str(bag), "--output", str(tmp_path / "plain")]) == 0
    assert "camera_info ignored: message on /cam/camera_info cannot be decoded" in caplog.text
    assert main(["replay", str(bag), "--output", str(tmp_path / "all"), *NEEDS_ALL]) == 2  # no image can be placed
    for topic in ("/tf", "/tf_static", "/odometry"):
        assert f"{topic} ignored: message on {topic} cannot be decoded" in caplog.text


@pytest.mark.parametrize("topic", ["/tf", "/tf_static", "/odometry"])
def test_a_topic_of_another_type_is_refused(tmp_path, capsys, topic):
    bag = bag_of_bytes(tmp_path / "in", REFERENCES | {topic: "std_msgs/msg/String"}, b"\0\1\0\0\1\0\0\0\0")
    assert main(["replay", str(bag), "--output", str(tmp_path / "out"), *NEEDS_ALL]) == 2
    assert f"{topic} of {bag} is a std_msgs/msg/String, it must be a {REFERENCES[topic]}" in capsys.readouterr().err


@pytest.mark.parametrize("stamp", [-1, -(2**31)])
def test_an_image_of_no_time_is_left_out(tmp_path, caplog, stamp):
    """A bag cannot hold such a time; nor can tf2."""
    images = [("/cam/image_raw", i, raw_image(picture(i), i * SECOND)) for i in range(2)]
    images[0][2].header.stamp.sec = stamp
    assert main(["replay", str(write_bag(tmp_path / "in", images)), "--output", str(tmp_path / "out")]) == 0
    assert f"the stamp, {stamp} s and 0 ns, is no time" in caplog.text


# A full disk

COUNT = 25


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("recording") / "images", COUNT)


def check_readable(output):
    """Everything is whole up to where the disk was full. Returns the frames in the trajectory and in the bag."""
    rows = len(np.loadtxt(output / "trajectory.txt", ndmin=2))
    text = (output / "cloud.ply").read_bytes()
    vertices = read_ply(output / "cloud.ply")
    assert len(text) == text.index(b"end_header\n") + len("end_header\n") + len(vertices) * vertices.itemsize
    depths = sorted((output / "depth").iterdir())
    assert len(depths) in (rows, rows - 1)
    assert all(cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape == (84, 112) for path in depths)
    return rows, read_frames(output / "bag")


def read_frames(path):
    """Those with a status in a bag that was not closed."""
    counts: Counter = Counter()
    if not list(path.glob("*.mcap")) or not any(file.stat().st_size for file in path.glob("*.mcap")):
        return 0
    try:
        with open_bag(path) as bag:
            for topic, data in bag.messages(list(bag.topics)):
                if not topic.endswith("status"):  # a type of ours
                    bag.decode(topic, data)
                counts[topic] += 1
    except ValueError as error:  # DamagedBag is one, and so is that nothing has been written
        assert str(path) in str(error)
    return counts["/stream/status"]


# Of what the disk takes: points in the cloud, or none so that the bag is first to grow; frames and those in the bag.
LIMITS = {
    "no point": (20_000, "0", range(1, 2), range(1)),
    "points": (200_000, "0", range(2, COUNT), range(1, 3)),
    "bag": (1_500_000, "1000", range(10, COUNT), range(5, COUNT)),
}


@pytest.mark.parametrize("case", LIMITS)
def test_a_file_that_cannot_grow(images, tmp_path, capsys, case):
    size, threshold, frames, recorded = LIMITS[case]
    with limited(size):
        code = main(["replay", str(images), "--output", str(tmp_path / "out"), "--confidence_threshold", threshold])
    assert code == 2
    assert f"the disk of {tmp_path / 'out'} is full" in capsys.readouterr().err
    rows, in_bag = check_readable(tmp_path / "out")
    assert rows in frames and in_bag in recorded


TMPFS = """
mkdir "$2" && mount -t tmpfs -o size="$1" none "$2" || exit 77
output="$2" copy="$3"; shift 3
"$@"; code=$?
cp -r "$output" "$copy"; exit $code
"""


RARE = [pytest.param(size, marks=pytest.mark.slow) for size in ("60k", "400k", "3500k")]


@pytest.mark.parametrize("size", ["2000k", *RARE])
def test_a_full_disk(images, tmp_path, size):
    """A real one: memory mounted as a disk that only this process sees."""
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    replay = [sys.executable, "-m", "xsvggt_ros.cli", "replay", images, "--output", disk / "out"]
    command = ["unshare", "--mount", "sh", "-c", TMPFS, "sh", size, disk, copy, *replay]
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode in (1, 77) and not copy.exists():
        pytest.skip(f"may not mount: {done.stderr}")
    assert done.returncode == 2, done.stderr
    assert f"the disk of {disk / 'out'} is full (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    rows, in_bag = check_readable(copy / "out")
    assert in_bag < rows <= COUNT


def test_a_depth_image_is_whole_or_not_there(tmp_path):
    """cv2.imwrite says that it has written a small image which the disk did not take."""
    depth = np.random.default_rng(0).uniform(0, 60, (40, 40)).astype(np.float32)
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    seen = frame(depth=depth, confidence=np.ones_like(depth))
    write_depth(whole, seen, 1.0)
    with limited(whole.stat().st_size - 1), pytest.raises(OSError, match="File too large"):
        write_depth(cut, seen, 1.0)
    assert not cut.exists()
