# SPDX-License-Identifier: Apache-2.0
"""The files of a replay: trajectory, cloud, depth images and a rosbag2 of the node's topics.

Every file is written frame by frame, so that memory does not grow and a run that ends early leaves
what it had. World axes are those of the node's TF: x forward, y left, z up.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile

import cv2
import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import quaternion_xyzw, transform
from xsvggt_ros.installation import package_file
from xsvggt_ros.memory import MIB
from xsvggt_ros.messages.bag import NewBag
from xsvggt_ros.messages.topics import FrameMessages, outputs
from xsvggt_ros.placement.placement import Placed
from xsvggt_ros.status import Status

NODE_NAME = "/stream"  # of stream.launch.py: what "~" stands for in topic names
DEPTH_SCALE = 1000  # steps of a depth image per unit of depth, as in 7-Scenes and Open3D's default
STATUS_TYPE = "xsvggt_ros/msg/StreamStatus"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk that is full says, or a quota
PATTERNS = ("trajectory*.txt", "cloud*.ply", "depth", "bag")  # all that a replay writes into its folder


class ReplayFiles:
    """Writes frames into a folder, which `check_folder` has found usable.

    trajectory.txt and cloud.ply hold one world; where the stream starts anew, trajectory_1.txt and
    cloud_1.ply begin, and so on. Depth images are numbered through.
    """

    def __init__(self, folder: Path, config: NodeConfig) -> None:
        self._folder = folder
        self.config = config
        self._worlds = 0
        self.frames = 0
        self._seconds = 0.0  # in the stream's steps
        self._cache_bytes = 0
        self._open: list[TrajectoryFile | CloudFile] = []
        self._depth = folder / "depth"
        self._depth.mkdir()
        self._bag = TopicBag(folder / "bag", config)

    def write(self, placed: Placed, status: Status) -> None:
        """Adds a frame, and the status after it."""
        if placed.starts:
            self._start_world()
        for file in self._open:
            file.write(placed)
        write_depth(self._depth / f"{self.frames:06d}.png", placed.frame, self.config.output.confidence_threshold)
        self._bag.write(placed, status)
        self.frames += 1
        self._seconds += status.step.seconds["step"]
        self._cache_bytes = status.step.cache_bytes

    def summary(self) -> str:
        """What the frames took, at least one, and the files, a line each."""
        figures = f"{self._seconds / self.frames:.3f} s per frame, {self._cache_bytes / MIB:.1f} MiB of cache"
        return "\n".join([figures, *map(str, written_files(self._folder))])

    def close(self) -> None:
        """Finishes every file, even if one of them cannot be."""
        with closing(self._bag):
            self._close_world()

    def _start_world(self) -> None:
        self._close_world()
        number = f"_{self._worlds}" if self._worlds else ""
        self._worlds += 1
        self._open.append(TrajectoryFile(self._folder / f"trajectory{number}.txt", self.config))
        self._open.append(CloudFile(self._folder / f"cloud{number}.ply", self.config))

    def _close_world(self) -> None:
        with ExitStack() as stack:
            while self._open:
                stack.enter_context(closing(self._open.pop()))


def check_folder(folder: Path) -> None:
    """Makes the folder. Raises ValueError if it cannot be written, or holds files of an earlier replay."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):  # of no name that could be a link to elsewhere
            pass
    except OSError as error:
        raise ValueError(f"cannot write into {folder}: {error.strerror}; choose another output folder") from error
    if there := written_files(folder):
        names = ", ".join(path.name for path in there)
        raise ValueError(f"{folder} already has {names}: choose another output folder or remove them")


def written_files(folder: Path) -> list[Path]:
    """The files and folders that a replay has written into this folder."""
    return sorted(path for path in folder.iterdir() if any(map(path.match, PATTERNS)))  # links to nothing too


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Says of an OSError on the way that the disk is full, if that is why, and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(
            f"the disk of {folder} is full ({error.strerror}): what was written until then can be read; "
            "free space, or choose an output folder on another disk"
        ) from error


def _append(file: FileIO, data: bytes) -> None:
    """Writes all of the data or, if that fails, none: the file ends with something whole."""
    end = file.tell()
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        file.seek(end)
        file.truncate()
        raise


