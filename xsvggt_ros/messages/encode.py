# SPDX-License-Identifier: Apache-2.0
"""Arrays -> ROS messages."""

from __future__ import annotations

import array
import struct
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np

from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import inverse, quaternion_xyzw, transform
from xsvggt_ros.messages.libraries import create_cloud, cv_bridge
from xsvggt_ros.placement.covariance import UNKNOWN_VARIANCE

POSITION = np.dtype([(name, "<f4") for name in "xyz"])
POINT = np.dtype([(name, "<f4") for name in ("x", "y", "z", "rgb")])
TRACK = np.dtype(
    [
        *((name, "<f4") for name in ("x", "y", "z", "u", "v")),
        ("id", "<u4"),
        ("visible", "u1"),
        ("confidence", "<f4"),
    ]
)
FIELD_TYPES = {"float32": "FLOAT32", "uint32": "UINT32", "uint8": "UINT8"}
# dtype and dimensions of an array -> of its Image
ENCODINGS = {("float32", 2): "32FC1", ("uint16", 2): "16UC1", ("uint8", 3): "rgb8"}
DEPTH_STEPS = 1000  # of 16UC1 in a metre, as REP 118, 7-Scenes and Open3D have them
# compressed_depth_image_transport's codes of 32FC1 are A / depth + B, so that steps grow with the square of the depth.
CODE_A, FARTHEST = 10_100.0, 100.0  # A with its default depth_quantization of 100; metres (its default depth_max is 10)
CODE_B = 1 - CODE_A / FARTHEST  # the code of FARTHEST is 1; that of nothing is 0
INVERSE_DEPTH = 0  # the header's number of that format


def millimetres(depth: np.ndarray) -> np.ndarray:
    """uint16 [h, w], of depth float32 [h, w] in metres: 0 where it is not finite, or 16 bits do not suffice."""
    steps = np.rint(depth * DEPTH_STEPS)
    return np.where((steps >= 0) & (steps <= np.iinfo(np.uint16).max), steps, 0).astype(np.uint16)


def inverse_depth(depth: np.ndarray) -> np.ndarray:
    """Codes uint16 [h, w] of compressed_depth_image_transport for depth float32 [h, w] in metres; 0: none has it."""
    codes = np.rint(np.float32(CODE_A) / depth + np.float32(CODE_B))
    return np.where((codes >= 1) & (codes <= np.iinfo(np.uint16).max), codes, 0).astype(np.uint16)


