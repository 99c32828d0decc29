# SPDX-License-Identifier: Apache-2.0
"""Data sets with true depth and poses, in the layouts that the field's evaluations use.

A reader takes the folder of its data set, or of a single sequence where it says so. Depth is along the optical axis,
poses are camera-to-world with optical axes. Where a data set has no stamps, image i is stamped i / 30 s.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from xsvggt_ros.evaluation.text_files import (
    read_camera,
    read_list,
    read_matrices,
    read_pose,
    read_text,
    read_trajectory,
)
from xsvggt_ros.geometry import Array, intrinsic_matrix, inverse
from xsvggt_ros.natural_order import naturally_sorted, numbers
from xsvggt_ros.replay.sources.folder import FOLDER_RATE, HEIF_SUFFIXES, IMAGE_SUFFIXES, read_image
from xsvggt_ros.rooms import stream
from xsvggt_ros.rooms.sequence import FIELD_OF_VIEW

Depth = NDArray[np.float32]

logger = logging.getLogger(__name__)

NO_READING = 65535  # of a 16-bit depth image, beside 0
ASSOCIATION = 0.02  # seconds between an image and what was recorded with it
SINTEL_TAG = np.float32(202021.25).tobytes()
SINTEL_SEQUENCES = (
    "alley_2", "ambush_4", "ambush_5", "ambush_6", "cave_2", "cave_4", "market_2", "market_5", "market_6",
    "shaman_3", "sleeping_1", "sleeping_2", "temple_2", "temple_3",
)  # fmt: skip
BONN_SEQUENCES = ("balloon2", "crowd2", "crowd3", "person_tracking2", "synchronous")
SEVEN_SCENES_CAMERA = intrinsic_matrix(525, 525, 320, 240)
NRGBD_CAMERA = intrinsic_matrix(554.256, 554.256, 320, 240)
OPENGL_TO_OPTICAL = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's y is up, its z backward


@dataclass(frozen=True)
class EvaluationFrame:
    """An image and what is true of it; None where the data set does not say."""

    stamp_ns: int
    image: NDArray[np.uint8]  # [H, W, 3], RGB
    depth: Depth | None  # [h, w], metres; 0: unknown
    T_world_cam: Array | None  # [4, 4], metres
    intrinsics: Array | None  # [3, 3], of the image


@dataclass(frozen=True)
class EvaluationSequence:
    """A sequence of a data set. True depth is valid above 0 and below `max_depth`."""

    name: str
    frames: Sequence[EvaluationFrame]
    max_depth: float = inf  # metres
    clip_prediction: bool = False  # at max_depth, before it is compared


class LazyFrames(Sequence[EvaluationFrame]):
    """Frames that are read each time they are asked for; a slice reads nothing."""

    def __init__(self, loaders: Sequence[Callable[[], EvaluationFrame]]) -> None:
        self._loaders = loaders

    def __len__(self) -> int:
        return len(self._loaders)

    @overload
    def __getitem__(self, index: int) -> EvaluationFrame: ...
    @overload
    def __getitem__(self, index: slice) -> LazyFrames: ...
    def __getitem__(self, index: int | slice) -> EvaluationFrame | LazyFrames:
        return LazyFrames(self._loaders[index]) if isinstance(index, slice) else self._loaders[index]()


def readable(sequence: EvaluationSequence) -> Iterator[EvaluationFrame]:
    """The frames whose files can be read; the log names the others."""
    for index in range(len(sequence.frames)):
        try:
            yield sequence.frames[index]
        except (OSError, ValueError) as error:
            logger.warning("%s: frame %d is left out: %s", sequence.name, index, error)


def seven_scenes(root: Path) -> list[EvaluationSequence]:
    """7-Scenes: the test sequences of <scene>/TestSplit.txt, or one folder of frame-*.{color,depth,pose}.*.

    Depth that was projected into the colour camera (frame-*.depth.proj.png) is preferred. A folder with a
    camera-intrinsics.txt has the camera of that file.
    """
    if any(root.glob("frame-*.color.*")):
        return _sequences([root], _seven_scenes, max_depth=10.0)
    folders = [
        scene / f"seq-{int(number):02d}"
        for scene in _folders(root, "TestSplit.txt")
        for number in re.findall(r"\d+", read_text(scene / "TestSplit.txt"))
    ]
    if not folders:
        raise ValueError(f"no TestSplit.txt of {root} names a sequence; it must have lines like `sequence1`")
    return _sequences(folders, _seven_scenes, max_depth=10.0, levels=2)


def _seven_scenes(folder: Path) -> LazyFrames:
    images = _files(folder, "frame-*.color.*")
    depth = "depth.proj.png" if any(folder.glob("frame-*.depth.proj.png")) else "depth.png"
    camera = folder / "camera-intrinsics.txt"
    return _frames(
        folder,
        images,
        seconds=[_number(image, 0) / FOLDER_RATE for image in images],
        depths=_png_depths(_files(folder, f"frame-*.{depth}"), 1000),
        poses=np.stack([read_pose(folder / f"{image.name.split('.')[0]}.pose.txt") for image in images]),
        intrinsics=read_camera(camera) if camera.exists() else SEVEN_SCENES_CAMERA,
    )


def tum(root: Path) -> list[EvaluationSequence]:
    """TUM RGB-D: <sequence>/{rgb_90,groundtruth_90.txt}, or as published: {rgb,depth,groundtruth}.txt.

    Of a published sequence, every third image that has a pose is taken, and 90 of these.
    """
    return _sequences(_folders(root, "rgb_90", "rgb.txt"), _tum)


def _tum(folder: Path) -> LazyFrames:
    if not (folder / "rgb_90").exists():
        return _published_tum(folder)
    seconds, poses = read_trajectory(folder / "groundtruth_90.txt")
    return _frames(folder, _images(folder / "rgb_90"), seconds=seconds, poses=poses)


def _published_tum(folder: Path) -> LazyFrames:
    seconds, images = read_list(folder / "rgb.txt")
    depth_seconds, depth_files = read_list(folder / "depth.txt")
    pose_seconds, poses = read_trajectory(folder / "groundtruth.txt")
    timed = np.isfinite(pose_seconds)
    pose_seconds, poses = pose_seconds[timed], poses[timed]
    depths = [*_png_depths(depth_files, 5000), None]  # the last for images without one
    depth_of, pose_of = _nearest(seconds, depth_seconds), _nearest(seconds, pose_seconds)
    chosen = np.flatnonzero(pose_of < len(poses))[::3][:90]
    if not len(chosen):
        raise ValueError(f"{folder}: no image of rgb.txt is within {ASSOCIATION} s of a pose in groundtruth.txt")
    return _frames(
        folder,
        [images[i] for i in chosen],
        seconds=seconds[chosen],
        depths=[depths[i] for i in depth_of[chosen]],
        poses=poses[pose_of[chosen]],
    )


def _nearest(seconds: Array, others: Array) -> NDArray[np.intp]:
    """For each time the index of the nearest other; their number where none is near enough."""
    return cKDTree(others[:, None]).query(seconds[:, None], distance_upper_bound=ASSOCIATION)[1]


def bonn(root: Path) -> list[EvaluationSequence]:
    """Bonn RGB-D Dynamic: rgbd_bonn_dataset/rgbd_bonn_<sequence>/{rgb_110,depth_110}.

    Without poses: those of groundtruth_110.txt are of the motion capture's markers, not of the camera.
    """
    folders = [root / "rgbd_bonn_dataset" / f"rgbd_bonn_{name}" for name in BONN_SEQUENCES]
    return _sequences(folders, _bonn, max_depth=70.0)


def _bonn(folder: Path) -> LazyFrames:
    images = _images(folder / "rgb_110")
    depths = _png_depths(_images(folder / "depth_110"), 5000)
    return _frames(folder, images, seconds=[_number(image, -1) for image in images], depths=depths)


def kitti(root: Path) -> list[EvaluationSequence]:
    """KITTI depth selection: the first 110 of {image_gathered,groundtruth_depth_gathered}/<drive>_02."""
    folders = _files(root / "depth_selection" / "val_selection_cropped" / "image_gathered", "*_02")
    return _sequences(folders, _kitti)


def _kitti(folder: Path) -> LazyFrames:
    depths = _png_depths(_images(folder.parents[1] / "groundtruth_depth_gathered" / folder.name), 256)
    return _frames(folder, _images(folder), depths=depths)[:110]


def sintel(root: Path) -> list[EvaluationSequence]:
    """MPI Sintel, final pass: training/{final,depth,camdata_left}/<sequence>, 14 of them."""
    folders = [root / "training" / "final" / name for name in SINTEL_SEQUENCES]
    return _sequences(folders, _sintel, max_depth=70.0, clip_prediction=True)


def _sintel(folder: Path) -> LazyFrames:
    training = folder.parents[1]
    cameras = [_sintel_camera(path) for path in _files(training / "camdata_left" / folder.name, "*.cam")]
    return _frames(
        folder,
        _images(folder),
        depths=[partial(_sintel_depth, path) for path in _files(training / "depth" / folder.name, "*.dpt")],
        poses=np.stack([T_world_cam for T_world_cam, _ in cameras]),
        intrinsics=np.stack([intrinsics for _, intrinsics in cameras]),
    )


def _sintel_camera(path: Path) -> tuple[Array, Array]:
    """T_world_cam [4, 4] and intrinsics [3, 3] of a .cam file: tag, intrinsics, T_cam_world without its last row."""
    with _sintel_body(path) as body:
        intrinsics, T_cam_world = np.split(np.frombuffer(body, "<f8", 21), [9])
    return inverse(np.vstack([T_cam_world.reshape(3, 4), [0, 0, 0, 1]])), intrinsics.reshape(3, 3)


def _sintel_depth(path: Path) -> Depth:
    """Depth of a .dpt file: tag, width, height, rows."""
    with _sintel_body(path) as body:
        width, height = np.frombuffer(body, "<i4", 2)
        depth = np.frombuffer(body, "<f4", offset=8).reshape(height, width)
    return np.where(np.isfinite(depth), depth, np.float32(0))


@contextmanager
def _sintel_body(path: Path) -> Iterator[bytes]:
    """What follows the tag. Where it is too short for its reader, ValueError names the file."""
    content = path.read_bytes()
    if content[:4] != SINTEL_TAG:
        raise ValueError(f"{path} does not begin with the tag of Sintel's files, 202021.25; unpack it again")
    try:
        yield content[4:]
    except ValueError as error:
        raise ValueError(f"{path} is cut off or damaged ({error}); unpack it again") from error


def scannet(root: Path) -> list[EvaluationSequence]:
    """ScanNet v2: <sequence>/{color_90,depth_90,pose_90.txt}."""
    return _sequences(_folders(root, "color_90"), _scannet)


def _scannet(folder: Path) -> LazyFrames:
    depths = _png_depths(_images(folder / "depth_90"), 1000)
    return _frames(folder, _images(folder / "color_90"), depths=depths, poses=read_matrices(folder / "pose_90.txt"))


def nrgbd(root: Path) -> list[EvaluationSequence]:
    """Neural RGB-D: <scene>/{images/img{i}.png,depth/depth{i}.png,poses.txt}."""
    return _sequences(_folders(root, "poses.txt"), _nrgbd)


def _nrgbd(folder: Path) -> LazyFrames:
    return _frames(
        folder,
        _images(folder / "images"),
        depths=_png_depths(_images(folder / "depth"), 1000),
        poses=read_matrices(folder / "poses.txt") @ OPENGL_TO_OPTICAL,
        intrinsics=NRGBD_CAMERA,
    )


def rooms(root: Path) -> list[EvaluationSequence]:
    """Folders written by `xsvggt rooms`, or one of them."""
    return _sequences(_folders(root, "intrinsics.txt"), _rooms)


def _rooms(folder: Path) -> LazyFrames:
    seconds, poses = read_trajectory(folder / "groundtruth.txt")
    return _frames(
        folder,
        _images(folder / "rgb"),
        seconds=seconds,
        depths=_png_depths(_images(folder / "depth"), 1000),
        poses=poses,
        intrinsics=read_camera(folder / "intrinsics.txt"),
    )


def room_sequences(
    seeds: range,
    frames: int,
    width: int,
    height: int,
    kind: str = "robot",
    rate: float = 30.0,
    field_of_view: float = FIELD_OF_VIEW,
) -> Iterator[EvaluationSequence]:
    """The synthetic rooms of these seeds, see `rooms.stream`; a sequence is rendered when its turn comes."""
    for seed in seeds:
        rendered = stream(seed, frames, width, height, kind, rate, field_of_view=field_of_view)
        yield EvaluationSequence(
            f"room {seed}", [EvaluationFrame(f.stamp_ns, f.rgb, f.depth, f.T_room_cam, f.intrinsics) for f in rendered]
        )


# Name of a data set -> its sequences, from its folder; the log names those that cannot be read. Raises OSError or
# ValueError, with what was expected where, if none can be read; images are only read with their frames, which then
# raise OSError or ValueError, with the name of a damaged one.
DATASETS: dict[str, Callable[[Path], list[EvaluationSequence]]] = {
    "7scenes": seven_scenes,
    "tum": tum,
    "bonn": bonn,
    "kitti": kitti,
    "sintel": sintel,
    "scannet": scannet,
    "nrgbd": nrgbd,
    "rooms": rooms,
}


def _sequences(
    folders: Sequence[Path],
    read: Callable[[Path], LazyFrames],
    max_depth: float = inf,
    clip_prediction: bool = False,
    levels: int = 1,
) -> list[EvaluationSequence]:
    """Those of the folders that can be read, named by as many levels; the log names the others.

    Raises OSError or ValueError, that of the first, if none can be read.
    """
    found: list[EvaluationSequence] = []
    errors: dict[str, Exception] = {}
    for folder in folders:
        name = "/".join(folder.resolve().parts[-levels:])
        try:
            found.append(EvaluationSequence(name, read(folder), max_depth, clip_prediction))
        except (OSError, ValueError) as error:
            errors[name] = error
    if not found:
        raise next(iter(errors.values()))
    for name, why in errors.items():
        logger.warning("%s is left out: %s", name, why)
    return found


def _frames(
    folder: Path,
    images: Sequence[Path],
    *,
    seconds: Sequence[float] | Array | None = None,
    depths: Sequence[Callable[[], Depth] | None] | None = None,
    poses: Array | None = None,
    intrinsics: Array | None = None,
) -> LazyFrames:
    """Frames of as many images, depths and poses [N, 4, 4]; intrinsics are [N, 3, 3], or [3, 3] for all."""
    count = len(images)
    columns: dict[str, Any] = {
        "images": images,
        "stamps": [i / FOLDER_RATE for i in range(count)] if seconds is None else _without_gaps(seconds),
        "depth images": [None] * count if depths is None else depths,
        "poses": [None] * count if poses is None else poses,
    }
    if any(len(column) != count for column in columns.values()):
        counts = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise ValueError(f"{folder}: one of each is needed per image, but there are {counts}")
    cameras = [None] * count if intrinsics is None else np.broadcast_to(intrinsics, (count, 3, 3))
    return LazyFrames([partial(_frame, *row) for row in zip(*columns.values(), cameras, strict=True)])


def _frame(
    image: Path, seconds: float, depth: Callable[[], Depth] | None, T_world_cam: Array | None, intrinsics: Array | None
) -> EvaluationFrame:
    if T_world_cam is not None and not np.isfinite(T_world_cam).all():
        T_world_cam = None  # how ScanNet says that tracking was lost
    try:
        colour = read_image(image)
    except ValueError as error:
        raise ValueError(f"{image}: {error}") from error
    return EvaluationFrame(round(seconds * 1e9), colour, depth and depth(), T_world_cam, intrinsics)


def _number(path: Path, which: int) -> float:
    """In a file's name; NaN if it has none."""
    return (numbers(path) or [nan])[which]


