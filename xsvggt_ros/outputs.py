# SPDX-License-Identifier: Apache-2.0
"""The files of a replay: trajectory, cloud, depth images and a rosbag2 of the node's topics.

Every file is written frame by frame, so that memory does not grow and a run that ends early leaves
what it had. World axes are those of the node's TF: x forward, y left, z up; units are the model's.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from xsvggt_ros.bag import NewBag
from xsvggt_ros.config import NodeConfig, OutputConfig
from xsvggt_ros.geometry import R_WORLD_OPTICAL, quaternion_xyzw, ros_pose
from xsvggt_ros.installation import package_file
from xsvggt_ros.ros.conversions import TOPICS, FrameMessages, InputCounts
from xsvggt_ros.sequences import InputImage
from xsvggt_ros.stream import Frame

NODE_NAME = "/stream"  # of stream.launch.py: what "~" stands for in topic names
DEPTH_SCALE = 1000  # steps of a depth image per unit of depth, as in 7-Scenes and Open3D's default
STATUS_TYPE = "xsvggt_ros/msg/StreamStatus"
PATTERNS = ("trajectory*.txt", "cloud*.ply", "depth", "bag")  # all that a replay writes into its folder


class ReplayFiles:
    """Writes frames into a folder, which `check_folder` has found usable.

    trajectory.txt and cloud.ply hold one world; where the stream starts anew, trajectory_1.txt and
    cloud_1.ply begin, and so on. Depth images are numbered through.
    """

    def __init__(self, folder: Path, config: NodeConfig) -> None:
        self._folder = folder
        self._config = config
        self._worlds = 0
        self._frames = 0
        self._open: list[TrajectoryFile | CloudFile] = []
        self._depth = folder / "depth"
        self._depth.mkdir()
        self._bag = TopicBag(folder / "bag", config)

    def write(self, image: InputImage, frame: Frame, counts: InputCounts) -> None:
        """Adds a frame and the image it is of."""
        if frame.index == 0:
            self._start_world()
        for file in self._open:
            file.write(image.stamp_ns, frame)
        write_depth(self._depth / f"{self._frames:06d}.png", frame, self._config.output.confidence_threshold)
        self._bag.write(image, frame, counts)
        self._frames += 1

    def close(self) -> None:
        """Finishes every file."""
        try:
            self._close_world()
        finally:
            self._bag.close()

    def _start_world(self) -> None:
        self._close_world()
        number = f"_{self._worlds}" if self._worlds else ""
        self._worlds += 1
        world_frame = self._config.world_frame
        self._open.append(TrajectoryFile(self._folder / f"trajectory{number}.txt", world_frame))
        self._open.append(CloudFile(self._folder / f"cloud{number}.ply", world_frame, self._config.output))

    def _close_world(self) -> None:
        while self._open:
            self._open.pop().close()


def check_folder(folder: Path) -> None:
    """Makes the folder. Raises ValueError if it cannot be written, or holds files of an earlier replay."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write into {folder}: {error.strerror}; choose another output folder") from error
    if there := written_files(folder):
        names = ", ".join(path.name for path in there)
        raise ValueError(f"{folder} already has {names}: choose another output folder or remove them")


def written_files(folder: Path) -> list[Path]:
    """The files and folders that a replay has written into this folder."""
    return sorted(path for pattern in PATTERNS for path in folder.glob(pattern))


class TrajectoryFile:
    """TUM format: `t x y z qx qy qz qw` per frame, seconds; the pose of the camera's optical frame."""

    def __init__(self, path: Path, world_frame: str) -> None:
        self._file = path.open("x", buffering=1)  # line by line
        axes = f"camera (optical axes) in {world_frame} (x forward, y left, z up)"
        self._file.write(f"# t x y z qx qy qz qw: {axes}; unit: the model's\n")

    def write(self, stamp: int, frame: Frame) -> None:
        T_world_cam = ros_pose(frame.T_world_cam)
        seconds, nanoseconds = divmod(stamp, 1_000_000_000)
        numbers = np.concatenate([T_world_cam[:3, 3], quaternion_xyzw(T_world_cam[:3, :3])])
        self._file.write(f"{seconds}.{nanoseconds:09d} {' '.join(f'{number:.9f}' for number in numbers)}\n")

    def close(self) -> None:
        self._file.close()


class CloudFile:
    """Binary PLY of the points of all frames in the world, coloured: those that ~/points has of each."""

    VERTEX = np.dtype([("position", "<f4", 3), ("colour", "u1", 3)])

    def __init__(self, path: Path, world_frame: str, config: OutputConfig) -> None:
        self._config = config
        self._count = 0
        self._file = path.open("xb")
        self._file.write(
            b"ply\nformat binary_little_endian 1.0\n"
            + f"comment {world_frame}: x forward, y left, z up; unit: the model's\n".encode()
            + b"element vertex "
        )
        self._count_at = self._file.tell()
        self._write_count()
        self._file.write(b"".join(b"property float %c\n" % axis for axis in b"xyz"))
        self._file.write(b"".join(b"property uchar %s\n" % name for name in (b"red", b"green", b"blue")))
        self._file.write(b"end_header\n")

    def write(self, stamp: int, frame: Frame) -> None:
        stride = self._config.point_stride
        valid = frame.confidence[::stride, ::stride] >= self._config.confidence_threshold  # [h, w]
        points = frame.points_world()[::stride, ::stride][valid]  # [N, 3]
        vertices = np.empty(len(points), self.VERTEX)
        vertices["position"] = points @ R_WORLD_OPTICAL.T.astype(np.float32)
        vertices["colour"] = frame.image[::stride, ::stride][valid]
        self._file.write(vertices.tobytes())
        self._count += len(points)

    def close(self) -> None:
        self._file.seek(self._count_at)
        self._write_count()
        self._file.close()

    def _write_count(self) -> None:
        self._file.write(b"%012d\n" % self._count)  # of one width, so that it can be overwritten at the end


def write_depth(path: Path, frame: Frame, confidence_threshold: float) -> None:
    """16-bit PNG, depth * DEPTH_SCALE; 0 where the confidence is below the threshold or 16 bits do not suffice.

    Raises OSError if the file cannot be written.
    """
    steps = np.rint(frame.depth * DEPTH_SCALE)
    valid = (frame.confidence >= confidence_threshold) & (steps <= np.iinfo(np.uint16).max)
    if not cv2.imwrite(str(path), np.where(valid, steps, 0).astype(np.uint16)):
        raise OSError(f"{path} cannot be written; is the disk full?")


class TopicBag:
    """rosbag2 (mcap) with the topics that the node would have published, at the images' stamps."""

    def __init__(self, path: Path, config: NodeConfig) -> None:
        self._config = config
        types = _message_types()
        self._messages = FrameMessages(types.types.__getitem__)
        self._bag = NewBag(path, {_full_name(topic): kind for topic, kind in TOPICS.items()}, types)

    def write(self, image: InputImage, frame: Frame, counts: InputCounts) -> None:
        makers = self._messages.convert(frame, image.stamp_ns, image.frame_id, self._config, counts)
        for topic, make in makers.items():
            self._bag.write(_full_name(topic), image.stamp_ns, make())

    def close(self) -> None:
        self._bag.close()


def _full_name(topic: str) -> str:
    return topic.replace("~", NODE_NAME)


def _message_types() -> Typestore:
    types = get_typestore(Stores.LATEST)
    status = package_file("msg/StreamStatus.msg", "share/xsvggt_ros/msg/StreamStatus.msg")
    types.register(get_types_from_msg(status.read_text(), STATUS_TYPE))
    return types
