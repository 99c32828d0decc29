# SPDX-License-Identifier: Apache-2.0
"""A folder of images, and what an image file shows."""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import Base

from xsvggt_ros.messages.bag import bags_below, is_bag
from xsvggt_ros.messages.decode import Damaged, decode_samples
from xsvggt_ros.messages.storage import is_storage
from xsvggt_ros.messages.storage.folder import METADATA
from xsvggt_ros.messages.topics import IMAGE
from xsvggt_ros.natural_order import NUMBER, naturally_sorted
from xsvggt_ros.preprocess import eight_bits, rgb
from xsvggt_ros.replay.sources.source import Source, image_message

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
HEIF_SUFFIXES = (".heic", ".heif")  # of telephones; read where pillow-heif is installed
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif")
EXIF_MARKS = b"Exif", b"eXIf", b"EXIF"  # of JPEG, PNG and WebP
# Images too, but of kinds that are not read.
OTHER_SUFFIXES = (".avif", ".gif", ".jxl", ".jp2", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw")
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow makes of bytes
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts")  # of the usual ones
FOLDER_RATE = 30.0  # images per second
DEPTH_TO_LOOK = 3  # levels of folders in which images are looked for, to name where they are
# EXIF orientation -> whether rows and columns change places, and the steps in which rows and columns are then read.
ORIENTATIONS = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}

log = logging.getLogger(__name__)

try:
    from pillow_heif import register_heif_opener
except ModuleNotFoundError:
    READ_SUFFIXES: tuple[str, ...] = IMAGE_SUFFIXES
else:
    register_heif_opener()
    READ_SUFFIXES = IMAGE_SUFFIXES + HEIF_SUFFIXES


def read_image(path: Path) -> NDArray[np.uint8]:
    """RGB image of a file, uint8 [H, W, 3], upright; 16-bit grey is stretched, transparent ones lie over white.

    Raises OSError if it cannot be read, ValueError if it is damaged.
    """
    data = path.read_bytes()
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:  # telephones call some .jpg
        return _heif(data)
    samples = _upright(decode_samples(data), _orientation(data))
    if samples.ndim == 2:
        return np.array(rgb(Image.fromarray(samples)))
    colours = eight_bits(samples) if samples.dtype == np.uint16 else samples
    if colours.shape[2] == 3:
        return np.ascontiguousarray(colours[..., ::-1])
    return np.array(rgb(Image.fromarray(cv2.cvtColor(colours, cv2.COLOR_BGRA2RGBA))))


def _heif(data: bytes) -> NDArray[np.uint8]:
    try:
        return np.array(rgb(Image.open(io.BytesIO(data))))  # which is turned already
    except UNREADABLE as error:  # whose text names an object in memory
        raise ValueError("it is a HEIC that is damaged, or pillow-heif is not installed; convert it to JPEG") from error


def image_files(folder: Path) -> list[Path]:
    """The images of a folder that are read, in natural order; what else looks like one is mentioned in the log."""
    entries = list(folder.iterdir())
    named = naturally_sorted(path for path in entries if path.suffix.lower() in READ_SUFFIXES)
    files = [path for path in named if _is_file(path)]
    _tell_unusable(folder, [path.name for path in named if not _is_file(path)])
    _tell_other_kinds(folder, entries)
    return files


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


@contextmanager
def open_folder(path: Path, rate: float | None, stride: int) -> Iterator[Source]:
    files = image_files(path)
    files = [file for file in files if ".color." in file.name] or files
    if not files:
        raise ValueError(f"{path} has no images ({' '.join(READ_SUFFIXES)}) and is no rosbag2" + _elsewhere(path))
    check_alone(path)
    _tell_series(path, files)
    step = 1e9 / (rate or FOLDER_RATE)
    images = ((IMAGE, _image_message(files[i], round(i * step))) for i in range(0, len(files), stride))
    yield Source(images, len(files), stride)


def _image_message(path: Path, stamp: int) -> Any:
    """As the Image that a camera would have sent of it."""
    try:
        image = read_image(path)
    except (OSError, ValueError) as error:
        return Damaged(f"{path.name}: {error}")
    return image_message(image, "rgb8", stamp, path.name)