class TrajectoryFile:
    """TUM format: `t x y z qx qy qz qw` per frame, seconds; the pose that /tf has."""

    def __init__(self, path: Path, config: NodeConfig) -> None:
        self._file = FileIO(path, "x")
        child = config.base_frame or "camera (optical axes)"
        self._write(f"# t x y z qx qy qz qw: {child} in {_world(config)}")

    def write(self, placed: Placed) -> None:
        T_odom_child = placed.T_odom_child
        seconds, nanoseconds = divmod(placed.stamp_ns, 1_000_000_000)
        numbers = np.concatenate([T_odom_child[:3, 3], quaternion_xyzw(T_odom_child[:3, :3])])
        self._write(f"{seconds}.{nanoseconds:09d} {' '.join(f'{number:.9f}' for number in numbers)}")

    def _write(self, line: str) -> None:
        _append(self._file, line.encode() + b"\n")

    def close(self) -> None:
        self._file.close()


class CloudFile:
    """Binary PLY of the points of all frames in the world, coloured: those that ~/points has of each."""

    VERTEX = np.dtype([("position", "<f4", 3), ("colour", "u1", 3)])
    PROPERTIES = ("float x", "float y", "float z", "uchar red", "uchar green", "uchar blue")

    def __init__(self, path: Path, config: NodeConfig) -> None:
        self._config = config.output
        self._count = 0
        self._file = FileIO(path, "x+")
        start = f"ply\nformat binary_little_endian 1.0\ncomment {_world(config)}\nelement vertex "
        properties = "".join(f"property {name}\n" for name in self.PROPERTIES)
        self._count_at = len(start.encode())
        _append(self._file, f"{start}{self._count:012d}\n{properties}end_header\n".encode())

    def write(self, placed: Placed) -> None:
        frame, stride = placed.frame, self._config.point_stride
        valid = frame.confidence[::stride, ::stride] >= self._config.confidence_threshold  # [h, w]
        points = frame.points_cam()[::stride, ::stride][valid]  # [N, 3]
        vertices = np.empty(len(points), self.VERTEX)
        vertices["position"] = transform(placed.T_odom_cam, points)
        vertices["colour"] = frame.image[::stride, ::stride][valid]
        _append(self._file, vertices.tobytes())
        self._count += len(points)

    def close(self) -> None:
        with self._file as file:
            file.seek(self._count_at)
            file.write(b"%012d" % self._count)  # of one width, so that it can be overwritten at the end


def _world(config: NodeConfig) -> str:
    unit = "the model's" if config.scale.source == "none" else "metre"
    return f"{config.world_frame} (x forward, y left, z up); unit: {unit}"


def write_depth(path: Path, frame: Frame, confidence_threshold: float) -> None:
    """16-bit PNG, depth * DEPTH_SCALE; 0 where the confidence is below the threshold or 16 bits do not suffice.

    Raises OSError if the file cannot be written; there is none then.
    """
    steps = np.rint(frame.depth * DEPTH_SCALE)
    valid = (frame.confidence >= confidence_threshold) & (steps <= np.iinfo(np.uint16).max)
    _, encoded = cv2.imencode(".png", np.where(valid, steps, 0).astype(np.uint16))
    try:
        path.write_bytes(encoded.tobytes())  # cv2.imwrite does not notice a full disk
    except OSError:
        path.unlink(missing_ok=True)
        raise


class TopicBag:
    """rosbag2 (mcap) with the topics that the node would have published, at the images' stamps."""

    def __init__(self, path: Path, config: NodeConfig) -> None:
        self._config = config
        types = _message_types()
        self._messages = FrameMessages(types.types.__getitem__)
        self._bag = NewBag(path, {_full_name(topic): kind for topic, kind in outputs(config).items()}, types)

    def write(self, placed: Placed, status: Status) -> None:
        for topic, make in self._messages.convert(placed, self._config).items():
            self._bag.write(_full_name(topic), placed.stamp_ns, make())
        # Without the times that it took: the files of two runs are the same.
        step = replace(status.step, seconds=dict.fromkeys(status.step.seconds, 0.0))
        message = self._messages.status(replace(status, step=step), placed.stamp_ns, placed.camera)
        self._bag.write(_full_name("~/status"), placed.stamp_ns, message)

    def close(self) -> None:
        self._bag.close()


def _full_name(topic: str) -> str:
    return topic.replace("~", NODE_NAME)


def _message_types() -> Typestore:
    types = get_typestore(Stores.LATEST)
    status = package_file("msg/StreamStatus.msg", "share/xsvggt_ros/msg/StreamStatus.msg")
    types.register(get_types_from_msg(status.read_text(), STATUS_TYPE))
    return types
