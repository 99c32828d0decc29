# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from xsvggt_ros import geometry


def some_pose(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return geometry.rigid(geometry.rotation_matrix(rng.normal(size=4)), rng.normal(size=3))


def test_driving_forward_is_plus_x_and_left_is_plus_y_and_up_is_plus_z():
    moves = {"forward": ([0, 0, 1], [1, 0, 0]), "left": ([-1, 0, 0], [0, 1, 0]), "up": ([0, -1, 0], [0, 0, 1])}
    for optical, ros in moves.values():
        T_first_cam = geometry.rigid(np.eye(3), np.array(optical, dtype=float))
        np.testing.assert_allclose(geometry.ros_pose(T_first_cam)[:3, 3], ros, atol=1e-15)


def test_turning_left_is_positive_yaw():
    angle = 0.3  # about the optical y axis, which points down: negative is to the left
    left = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
    T_ros_cam = geometry.ros_pose(geometry.rigid(left, np.zeros(3)))
    forward = T_ros_cam[:3, :3] @ [0, 0, 1]
    np.testing.assert_allclose(np.arctan2(forward[1], forward[0]), angle)


def test_inverse_undoes():
    T = some_pose()
    np.testing.assert_allclose(geometry.inverse(T) @ T, np.eye(4), atol=1e-12)


def test_many_poses_at_once_are_as_each_alone():
    rng = np.random.default_rng(0)
    vectors = rng.uniform(-3, 3, (2, 3, 6))
    turns = Rotation.from_rotvec(vectors[..., :3].reshape(-1, 3)).as_matrix().reshape(2, 3, 3, 3)
    T = geometry.rigid(turns, vectors[..., 3:])
    K = np.stack([geometry.intrinsic_matrix(*rng.uniform(20, 90, 2), 55, 41) for _ in range(2)])
    inverse, encoded = geometry.inverse(T), geometry.encode_pose(T, K[:, None], 84, 112)
    for b, s in np.ndindex(2, 3):
        np.testing.assert_allclose(inverse[b, s], geometry.inverse(T[b, s]), atol=1e-12)
        np.testing.assert_allclose(encoded[b, s], geometry.encode_pose(T[b, s], K[b], 84, 112), atol=1e-12)
        np.testing.assert_allclose(geometry.decode_pose(encoded[b, s], 84, 112)[0], T[b, s], atol=1e-12)


def test_quaternion_is_ros_order_and_round_trips():
    np.testing.assert_allclose(geometry.quaternion_xyzw(np.eye(3)), [0, 0, 0, 1])
    quarter_turn_about_z = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(geometry.quaternion_xyzw(quarter_turn_about_z), [0, 0, np.sqrt(0.5), np.sqrt(0.5)])
    R = some_pose()[:3, :3]
    np.testing.assert_allclose(geometry.rotation_matrix(5 * geometry.quaternion_xyzw(R)), R, atol=1e-12)


def test_pose_encoding_round_trips():
    T, K = some_pose(), geometry.intrinsic_matrix(300.0, 310.0, 258.5, 195.5)
    T_back, K_back = geometry.decode_pose(geometry.encode_pose(T, K, 392, 518), 392, 518)
    np.testing.assert_allclose(T_back, T, atol=1e-12)
    np.testing.assert_allclose(K_back, K, atol=1e-9)


@pytest.mark.parametrize("fov", [0.0, -1.0, 10.0])
def test_an_absurd_pose_still_decodes_to_finite_numbers(fov):
    T, K = geometry.decode_pose(np.array([0, 0, 0, 0, 0, 0, 0, fov, fov]), 84, 112)
    assert np.isfinite(K).all() and K[0, 0] > 0
    np.testing.assert_allclose(T, np.eye(4))


@pytest.mark.parametrize(("height", "width"), [(84, 112), (98, 56), (7, 9)])
def test_what_a_predicted_camera_sees_of_a_plane_is_unprojected_onto_it(height, width):
    """Its field of view reaches from edge to edge of the image: the rays through the pixels' centres follow from it
    alone, and where they meet the plane from the pose."""
    fov_height, fov_width = 0.9, 1.3
    T_world_cam, normal, distance = some_pose(3), np.array([0.2, -0.4, 0.6]), 3.0
    pose = np.concatenate(
        [geometry.encode_pose(geometry.inverse(T_world_cam), np.eye(3), 1, 1)[:7], [fov_height, fov_width]]
    )
    normal = T_world_cam[:3, :3] @ normal  # in front of the camera, leaning
    distance += normal @ T_world_cam[:3, 3]
    x = ((np.arange(width) + 0.5) / width * 2 - 1) * np.tan(fov_width / 2)
    y = ((np.arange(height) + 0.5) / height * 2 - 1) * np.tan(fov_height / 2)
    rays = np.stack([*np.meshgrid(x, y), np.ones((height, width))], -1) @ T_world_cam[:3, :3].T
    depth = (distance - normal @ T_world_cam[:3, 3]) / (rays @ normal)
    assert depth.min() > 0

    T_cam_world, K = geometry.decode_pose(pose, height, width)
    points = geometry.transform(geometry.inverse(T_cam_world), geometry.unproject(depth, K).astype(float))
    np.testing.assert_allclose(points @ normal, distance, rtol=1e-6)
    np.testing.assert_allclose(points, T_world_cam[:3, 3] + depth[..., None] * rays, rtol=1e-5, atol=1e-5)


def test_the_optical_axis_of_a_predicted_camera_goes_through_the_middle_of_the_image():
    """As that of the rooms does, which the demo model learns from."""
    pose = np.array([0, 0, 0, 0, 0, 0, 1, 1.0, 1.2])
    np.testing.assert_array_equal(geometry.decode_pose(pose, 84, 112)[1][:2, 2], [55.5, 41.5])
    mirrored = geometry.unproject(np.ones((84, 112)), geometry.decode_pose(pose, 84, 112)[1])
    np.testing.assert_allclose(mirrored[..., 0], -mirrored[:, ::-1, 0], atol=1e-7)
    np.testing.assert_allclose(mirrored[..., 1], -mirrored[::-1, :, 1], atol=1e-7)


def test_unprojected_points_project_back_to_their_pixels():
    K = geometry.intrinsic_matrix(50.0, 60.0, 5.5, 4.0)
    depth = np.random.default_rng(0).uniform(0.5, 9, (8, 12)).astype(np.float32)
    points = geometry.unproject(depth, K).astype(np.float64)
    pixels = points @ K.T
    rows, columns = np.indices(depth.shape)
    np.testing.assert_allclose(pixels[..., 0] / pixels[..., 2], columns, atol=1e-4)
    np.testing.assert_allclose(pixels[..., 1] / pixels[..., 2], rows, atol=1e-4)
    np.testing.assert_array_equal(points[..., 2], depth)