def _without_gaps(seconds: Sequence[float] | Array) -> Array:
    """Times that a damaged line, or a file's name, does not say, from those around it."""
    times, index = np.asarray(seconds, dtype=np.float64), np.arange(len(seconds))
    known = np.isfinite(times)
    return np.where(known, times, np.interp(index, index[known], times[known])) if known.any() else index / FOLDER_RATE


def _folders(root: Path, *markers: str) -> list[Path]:
    """The root if it has one of the markers, else the folders in it that have."""
    found = [folder for folder in (root, *sorted(root.glob("*"))) if any((folder / name).exists() for name in markers)]
    if not found:
        raise FileNotFoundError(f"neither {root} nor a folder in it has {' or '.join(markers)}")
    return found


def _images(folder: Path) -> list[Path]:
    """In natural order, with those that cannot be read: the place of an image tells which depth and pose are its."""
    suffixes = IMAGE_SUFFIXES + HEIF_SUFFIXES
    entries = folder.iterdir() if folder.is_dir() else ()
    found = [path for path in entries if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    if not found:
        raise FileNotFoundError(f"{folder} does not exist or has no images ({' '.join(suffixes)})")
    return naturally_sorted(found)


def _files(folder: Path, pattern: str) -> list[Path]:
    """In natural order."""
    found = naturally_sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))
    if not found:
        raise FileNotFoundError(f"{folder} does not exist or has no {pattern}")
    return found


def _png_depths(paths: Sequence[Path], steps_per_metre: float) -> list[Callable[[], Depth]]:
    return [partial(_png_depth, path, steps_per_metre) for path in paths]


def _png_depth(path: Path, steps_per_metre: float) -> Depth:
    try:
        with Image.open(path) as image:
            steps = np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a damaged PNG
        raise ValueError(f"{path} cannot be read: {error}") from error
    if steps.ndim != 2:
        raise ValueError(f"{path} is no depth image, as it has colours; give grey ones of 16 bits")
    if steps.dtype.itemsize < 2:
        raise ValueError(f"{path} has {8 * steps.dtype.itemsize} bits a pixel, true depth has 16")
    return np.where(steps == NO_READING, 0, steps / steps_per_metre).astype(np.float32)
