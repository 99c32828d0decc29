# SPDX-License-Identifier: Apache-2.0
"""Which topics there are, and what a placed frame sends on each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from xsvggt_ros.config import NodeConfig, OutputConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import R_WORLD_OPTICAL, inverse, rigid
from xsvggt_ros.messages.encode import Encoder, millimetres
from xsvggt_ros.obstacles import Pace, obstacle_points, sight_ends, why_no_obstacles
from xsvggt_ros.placement.covariance import pose_covariance
from xsvggt_ros.placement.placement import Placed, in_metres
from xsvggt_ros.status import Status

# Names of what comes in, as before remapping. A recording's topics are given these names as they are read.
IMAGE, CAMERA_INFO, TF, TF_STATIC = "image", "camera_info", "/tf", "/tf_static"
ODOMETRY, DEPTH = "reference/odometry", "reference/depth"
POINTS_TO_TRACK = {  # topic -> message type of pixels x y in the camera's image
    "~/track_points": "geometry_msgs/msg/Polygon",
    "~/track_click": "geometry_msgs/msg/Point",  # as rqt_image_view tells where its picture was clicked
}
IMAGE_TYPES = {"sensor_msgs/msg/Image": "raw", "sensor_msgs/msg/CompressedImage": "compressed"}  # -> image_transport
CAMERA_INFO_TYPE = "sensor_msgs/msg/CameraInfo"
REFERENCES = {  # topic -> message type of what a placement may listen to
    TF: "tf2_msgs/msg/TFMessage",
    TF_STATIC: "tf2_msgs/msg/TFMessage",
    ODOMETRY: "nav_msgs/msg/Odometry",
    DEPTH: "sensor_msgs/msg/Image",
}
# Output topic -> message type. The node publishes these and a replay writes them.
TOPICS = {
    "/tf": "tf2_msgs/msg/TFMessage",
    "~/depth/image": "sensor_msgs/msg/Image",
    "~/depth/camera_info": "sensor_msgs/msg/CameraInfo",
    "~/confidence/image": "sensor_msgs/msg/Image",
    "~/rgb/image": "sensor_msgs/msg/Image",
    "~/rgb/camera_info": "sensor_msgs/msg/CameraInfo",
    "~/points": "sensor_msgs/msg/PointCloud2",
    "~/odometry": "nav_msgs/msg/Odometry",
    "~/path": "nav_msgs/msg/Path",
    "~/status": "xsvggt_ros/msg/StreamStatus",
}
COMPRESSED = {"~/depth/image/compressedDepth": "sensor_msgs/msg/CompressedImage"}  # as well, where it is asked for
OBSTACLES = {  # as well, at their own rate, where metres and the robot's base are known
    "~/obstacles": "sensor_msgs/msg/PointCloud2",
    "~/obstacles/clearing": "sensor_msgs/msg/PointCloud2",
}
NEED_DEPTH = (  # of the frames they are about
    "~/depth/image",
    "~/confidence/image",
    "~/points",
    "~/tracks",
    *COMPRESSED,
    *OBSTACLES,
)
TRACKS = {"~/tracks": "sensor_msgs/msg/PointCloud2"}  # as well, where points are followed
KEYFRAMES = {"~/keyframes": "geometry_msgs/msg/PoseArray"}  # as well, of streams of segments whose map is published


def outputs(config: NodeConfig) -> dict[str, str]:
    """The topics that frames go out on under these settings, with their message types."""
    tracks = TRACKS if config.stream.track_groups else {}
    obstacles = {} if why_no_obstacles(config) else OBSTACLES
    compressed = COMPRESSED if config.output.compressed_depth else {}
    keyframes = KEYFRAMES if config.stream.segment.enabled and config.publish_map else {}
    return TOPICS | tracks | compressed | obstacles | keyframes


def references(config: NodeConfig) -> list[str]:
    """The topics of REFERENCES that the settings make necessary."""
    source = config.scale.source
    transforms = [TF, TF_STATIC] if config.base_frame or source == "tf" else []
    return transforms + [topic for topic in (ODOMETRY, DEPTH) if topic == f"reference/{source}"]


class FrameMessages:
    """Makes the output messages of frames, for the topics of `outputs`; message_class as in Encoder."""

    def __init__(self, message_class: Callable[[str], Any]) -> None:
        self._encoder = Encoder(message_class)
        self._path: list[Any] = []
        self._obstacles = Pace()

    def convert(self, placed: Placed, config: NodeConfig) -> dict[str, Callable[[], Any]]:
        """{topic: function that makes its message}, so that only what is wanted is made; ~/status is not among them.

        Poses go from `config.world_frame` (x forward, y left, z up) to the placed frame's child; points and depth are
        in the camera's optical frame, and of one size with the colour image; obstacles are in the child's. Stamps are
        the image's. /tf is left out unless `config.publish_tf`, ~/keyframes unless `config.publish_map`, those of
        NEED_DEPTH of a frame without depth, and obstacles between two of their clouds.
        """
        encode, frame = self._encoder, placed.frame
        camera = encode.header(placed.stamp_ns, placed.camera)
        world = encode.header(placed.stamp_ns, config.world_frame)
        pose = encode.pose(placed.T_odom_child)

        @cache
        def depth() -> np.ndarray:
            return _depth_image(placed.output, config.output)

        @cache
        def camera_info() -> Any:
            return encode.camera_info(camera, intrinsics, *image.shape[:2])

        image, intrinsics = placed.view
        self._extend_path(placed, encode.pose_stamped(world, pose), config.path_length)
        topics: dict[str, Callable[[], Any]] = {
            "/tf": lambda: self._transform(placed, pose, config),
            "~/depth/image": lambda: encode.image(camera, depth()),
            "~/depth/camera_info": camera_info,
            "~/confidence/image": lambda: encode.image(camera, placed.output.confidence),
            "~/rgb/image": lambda: encode.image(camera, image),
            "~/rgb/camera_info": camera_info,
            "~/points": lambda: encode.points(camera, *_sure_points(placed.output, config.output)),
            "~/odometry": lambda: encode.odometry(world, placed.child, pose, pose_covariance(placed)),
            "~/path": lambda: encode.path(world, self._path),
        }
        if frame.tracks is not None:
            topics |= dict.fromkeys(TRACKS, lambda: encode.tracks(camera, frame))
        if frame.segment and placed.T_map_odom is not None and config.publish_map:
            corrected = encode.header(placed.stamp_ns, config.map_frame)
            topics |= dict.fromkeys(KEYFRAMES, lambda: encode.pose_array(corrected, keyframe_poses(placed)))
        if config.output.compressed_depth:
            topics |= dict.fromkeys(COMPRESSED, lambda: encode.compressed_depth(camera, depth()))
        if self._obstacles_due(placed, config):
            topics |= self._obstacle_clouds(placed, config)
        if not config.publish_tf:
            del topics["/tf"]
        unknown = () if frame.status.dense else NEED_DEPTH
        return {topic: make for topic, make in topics.items() if topic not in unknown}

    def status(self, status: Status, stamp_ns: int, camera: str) -> Any:
        """The message of ~/status; stamp and frame_id are the image's."""
        return self._encoder.status(self._encoder.header(stamp_ns, camera), status.figures())

    def _extend_path(self, placed: Placed, pose: Any, length: int) -> None:
        if placed.starts:
            self._path.clear()
        self._path.append(pose)
        del self._path[:-length]

    def _obstacles_due(self, placed: Placed, config: NodeConfig) -> bool:
        """A frame without depth takes no cloud's turn."""
        possible = placed.frame.status.dense and not why_no_obstacles(config)
        return possible and self._obstacles.due(placed.stamp_ns, config.obstacles.rate)

    def _obstacle_clouds(self, placed: Placed, config: NodeConfig) -> dict[str, Callable[[], Any]]:
        header = self._encoder.header(placed.stamp_ns, placed.child)
        T_base_cam = inverse(placed.T_odom_child) @ placed.T_odom_cam
        given = placed.frame, T_base_cam, config.obstacles, config.output.confidence_threshold
        cloud = partial(self._encoder.positions, header)
        return {
            "~/obstacles": lambda: cloud(obstacle_points(*given)),
            "~/obstacles/clearing": lambda: cloud(sight_ends(*given)),
        }

    def _transform(self, placed: Placed, pose: Any, config: NodeConfig) -> Any:
        """pose: that of `placed.T_odom_child`; its quaternion once more would take its time."""
        encode = self._encoder
        found = [(config.world_frame, placed.child, placed.T_odom_child)]
        if placed.T_map_odom is not None and config.publish_map:
            found.append((config.map_frame, config.world_frame, placed.T_map_odom))
        if config.invert_tf:  # all: a frame has one parent
            found = [(child, parent, inverse(T)) for parent, child, T in found]

        def made(parent: str, child: str, T: np.ndarray) -> Any:
            at = pose if T is placed.T_odom_child else encode.pose(T)
            return encode.transform(encode.header(placed.stamp_ns, parent), child, at)

        return encode.transforms([made(*link) for link in found])