def _orientation(data: bytes) -> int:
    """How the camera was held, as EXIF has it; 1: upright."""
    if not any(mark in data for mark in EXIF_MARKS):  # Pillow would decode a PNG to look for it
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:  # a TIFF has been turned by OpenCV
                return 1 if image.format == "TIFF" else image.getexif().get(Base.Orientation, 1)
    except UNREADABLE:  # of no matter for what the image shows
        return 1


def _upright(samples: NDArray, orientation: int) -> NDArray:
    swapped, rows, columns = ORIENTATIONS.get(orientation, (False, 1, 1))
    turned = samples.swapaxes(0, 1) if swapped else samples
    return np.ascontiguousarray(turned[::rows, ::columns])


def _tell_unusable(folder: Path, names: list[str]) -> None:
    if names:
        log.warning(
            "%d entries of %s are named like images and are none, but folders, hidden files or links to nothing: %s",
            len(names), folder, _listed(names),
        )  # fmt: skip


def _tell_other_kinds(folder: Path, entries: list[Path]) -> None:
    left_out = {*HEIF_SUFFIXES, *OTHER_SUFFIXES}.difference(READ_SUFFIXES)
    others = Counter(path.suffix.lower() for path in entries if path.suffix.lower() in left_out)
    if others:
        remedy = "; pip install pillow-heif to read HEIC" if others.keys() & set(HEIF_SUFFIXES) else ""
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.items())
        log.warning("images of %s that are left out: %s; convert them to JPEG or PNG%s", folder, kinds, remedy)


def _tell_series(folder: Path, files: list[Path]) -> None:
    """Names such as rgb_0 and depth_0, or left_0 and right_0, are those of several cameras."""
    series = Counter(NUMBER.sub("", file.stem) for file in files)
    if len(series) > 1 and min(series.values()) > 1:
        names = ", ".join(f"{count} like {name}#" for name, count in series.items())
        log.warning("%s has images of %d series, taken one after the other: %s", folder, len(series), names)


def _elsewhere(folder: Path) -> str:
    """Where in its folders there are images, or else bags in it, or else what there is."""
    for levels in range(1, DEPTH_TO_LOOK + 1):
        found = {file.parent for file in folder.glob("*/" * levels + "*") if file.suffix.lower() in READ_SUFFIXES}
        if found:
            return f"; give one of the folders in it that have images: {_listed(map(str, naturally_sorted(found)))}"
    if bags := bags_below(folder):
        return f"; give one of the bags in it: {_listed(map(str, bags))}"
    kinds = Counter(path.suffix.lower() or "without suffix" for path in folder.iterdir() if path.is_file())
    there = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
    return f"; there are {there}" if there else ""


def recordings_in(folder: Path) -> list[Path]:
    """What lies in a folder that is not one recording but holds several; nothing: it is one, or none.

    It is one where it has metadata.yaml, where it has a bag's files and nothing else that could be meant, and where it
    has images and not several bags: a replay's own bag may lie among its images.
    """
    if not folder.is_dir() or (folder / METADATA).exists():
        return []
    entries = naturally_sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in entries if path.is_dir() and _may_be_meant(path)]
    storage, videos, images = ([p for p in entries if kind(p) and p.is_file()] for kind in (is_storage, _video, _image))
    if storage:
        several = bool(folders or videos or images)
    elif images:
        several = sum(map(is_bag, folders)) > 1
    else:
        several = len(folders) + len(videos) > 1
    return [*folders, *storage, *videos, *images] if several else []


def check_alone(folder: Path) -> None:
    """Raises ValueError where a folder holds several recordings."""
    if found := recordings_in(folder):
        names = _listed(path.name for path in found)
        raise ValueError(f"{folder} holds recordings ({names}): give one of them, or {folder}/* to xsvggt batch")


def _may_be_meant(folder: Path) -> bool:
    try:
        return is_bag(folder) or any(map(_image, folder.iterdir()))
    except OSError:  # it may not be read
        return False


def _image(path: Path) -> bool:
    return path.suffix.lower() in READ_SUFFIXES


def _video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _listed(names: Iterable[str], most: int = 5) -> str:
    """The first names."""
    names = list(names)
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
