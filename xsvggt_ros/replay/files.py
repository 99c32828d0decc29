# SPDX-License-Identifier: Apache-2.0
"""The files of a replay: trajectory, cloud, depth images and a rosbag2 of the node's topics.

Every file is written frame by frame, so that memory does not grow and a run that ends early leaves
what it had. World axes are those of the node's TF: x forward, y left, z up.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryFile

import cv2
import numpy as np
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from xsvggt_ros import ply
from xsvggt_ros.config import NodeConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import inverse, quaternion_xyzw, transform
from xsvggt_ros.installation import package_file
from xsvggt_ros.memory import MIB
from xsvggt_ros.messages.bag import NewBag
from xsvggt_ros.messages.encode import millimetres
from xsvggt_ros.messages.topics import FrameMessages, outputs, sure_depth
from xsvggt_ros.placement.placement import Placed, in_metres
from xsvggt_ros.similarity import Similarity
from xsvggt_ros.status import SegmentStatus, Status
from xsvggt_ros.whole_file import write_whole

NODE_NAME = "/stream"  # of stream.launch.py: what "~" stands for in topic names
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
        self._segments = SegmentStatus()
        self._open: list[TrajectoryFile | CloudFile] = []
        self._way: CorrectedWay | None = None  # of the world, where it is a stream of segments
        self._depth = folder / "depth"
        self._depth.mkdir()
        self._topics = folder / "bag"
        self._bag = TopicBag(self._topics, config)

    def write(self, placed: Placed, status: Status) -> None:
        """Adds a frame, and the status after it."""
        if placed.starts:
            self._start_world()
        for file in self._open:
            file.write(placed)
        if self._way:
            self._way.add(placed)
        write_depth(self._depth / f"{self.frames:06d}.png", placed.output, self.config.output.confidence_threshold)
        self._bag.write(placed, status)
        self.frames += 1
        self._seconds += status.step.seconds["step"]
        self._cache_bytes = status.step.cache_bytes
        self._segments = status.step.segments

    def summary(self) -> str:
        """What the frames took, at least one, and the files, a line each."""
        figures = f"{self._seconds / self.frames:.3f} s per frame, {self._cache_bytes / MIB:.1f} MiB of cache"
        if (segments := self._segments).keyframes:
            figures += f", {segments.keyframe_bytes / MIB:.1f} MiB of keyframes; {segments.segment + 1} segments: "
            figures += f"{segments.closures} at a keyframe seen before, {segments.closures_refused} tries refused"
        return "\n".join([figures, *map(str, written_files(self._folder))])

    def close(self) -> None:
        """Finishes every file, even if one of them cannot be; without a frame they hold nothing, and are removed."""
        with closing(self._bag):
            self._close_world()
        if not self._worlds:
            for path in (self._depth, self._topics):
                rmtree(path)

    def _start_world(self) -> None:
        self._close_world()
        number = f"_{self._worlds}" if self._worlds else ""
        self._worlds += 1
        trajectory = TrajectoryFile(self._folder / f"trajectory{number}.txt", self.config, self.config.world_frame)
        cloud = CloudFile(self._folder / f"cloud{number}.ply", self.config, self.config.world_frame)
        self._open += [trajectory, cloud]
        if self.config.stream.segment.enabled:
            self._way = CorrectedWay(self._folder, number, self.config, cloud)

    def _close_world(self) -> None:
        with ExitStack() as stack:
            if self._way:
                stack.enter_context(closing(self._way))  # closed last: it reads the cloud
                self._way = None
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


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """As `check_folder`. What it made is gone at the end where nothing was written there."""
    made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    check_folder(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # of one that is not empty
            for each in made:
                each.rmdir()


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

    def __init__(self, path: Path, config: NodeConfig, world: str) -> None:
        self._file = FileIO(path, "x")
        child = config.base_frame or "camera (optical axes)"
        self._write(f"# t x y z qx qy qz qw: {child} in {_axes(config, world)}")

    def write(self, placed: Placed) -> None:
        self.write_pose(placed.stamp_ns, placed.T_odom_child)

    def write_pose(self, stamp_ns: int, T_world_child: np.ndarray) -> None:
        """A line; T_world_child [4, 4]."""
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        numbers = np.concatenate([T_world_child[:3, 3], quaternion_xyzw(T_world_child[:3, :3])])
        self._write(f"{seconds}.{nanoseconds:09d} {' '.join(f'{number:.9f}' for number in numbers)}")

    def _write(self, line: str) -> None:
        _append(self._file, line.encode() + b"\n")

    def close(self) -> None:
        self._file.close()


class CloudFile:
    """Binary PLY of the points of all frames in the world, coloured: those that ~/points has of each."""

    def __init__(self, path: Path, config: NodeConfig, world: str) -> None:
        self.path = path
        self.counts: list[int] = []  # points of each frame
        self._config = config.output
        self._file = FileIO(path, "x+")
        self._axes = _axes(config, world)
        _append(self._file, ply.header(0, self._axes))
        self.start = self._file.tell()  # of the points

    def write(self, placed: Placed) -> None:
        frame, stride = placed.output, self._config.point_stride
        valid = frame.confidence[::stride, ::stride] >= self._config.confidence_threshold  # [h, w]
        points = transform(placed.T_odom_cam, frame.points_cam(stride)[valid])  # [N, 3]
        self.append(ply.vertices(points, frame.image[::stride, ::stride][valid]))

    def append(self, vertices: np.ndarray) -> None:
        """A frame's points [N] of ply.VERTEX."""
        _append(self._file, vertices.tobytes())
        self.counts.append(len(vertices))

    def close(self) -> None:
        with self._file as file:
            file.seek(0)
            file.write(ply.header(sum(self.counts), self._axes))


