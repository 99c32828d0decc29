# SPDX-License-Identifier: Apache-2.0
import itertools

import torch

from xsvggt_ros.cache.policies.voxels import NONE, SIDE, among, around, voxels_of

EDGE = torch.tensor(0.5)


def number(x: int, y: int, z: int) -> int:
    return 1 + (x % SIDE * SIDE + y % SIDE) * SIDE + z % SIDE


def test_a_point_has_the_number_of_its_voxel():
    points = torch.tensor([[0.0, 0.0, 0.0], [0.49, 0.5, 1.2], [-0.1, 0.1, -0.6], [511.9, 512.0, -512.0]])
    expected = [number(0, 0, 0), number(0, 1, 2), number(-1, 0, -2), number(1023, 0, 0)]
    assert voxels_of(points, EDGE).tolist() == expected
    assert NONE not in expected


def test_around_a_voxel_lie_those_within_reach_along_every_axis_across_the_seam_too():
    places = [(3, 4, 5), (0, SIDE - 1, 1)]
    steps = list(itertools.product(range(-2, 3), repeat=3))
    expected = [number(x + dx, y + dy, z + dz) for x, y, z in places for dx, dy, dz in steps]
    found = around(torch.tensor([number(*p) for p in places], dtype=torch.int32), 2)
    assert found.tolist() == sorted(expected)


def test_nothing_is_around_no_voxel():
    assert set(around(torch.tensor([NONE, NONE], dtype=torch.int32), 1).tolist()) == {NONE}


def test_among_finds_exactly_those_in_the_list():
    generator = torch.Generator().manual_seed(0)
    ascending = torch.randint(0, 100, (40,), generator=generator, dtype=torch.int32).sort().values
    asked = torch.arange(110, dtype=torch.int32).view(-1, 2)
    found = among(asked, ascending)
    assert found.flatten().tolist() == [i in ascending.tolist() for i in range(110)]
    assert 0 < found.sum() < 100