def keyframe_poses(placed: Placed) -> list[np.ndarray]:
    """Where the keyframes are in the map, [4, 4] each, metres or the model's unit, x along the line of sight."""
    assert placed.frame.segment
    poses = [S_map_key.pose(np.eye(4)) for S_map_key in placed.frame.segment.keyframes.values()]
    T_cam_body = rigid(R_WORLD_OPTICAL.T, np.zeros(3))
    return [placed.T_map_first @ in_metres(T, placed.scale.scale) @ T_cam_body for T in poses]


def sure_depth(frame: Frame, threshold: float) -> np.ndarray:
    """The depth [h, w]; NaN where the confidence is below the threshold."""
    depth = frame.depth.copy()
    depth[frame.confidence < threshold] = np.nan
    return depth


def _depth_image(frame: Frame, config: OutputConfig) -> np.ndarray:
    """The sure depth [h, w] in the encoding that is set: float32 in metres or uint16 in millimetres."""
    depth = sure_depth(frame, config.confidence_threshold)
    return millimetres(depth) if config.depth_encoding == "16UC1" else depth


def _sure_points(frame: Frame, config: OutputConfig) -> tuple[np.ndarray, np.ndarray]:
    """Points [h, w, 3] in the camera's frame, thinned, NaN where the confidence is below the threshold; their RGB."""
    thin = (slice(None, None, config.point_stride),) * 2
    points = frame.points_cam(config.point_stride)
    points[frame.confidence[thin] < config.confidence_threshold] = np.nan
    return points, frame.image[thin]