class Encoder:
    """Makes messages of one kind of classes.

    message_class: gives the class of a message type name, for example "sensor_msgs/msg/Image", from
    rclpy's packages or from a rosbags typestore.
    """

    def __init__(self, message_class: Callable[[str], Any]) -> None:
        self._class = cache(message_class)
        # rosbags' classes are dataclasses and hold ndarrays; rclpy's would convert an ndarray value by value.
        self._of_rosbags = is_dataclass(message_class("sensor_msgs/msg/Image"))
        self._sequence = np.asarray if self._of_rosbags else _array
        self._create_cloud = self.create_cloud if self._of_rosbags or not create_cloud else create_cloud
        self._cv2_to_imgmsg = self.cv2_to_imgmsg if self._of_rosbags or not cv_bridge else cv_bridge.cv2_to_imgmsg

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        sec, nanosec = divmod(stamp_ns, 1_000_000_000)
        time = self._make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
        return self._make("std_msgs/msg/Header", stamp=time, frame_id=frame_id)

    def pose(self, T: np.ndarray) -> Any:
        """Pose of a transform [4, 4]."""
        return self._make(
            "geometry_msgs/msg/Pose",
            position=self._vector("geometry_msgs/msg/Point", T[:3, 3]),
            orientation=self._vector("geometry_msgs/msg/Quaternion", quaternion_xyzw(T[:3, :3])),
        )

    def pose_stamped(self, header: Any, pose: Any) -> Any:
        return self._make("geometry_msgs/msg/PoseStamped", header=header, pose=pose)

    def path(self, header: Any, poses: list[Any]) -> Any:
        return self._make("nav_msgs/msg/Path", header=header, poses=list(poses))

    def pose_array(self, header: Any, poses: list[np.ndarray]) -> Any:
        """PoseArray of transforms [4, 4]."""
        return self._make("geometry_msgs/msg/PoseArray", header=header, poses=[self.pose(T) for T in poses])

    def transforms(self, transforms: list[Any]) -> Any:
        """TFMessage of what `transform` makes."""
        return self._make("tf2_msgs/msg/TFMessage", transforms=transforms)

    def transform(self, header: Any, child: str, pose: Any) -> Any:
        """TransformStamped from the child to the header's frame, of the child's Pose there."""
        at = pose.position
        transform = self._make(
            "geometry_msgs/msg/Transform",
            translation=self._vector("geometry_msgs/msg/Vector3", (at.x, at.y, at.z)),
            rotation=pose.orientation,
        )
        return self._make(
            "geometry_msgs/msg/TransformStamped", header=header, child_frame_id=child, transform=transform
        )

    def odometry(self, header: Any, child: str, pose: Any, covariance: np.ndarray) -> Any:
        """Odometry whose twist is unknown; covariance [36] of the pose."""
        zero = self._vector("geometry_msgs/msg/Vector3", (0, 0, 0))
        twist = self._make("geometry_msgs/msg/Twist", linear=zero, angular=zero)
        unknown = np.diag(np.full(6, UNKNOWN_VARIANCE)).ravel()
        return self._make(
            "nav_msgs/msg/Odometry",
            header=header,
            child_frame_id=child,
            pose=self._make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=covariance),
            twist=self._make("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=unknown),
        )

    def image(self, header: Any, values: np.ndarray) -> Any:
        """Image of float32 or uint16 [h, w], or of RGB uint8 [h, w, 3]."""
        little = values.astype(values.dtype.newbyteorder("<"), copy=False)
        return self._cv2_to_imgmsg(little, ENCODINGS[values.dtype.name, values.ndim], header)

    def compressed_depth(self, header: Any, depth: np.ndarray) -> Any:
        """CompressedImage as compressed_depth_image_transport makes it, of metres float32 or millimetres uint16 [h, w].

        Before the PNG there are the format's number, A and B, which are of 32FC1 only: depth is A / (code - B).
        """
        A, B, codes = (0.0, 0.0, depth) if depth.dtype == np.uint16 else (CODE_A, CODE_B, inverse_depth(depth))
        _, png = cv2.imencode(".png", codes)
        return self._make(
            "sensor_msgs/msg/CompressedImage",
            header=header,
            format=f"{ENCODINGS[depth.dtype.name, 2]}; compressedDepth png",
            data=self._bytes(np.concatenate([np.frombuffer(struct.pack("<iff", INVERSE_DEPTH, A, B), np.uint8), png])),
        )

    def camera_info(self, header: Any, intrinsics: np.ndarray, height: int, width: int) -> Any:
        """CameraInfo of an image without distortion."""
        roi = self._make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        return self._make(
            "sensor_msgs/msg/CameraInfo",
            header=header,
            height=height,
            width=width,
            distortion_model="plumb_bob",
            d=self._sequence(np.zeros(5)),
            k=intrinsics.ravel(),
            r=np.eye(3).ravel(),
            p=np.hstack([intrinsics, np.zeros((3, 1))]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=roi,
        )

    def points(self, header: Any, points: np.ndarray, colours: np.ndarray) -> Any:
        """Organised PointCloud2 x y z rgb of float32 [h, w, 3], NaN: none, and RGB uint8 [h, w, 3]."""
        height, width = points.shape[:2]
        cloud = np.empty((height, width, 4), "<f4")
        # The fourth float carries the integer 0x00RRGGBB: blue comes first in memory. One by one: numpy copies rows of
        # three values several times slower.
        cloud[..., 3] = 0
        for i in range(3):
            cloud[..., i] = points[..., i]
            cloud.view(np.uint8)[..., 14 - i] = colours[..., i]
        return self._cloud(header, cloud.view(POINT)[..., 0])

    def positions(self, header: Any, points: np.ndarray) -> Any:
        """PointCloud2 x y z of float32 [N, 3], finite; N may be 0."""
        cloud = self._cloud(header, points.astype("<f4").view(POSITION).T)
        cloud.is_dense = True
        return cloud

    def tracks(self, header: Any, frame: Frame) -> Any:
        """PointCloud2 of a frame's tracks: x y z in its camera, NaN where it is not visible; pixel u v of the camera's
        image, id, visible (0 or 1), confidence."""
        tracks = frame.tracks
        assert tracks is not None
        cloud = np.zeros(len(tracks.ids), TRACK)
        cloud["x"], cloud["y"], cloud["z"] = transform(inverse(frame.T_first_cam), frame.tracked_points()).T
        cloud["u"], cloud["v"] = (frame.resize.to_image(tracks.pixels) if frame.resize else tracks.pixels).T
        cloud["id"], cloud["visible"], cloud["confidence"] = tracks.ids, tracks.visible, tracks.confidence
        return self._cloud(header, cloud[None])

    def cv2_to_imgmsg(self, image: np.ndarray, encoding: str, header: Any) -> Any:
        """Image of little-endian values [h, w] or [h, w, C]: cv_bridge's function of that name, where there is none."""
        height, width = image.shape[:2]
        return self._make(
            "sensor_msgs/msg/Image",
            header=header,
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=image[0].nbytes,
            data=self._bytes(image),
        )

    def create_cloud(self, header: Any, fields: Iterable[Any], points: np.ndarray) -> Any:
        """PointCloud2 of structured points [N]: sensor_msgs_py's function of that name, where there is none."""
        return self._make(
            "sensor_msgs/msg/PointCloud2",
            header=header,
            height=1,
            width=len(points),
            fields=fields,
            is_bigendian=False,
            point_step=points.itemsize,
            row_step=points.nbytes,
            data=self._bytes(points),
            is_dense=False,
        )

    def status(self, header: Any, figures: dict[str, Any]) -> Any:
        return self._make("xsvggt_ros/msg/StreamStatus", header=header, **figures)

    def _make(self, name: str, **values: Any) -> Any:
        if self._of_rosbags:
            return self._class(name)(**values)
        message = self._class(name)()  # given to the constructor, an array would be copied once more
        for field, value in values.items():
            setattr(message, field, value)
        return message

    def _vector(self, name: str, values: Any) -> Any:
        return self._make(name, **dict(zip("xyzw", map(float, values), strict=False)))

    def _cloud(self, header: Any, points: np.ndarray) -> Any:
        """PointCloud2 of structured points [h, w]."""
        field, layout = self._class("sensor_msgs/msg/PointField"), points.dtype.fields
        assert layout is not None
        fields = [
            field(name=name, offset=offset, datatype=getattr(field, FIELD_TYPES[kind.name]), count=1)
            for name, (kind, offset, *_) in layout.items()
        ]
        cloud = self._create_cloud(header, fields, points.reshape(-1))  # flat: it takes a shape for width and height
        cloud.height, cloud.width = points.shape
        cloud.row_step = cloud.width * cloud.point_step
        return cloud

    def _bytes(self, values: np.ndarray) -> Any:
        return self._sequence(np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def _array(values: np.ndarray) -> array.array:
    """The values in one copy, uint8 or float64."""
    copy = array.array(values.dtype.char)
    copy.frombytes(values.view(np.uint8).data)
    return copy
