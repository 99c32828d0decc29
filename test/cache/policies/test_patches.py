# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from xsvggt_ros import geometry
from xsvggt_ros.cache.policies.patches import cameras, patch_points, per_patch, share_in_view

POSES = torch.tensor(
    [
        [0.3, -0.2, 0.5, 0.1, -0.3, 0.2, 0.9, 0.8, 1.1],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.7, 4.0],  # no direction, and a field of view beyond its limit
    ]
)


def test_cameras_are_those_of_the_geometry():
    R, t, slopes = cameras(POSES)
    for i, pose in enumerate(POSES.double().numpy()):
        T, K = geometry.decode_pose(pose, height=40, width=60)
        np.testing.assert_allclose(R[i], T[:3, :3], atol=1e-6)
        np.testing.assert_allclose(t[i], T[:3, 3], atol=1e-6)
        np.testing.assert_allclose(slopes[i], (30 / K[0, 0], 20 / K[1, 1]), rtol=1e-4)


@pytest.mark.parametrize("grid", [(2, 3), (4, 1)])
def test_points_of_patches_are_where_their_middle_is(grid):
    size = 14
    height, width = grid[0] * size, grid[1] * size
    per = torch.rand(1, *grid) + 1
    depth = per.repeat_interleave(size, 1).repeat_interleave(size, 2)
    T, K = geometry.decode_pose(POSES[0].double().numpy(), height, width)
    pixels = geometry.unproject(depth[0].numpy(), K).reshape(grid[0], size, grid[1], size, 3)
    expected = geometry.transform(geometry.inverse(T), pixels.mean((1, 3)))
    torch.testing.assert_close(per_patch(depth, grid), per.flatten(1))
    found = patch_points(depth, POSES[:1], grid)
    np.testing.assert_allclose(found[0].reshape(*grid, 3), expected, atol=1e-5)


def test_the_share_in_view_counts_what_projects_into_the_image():
    points = 3 * torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    height, width = 400, 600
    T, K = geometry.decode_pose(POSES[0].double().numpy(), height, width)
    seen = geometry.transform(T, points.double().numpy())
    pixels = seen @ K.T
    inside = seen[:, 2] > 0
    for axis, length in ((0, width), (1, height)):
        at = pixels[:, axis] / pixels[:, 2]
        inside &= (at >= -0.5) & (at <= length - 0.5)
    assert 0.02 < inside.mean() < 0.5
    assert share_in_view(points, POSES[0]).item() == pytest.approx(inside.mean())
