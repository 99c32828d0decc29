# SPDX-License-Identifier: Apache-2.0
"""Cameras, poses and points.

Transforms are named T_target_source. Camera frames are optical (x right, y down, z forward); the ROS world is
REP 103 (x forward, y left, z up), with the first camera level in its origin. Units are the model's. Pixel centres lie
at integers, so that the middle of an image of width W is at (W - 1) / 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Array = NDArray[np.float64]

R_WORLD_OPTICAL: Array = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
LEAST_LENGTH = 1e-6  # of a quaternion; a shorter one has no direction
FOV_LIMITS = np.deg2rad((1.0, 179.0))  # outside, a focal length means nothing


def quaternion_xyzw(rotation: Array) -> Array:
    """Rotation matrices [..., 3, 3] -> unit quaternions [..., 4], x y z w as in ROS, w >= 0."""
    quaternion = Rotation.from_matrix(rotation.reshape(-1, 3, 3)).as_quat().reshape(*rotation.shape[:-2], 4)
    return np.where(quaternion[..., 3:] >= 0, quaternion, -quaternion)


def rotation_matrix(quaternion: Array) -> Array:
    """Quaternion [4], x y z w, of any length but 0 -> rotation matrix [3, 3]; length 0 is the identity, NaN is NaN."""
    length = np.linalg.norm(quaternion)
    if not 0 < length < np.inf:  # which a network may say
        return np.eye(3) if length == 0 else np.full((3, 3), np.nan)
    return Rotation.from_quat(quaternion).as_matrix()


def rigid(rotation: Array, translation: Array) -> Array:
    """Rotations [..., 3, 3] and translations [..., 3] -> transforms [..., 4, 4]."""
    T = np.zeros((*np.shape(rotation)[:-2], 4, 4))
    T[..., :3, :3], T[..., :3, 3], T[..., 3, 3] = rotation, translation, 1
    return T


def inverse(T: Array) -> Array:
    """Inverse of rigid transforms [..., 4, 4]."""
    R_transposed = np.swapaxes(T[..., :3, :3], -1, -2)
    return rigid(R_transposed, -(R_transposed @ T[..., :3, 3:])[..., 0])


def interpolate(T_before: Array, T_after: Array, share: float) -> Array:
    """Transform [4, 4] at a share in [0, 1] of the way: positions on a line, rotations at constant speed."""
    R_before = Rotation.from_matrix(T_before[:3, :3])
    turn = (R_before.inv() * Rotation.from_matrix(T_after[:3, :3])).as_rotvec()
    rotation = R_before * Rotation.from_rotvec(share * turn)
    return rigid(rotation.as_matrix(), (1 - share) * T_before[:3, 3] + share * T_after[:3, 3])


def ros_pose(T_first_cam: Array) -> Array:
    """Camera pose in the stream's world (first camera, optical axes) -> in the ROS world, [4, 4].

    The camera's own frame stays optical, as images' frame_id means it.
    """
    return rigid(R_WORLD_OPTICAL, np.zeros(3)) @ T_first_cam


def decode_pose(pose: NDArray, height: int, width: int) -> tuple[Array, Array]:
    """Pose encoding [9] -> T_cam_world [4, 4] and intrinsics [3, 3] of an image of that size (pixels).

    pose is translation (3), quaternion x y z w (4), fields of view over height and width (radians), as
    VGGT, arXiv 2503.11651, section 3.1; the fields of view are limited to (1, 179) degrees. The principal point is the
    middle of the image, ((width - 1) / 2, (height - 1) / 2): the published code's (width / 2, height / 2) is that of
    pixels whose corners lie at integers, and half a pixel off where it unprojects by their indices.
    """
    pose = np.asarray(pose, dtype=np.float64)
    T_cam_world = rigid(rotation_matrix(pose[3:7]), pose[:3])
    fov_height, fov_width = np.clip(pose[7:9], *FOV_LIMITS)
    focal_x, focal_y = width / 2 / np.tan(fov_width / 2), height / 2 / np.tan(fov_height / 2)
    return T_cam_world, intrinsic_matrix(focal_x, focal_y, (width - 1) / 2, (height - 1) / 2)


def encode_pose(T_cam_world: Array, intrinsics: Array, height: int, width: int) -> Array:
    """The inverse of `decode_pose`: [..., 9] of transforms [..., 4, 4] and intrinsics [..., 3, 3] that broadcast."""
    rotation, translation = T_cam_world[..., :3, :3], T_cam_world[..., :3, 3]
    focal = np.stack([intrinsics[..., 1, 1], intrinsics[..., 0, 0]], -1)
    fields_of_view = 2 * np.arctan(np.array([height, width]) / 2 / focal)
    fields_of_view = np.broadcast_to(fields_of_view, (*translation.shape[:-1], 2))
    return np.concatenate([translation, quaternion_xyzw(rotation), fields_of_view], -1)


def intrinsic_matrix(focal_x: float, focal_y: float, center_x: float, center_y: float) -> Array:
    """Pinhole camera matrix [3, 3], pixels; pixel centres lie at integers."""
    return np.array([[focal_x, 0.0, center_x], [0.0, focal_y, center_y], [0.0, 0.0, 1.0]])


def unproject(depth: NDArray, intrinsics: Array, stride: int = 1) -> NDArray[np.float32]:
    """Depth [h, w] along the optical axis -> points [h, w, 3] in the camera's frame, float32.

    stride: only those of every n-th row and column.
    """
    rows, columns = (np.arange(0, side, stride) for side in depth.shape)
    depth = depth[::stride, ::stride]
    x = (columns - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (rows - intrinsics[1, 2]) / intrinsics[1, 1]
    points = np.empty((*depth.shape, 3), np.float32)
    np.multiply(x.astype(np.float32), depth, out=points[..., 0], casting="same_kind")
    np.multiply(y.astype(np.float32)[:, None], depth, out=points[..., 1], casting="same_kind")
    points[..., 2] = depth
    return points


def cross_matrices(v: Array) -> Array:
    """Vectors [N, 3] -> [N, 3, 3], whose products with x are v x x."""
    zero = np.zeros(len(v))
    x, y, z = v.T
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)


def transform(T_target_source: Array, points: NDArray) -> NDArray:
    """Points [..., 3] from source to target, in the points' dtype."""
    moved = points @ T_target_source[:3, :3].T + T_target_source[:3, 3]
    return moved.astype(points.dtype)
