# SPDX-License-Identifier: Apache-2.0
"""Small recordings for the tests to read: images, folders, videos and bags with known content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cv2
import mcap.writer
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode
from rosbags.typesys import Stores, get_typestore

TYPES = get_typestore(Stores.LATEST)
STORAGES = {"mcap": StoragePlugin.MCAP, "db3": StoragePlugin.SQLITE3}
SECOND = 1_000_000_000


def picture(index: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """RGB image [H, W, 3] that no other index has: smooth, so that JPEG and video codecs keep it."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    colours = [rows * 4 % 256, columns * 3 % 256, np.full(size, 10 * index % 256)]
    return np.stack(colours, axis=-1).astype(np.uint8)


def encoded(image: np.ndarray, suffix: str) -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def write_folder(folder: Path, count: int, pattern: str = "frame-{}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        name = pattern.format(index)
        (folder / name).write_bytes(encoded(picture(index), Path(name).suffix))
    return folder


def message(name: str, **values: Any) -> Any:
    return TYPES.types[name](**values)


def header(stamp: int, frame_id: str = "cam_optical") -> Any:
    sec, nanosec = divmod(stamp, SECOND)
    time = message("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
    return message("std_msgs/msg/Header", stamp=time, frame_id=frame_id)


def raw_image(image: np.ndarray, stamp: int, frame_id: str = "cam_optical", encoding: str = "rgb8") -> Any:
    height, width = image.shape[:2]
    data = image.reshape(-1)
    return message(
        "sensor_msgs/msg/Image",
        header=header(stamp, frame_id),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=data.size // height,
        data=data,
    )


def compressed_image(image: np.ndarray, stamp: int, suffix: str = ".png") -> Any:
    data = np.frombuffer(encoded(image, suffix), np.uint8)
    return message("sensor_msgs/msg/CompressedImage", header=header(stamp), format=suffix[1:], data=data)


def camera_info(K: np.ndarray, size: tuple[int, int] = (48, 64), frame_id: str = "cam_optical") -> Any:
    roi = message("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return message(
        "sensor_msgs/msg/CameraInfo",
        header=header(0, frame_id),
        height=size[0],
        width=size[1],
        distortion_model="",
        d=np.zeros(0),
        k=np.asarray(K, np.float64).ravel(),
        r=np.eye(3).ravel(),
        p=np.zeros(12),
        binning_x=0,
        binning_y=0,
        roi=roi,
    )


def write_bag(
    path: Path,
    messages: Iterable[tuple[str, int, Any]],
    storage: str = "mcap",
    compression: CompressionMode | None = None,
    empty: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Writes (topic, time of recording, message) into a new bag folder; empty: topic -> type of those without any."""
    connections: dict[str, Any] = {}
    writer = Writer(path, version=8, storage_plugin=STORAGES[storage])
    if compression:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        for topic, kind in empty.items():
            writer.add_connection(topic, kind, typestore=TYPES)
        for topic, time, msg in messages:
            kind = msg.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=TYPES)
            writer.write(connections[topic], time, TYPES.serialize_cdr(msg, kind))
    return path


def write_mcap(
    path: Path,
    times: Iterable[int],
    foreign: tuple[str, str, str] = ("", "", ""),
    kind: str = "sensor_msgs/msg/Image",
    **options: Any,
) -> Path:
    """An mcap file of raw pictures on /cam/image_raw, picture i at times[i] seconds; options: those of mcap's Writer.

    foreign: type, encoding of it and of the messages on /other, one after each picture.
    """
    writer = mcap.writer.Writer(str(path), **options)
    writer.start(profile="", library="")
    schema = writer.register_schema(kind, "ros2msg", b"")
    images = writer.register_channel("/cam/image_raw", "cdr", schema)
    other = 0
    if foreign[2]:
        other_schema = writer.register_schema(*foreign[:2], b"\xff\xfe") if foreign[0] else 0
        other = writer.register_channel("/other", foreign[2], other_schema)
    for index, second in enumerate(times):
        image = TYPES.serialize_cdr(raw_image(picture(index), second * SECOND), "sensor_msgs/msg/Image")
        writer.add_message(images, second * SECOND, bytes(image), second * SECOND)
        if other:
            writer.add_message(other, second * SECOND, b"{}", second * SECOND)
    writer.finish()
    return path


def image_bag(path: Path, count: int, storage: str = "mcap", topic: str = "/cam/image_raw") -> Path:
    """A bag of `count` raw pictures, one a second."""
    images = [(topic, i * SECOND, raw_image(picture(i), i * SECOND)) for i in range(count)]
    return write_bag(path, images, storage)
