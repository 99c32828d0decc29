# SPDX-License-Identifier: Apache-2.0
"""What is seen in 3-D: the cloud so far, the camera's way, where it looked from, and where it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.geometry import Array, quaternion_xyzw, transform
from xsvggt_ros.live.cloud import GrowingCloud
from xsvggt_ros.pictures import SHOWN_PERCENTILES
from xsvggt_ros.placement.placement import Placed

POINTS_OF_A_FRAME = 6000  # at most, of every n-th row and column
FINENESS = 0.01  # side of a voxel, at first, as a share of how far the first frame sees
BLOCK = 2048  # points that are sent together: a block that is full is sent once
MOST_POSES = 1000  # of the way; from then on every other one is left out
MOST_CAMERAS = 50  # that are drawn along it
CAMERA_SIZE = 0.08  # as a share of how far the first frame sees
LINE, OLD_CAMERA, CAMERA = (40, 90, 220), (150, 150, 150), (230, 80, 20)  # RGB


@dataclass(frozen=True)
class Pose:
    """Where the camera was."""

    stamp_ns: int
    T_odom_cam: Array
    T_odom_child: Array


class Scene:
    """A viser scene of the world that the frames are in; x forward, y left, z up.

    `add` takes frames in, `draw` sends what has changed; all in one thread. sent: bytes of points, lines and images, so
    far.
    """

    def __init__(self, server: Any) -> None:
        self.cloud = GrowingCloud()
        self.way: list[Pose] = []
        self.sent = 0
        self._server = server
        self._scene = server.scene
        self._scene.set_up_direction("+z")
        self._start()

    def _start(self) -> None:
        self.cloud.clear()
        self.way = []
        self._newest: Placed | None = None  # that is not drawn yet
        self._distance = 0.0  # median depth of the first frame that has one
        self._changed = 0  # index of the first point that is not sent yet
        self._every, self._count = 1, 0  # of how many frames one is on the way; how many there were

    def add(self, placed: Placed, config: NodeConfig) -> None:
        """Takes a frame in."""
        if placed.starts:
            self._start()
        self._newest = placed
        if self._count % self._every == 0:
            self.way.append(Pose(placed.stamp_ns, placed.T_odom_cam, placed.T_odom_child))
        self._count += 1
        if len(self.way) > MOST_POSES:
            self.way, self._every = self.way[::2], 2 * self._every
        if placed.frame.status.dense:
            if not self._distance:
                self._distance = float(np.median(placed.frame.depth))
                self._look_over_the_shoulder(placed.T_odom_cam)
            self._add_points(placed, config)

    def _look_over_the_shoulder(self, T_odom_cam: Array) -> None:
        """Of the first camera, wherever a world begins; from far, and past the panel on the right."""
        place, (x, y) = T_odom_cam[:3, 3], T_odom_cam[:2, 2]  # which way it looks
        turned = Rotation.from_euler("z", math.atan2(y, x))
        for view in (self._server.initial_camera, *(each.camera for each in self._server.get_clients().values())):
            view.position = place + self._distance * turned.apply([-2.5, 0.0, 3.2])
            view.look_at = place + self._distance * turned.apply([0.8, -0.8, 0.0])

    def fit(self, camera: Any, side: tuple[float, float, float] | None) -> None:
        """Moves a browser's camera until it sees the cloud, but for outliers: to that side of it, or where it is now.

        Raises ValueError or TypeError where what the browser says of its camera is none.
        """
        if not len(self.cloud.points):
            return
        low, high = np.percentile(self.cloud.points, SHOWN_PERCENTILES, axis=0)
        middle, radius = (low + high) / 2, max(float(np.linalg.norm(high - low)) / 2, self.cloud.side)
        away = camera.position - camera.look_at if side is None else np.array(side)
        half = math.atan(math.tan(camera.fov / 2) * min(1.0, camera.aspect))  # of what it sees of width or height
        if not (0 < half < math.pi / 2 and np.linalg.norm(away) > 0):
            raise ValueError("the browser does not say where it looks from")
        with camera.client.atomic():
            camera.position = middle + radius / math.sin(half) * away / np.linalg.norm(away)
            camera.look_at = middle

    def _add_points(self, placed: Placed, config: NodeConfig) -> None:
        frame = placed.frame
        stride = math.ceil(math.sqrt(frame.depth.size / POINTS_OF_A_FRAME))
        sure = frame.confidence[::stride, ::stride] >= config.output.confidence_threshold
        points = transform(placed.T_odom_cam, frame.points_cam(stride)[sure])
        colors = frame.image[::stride, ::stride][sure]
        first = self.cloud.add(points, colors, FINENESS * self._distance, config.page.points)
        self._changed = min(self._changed, first)

    def draw(self) -> None:
        """Sends what has changed since it was last called."""
        if self._newest is None:
            return
        with self._server.atomic():
            if self._changed < len(self.cloud.points):
                self._draw_cloud()
            self._forget_blocks(-(-len(self.cloud.points) // BLOCK))
            self._draw_way(self._newest)
            self._draw_camera(self._newest)
        self._newest = None

    def _draw_cloud(self) -> None:
        points, colors = self.cloud.points, self.cloud.colors
        for start in range(self._changed // BLOCK * BLOCK, len(points), BLOCK):
            block = slice(start, start + BLOCK)
            self._scene.add_point_cloud(
                f"/cloud/{start // BLOCK}",
                points[block],
                colors[block],
                point_size=self.cloud.side,
                point_shape="circle",
                precision="float32",
                point_shading="flat",
            )
            self.sent += points[block].nbytes + colors[block].nbytes
        self._changed = len(points)

    def _forget_blocks(self, number: int) -> None:
        """Takes those away that there were more of before."""
        while self._scene.get_handle_by_name(f"/cloud/{number}"):
            self._scene.remove_by_name(f"/cloud/{number}")
            number += 1

    def _draw_way(self, newest: Placed) -> None:
        poses = np.stack([pose.T_odom_cam for pose in self.way])
        lines = np.stack([poses[:-1, :3, 3], poses[1:, :3, 3]], 1)
        self._lines("/way", lines, LINE)
        some = poses[:: math.ceil(len(poses) / MOST_CAMERAS)]
        self._lines("/cameras", frustums(some, newest, CAMERA_SIZE / 2 * self._distance), OLD_CAMERA)

    def _lines(self, name: str, lines: NDArray[np.float64], color: tuple[int, int, int]) -> None:
        if there := self._scene.get_handle_by_name(name):
            there.points = lines
        else:
            self._scene.add_line_segments(name, lines, color, thickness=2.0, thickness_units="screen")
        self.sent += 4 * lines.size  # as float32

    def _draw_camera(self, placed: Placed) -> None:
        camera = self._scene.get_handle_by_name("/camera")
        if camera is None:
            camera = self._scene.add_camera_frustum("/camera", fov=1.0, aspect=1.0, color=CAMERA)
        height, width = placed.frame.depth.shape
        camera.fov, camera.aspect = 2 * math.atan(height / 2 / placed.frame.intrinsics[1, 1]), width / height
        camera.scale = CAMERA_SIZE * self._distance
        camera.position = placed.T_odom_cam[:3, 3]
        camera.wxyz = np.roll(quaternion_xyzw(placed.T_odom_cam[:3, :3]), 1)
        camera.image = small(placed.frame.image)
        self.sent += len(camera._image_data)


def frustums(T_odom_cam: Array, placed: Placed, size: float) -> NDArray[np.float64]:
    """What cameras at these poses [N, 4, 4] see of it, as lines [8 N, 2, 3]: edges of pyramids of that height."""
    height, width = placed.frame.depth.shape
    K = placed.frame.intrinsics
    x, y = (np.array([[0, 0], [width, height]]) - K[:2, 2]).T / np.diag(K)[:2, None]
    corners = size * np.array([[x[0], y[0], 1], [x[1], y[0], 1], [x[1], y[1], 1], [x[0], y[1], 1]])
    lines = np.stack([np.concatenate([np.zeros((4, 3)), corners]), np.concatenate([corners, np.roll(corners, 1, 0)])])
    moved = np.einsum("nij,elj->nlei", T_odom_cam[:, :3, :3], lines) + T_odom_cam[:, None, None, :3, 3]
    return moved.reshape(-1, 2, 3)


def small(image: NDArray, widest: int = 320) -> NDArray:
    """The image, no wider than that."""
    height, width = image.shape[:2]
    if width <= widest:
        return image
    return cv2.resize(image, (widest, round(height * widest / width)), interpolation=cv2.INTER_AREA)