class CorrectedWay:
    """trajectory_corrected.txt and cloud_corrected.ply of a stream of segments, written when its world has ended.

    What places seen again have corrected by then is corrected in all frames, and metres are those of the last one.
    World axes are those of `map_frame`. Until then what is known of each frame is in a file without a name.
    """

    FRAME = np.dtype(
        [
            ("stamp_ns", "<i8"),
            ("key", "<i8"),
            ("unit", "<f8"),  # metres per unit of its segment, then
            ("T_key_cam", "<f8", (4, 4)),
            ("T_odom_cam", "<f8", (4, 4)),
            ("T_cam_child", "<f8", (4, 4)),
        ]
    )

    def __init__(self, folder: Path, number: str, config: NodeConfig, cloud: CloudFile) -> None:
        self._paths = folder / f"trajectory{number}_corrected.txt", folder / f"cloud{number}_corrected.ply"
        self._config, self._cloud = config, cloud
        self._seen = TemporaryFile(dir=folder)  # noqa: SIM115
        self._keyframes: Mapping[int, Similarity] = {}  # as of the newest frame
        self._gone: dict[int, tuple[int, Similarity]] = {}  # key of one forgotten: another's, and how it lies to that
        self._last: Placed | None = None

    def add(self, placed: Placed) -> None:
        """Notes where a frame is."""
        segment = placed.frame.segment
        assert segment  # as segment.enabled does not change in a replay
        self._forget(segment.keyframes)
        unit = placed.scale.scale * segment.keyframes[segment.key].scale
        T_cam_child = inverse(placed.T_odom_cam) @ placed.T_odom_child
        row = (placed.stamp_ns, segment.key, unit, segment.T_key_cam, placed.T_odom_cam, T_cam_child)
        self._seen.write(np.array([row], self.FRAME).tobytes())
        self._last = placed

    def _forget(self, now: Mapping[int, Similarity]) -> None:
        """Notes how keyframes that are no more lie to others that are: what corrects these corrects them."""
        if now is not self._keyframes:
            for key in self._keyframes.keys() - now.keys():
                near = min(self._keyframes.keys() & now.keys(), key=lambda other: abs(other - key))
                self._gone[key] = near, self._keyframes[near].inverse() @ self._keyframes[key]
            self._keyframes = now

    def _keyframe(self, key: int) -> Similarity:
        if key in self._keyframes:
            return self._keyframes[key]
        near, S_near_key = self._gone[key]
        return self._keyframe(near) @ S_near_key

    def close(self) -> None:
        """Writes both files."""
        trajectory, cloud = self._paths
        with self._seen, closing(TrajectoryFile(trajectory, self._config, self._config.map_frame)) as poses:
            for seen in self._frames():
                poses.write_pose(int(seen["stamp_ns"]), self._T_map_cam(seen) @ seen["T_cam_child"])
            self._write_cloud(cloud)

    def _frames(self) -> Iterator[np.void]:
        self._seen.seek(0)
        while row := self._seen.read(self.FRAME.itemsize):
            yield np.frombuffer(row, self.FRAME)[0]

    def _write_cloud(self, path: Path) -> None:
        new = CloudFile(path, self._config, self._config.map_frame)
        with closing(new), self._cloud.path.open("rb") as old:
            old.seek(self._cloud.start)
            for seen, count in zip(self._frames(), self._cloud.counts, strict=False):  # of a full disk fewer
                vertices = np.frombuffer(old.read(count * ply.VERTEX.itemsize), ply.VERTEX).copy()
                stretch = np.float32(self._metres * self._keyframe(int(seen["key"])).scale / seen["unit"])
                in_cam = stretch * transform(inverse(seen["T_odom_cam"]), vertices["position"])
                vertices["position"] = transform(self._T_map_cam(seen), in_cam)
                new.append(vertices)

    @property
    def _metres(self) -> float:
        """Per unit of the map, as last known."""
        assert self._last
        return self._last.scale.scale

    def _T_map_cam(self, seen: np.void) -> np.ndarray:
        """Where the camera is, now that all is corrected."""
        assert self._last
        T_first_cam = self._keyframe(int(seen["key"])).pose(seen["T_key_cam"])
        return self._last.T_map_first @ in_metres(T_first_cam, self._metres)


def _axes(config: NodeConfig, world: str) -> str:
    unit = "the model's" if config.scale.source == "none" else "metre"
    return f"{world} (x forward, y left, z up); unit: {unit}"


def write_depth(path: Path, frame: Frame, confidence_threshold: float) -> None:
    """16-bit PNG, 1/1000 of the depth's unit; 0 where the confidence is below the threshold or 16 bits do not suffice.

    Raises OSError if the file cannot be written; there is none then.
    """
    _, encoded = cv2.imencode(".png", millimetres(sure_depth(frame, confidence_threshold)))
    write_whole(path, encoded.tobytes())  # cv2.imwrite does not notice a full disk


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
