# SPDX-License-Identifier: Apache-2.0
"""Synthetic rooms: what it says of depth and pose is true, and the same every time."""

import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from rosbags.highlevel import AnyReader

from xsvggt_ros.camera import decode_intrinsics
from xsvggt_ros.cli import main
from xsvggt_ros.geometry import inverse, rotation_matrix, transform, unproject
from xsvggt_ros.messages.decode import stamp_ns
from xsvggt_ros.replay.sources import Images, open_source
from xsvggt_ros.rooms import Scene, furnish, make_room, pinhole, render, stream, texture, trajectory, write_folder
from xsvggt_ros.rooms.bag import TOPICS, write_bag
from xsvggt_ros.rooms.room import SHAPES
from xsvggt_ros.rooms.scene import PLAIN, VARIED
from xsvggt_ros.rooms.texture import TEXTURES, sample

SEEDS = range(8)
KINDS = ("robot", "handheld")
WIDTH, HEIGHT = 64, 48
K = pinhole(WIDTH, HEIGHT)


def clearances(scene: Scene, points: np.ndarray) -> np.ndarray:
    """[N, P] metres from points [N, 3] to each primitive's surface; below 0 where no camera can be."""
    centre, half, heading = (getattr(scene, name)[0].double().numpy() for name in ("centre", "half", "heading"))
    offset = points[:, None] - centre
    cos, sin = heading.T
    along = np.stack([cos * offset[..., 0] + sin * offset[..., 1], cos * offset[..., 1] - sin * offset[..., 0]], -1)
    radial = np.linalg.norm(offset[..., :2], axis=-1)
    beyond = np.abs(np.concatenate([along, offset[..., 2:]], -1)) - half  # [N, P, 3]
    distance = box_distance(beyond)
    cylinder = np.stack([radial - half[:, 0], beyond[..., 2]], -1)
    rounds, balls = scene.style.rounds, scene.style.balls
    distance[:, rounds] = box_distance(cylinder)[:, rounds]
    distance[:, balls] = (np.linalg.norm(offset, axis=-1) - half[:, 0])[:, balls]
    distance[:, 0] *= -1
    return distance


def box_distance(beyond: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.maximum(beyond, 0), axis=-1) + np.minimum(beyond.max(-1), 0)


def views(seed: int, frames: int = 6, kind: str = "robot", style=PLAIN) -> tuple[Scene, np.ndarray]:
    """A room and views a few seconds apart."""
    room = make_room(seed)
    return furnish(room, style=style), trajectory(room, frames, kind, rate=0.3)


def points_of_room(depth: torch.Tensor, T_room_cam: np.ndarray, intrinsics: np.ndarray = K) -> np.ndarray:
    """[H * W, 3] float64"""
    return transform(T_room_cam, unproject(depth.numpy(), intrinsics).astype(np.float64)).reshape(-1, 3)


def empty(scene: Scene) -> Scene:
    keep = torch.arange(scene.half.shape[1])[:, None] == 0
    return replace(scene, half=scene.half * keep)


def test_same_seed_same_bytes_and_other_seed_other_room():
    one, again, other = (list(stream(seed, 3, WIDTH, HEIGHT)) for seed in (1, 1, 2))
    for a, b, c in zip(one, again, other, strict=True):
        assert a.rgb.tobytes() == b.rgb.tobytes() and a.depth.tobytes() == b.depth.tobytes()
        assert np.array_equal(a.T_room_cam, b.T_room_cam)
        assert not np.array_equal(a.rgb, c.rgb)


def test_frame_has_the_declared_types_and_stamps():
    frames = list(stream(0, 7, WIDTH, HEIGHT, rate=10))
    assert [frame.stamp_ns for frame in frames] == [i * 100_000_000 for i in range(7)]
    for frame in frames:
        assert frame.rgb.shape == (HEIGHT, WIDTH, 3) and frame.rgb.dtype == np.uint8 and frame.rgb.flags.c_contiguous
        assert frame.depth.shape == (HEIGHT, WIDTH) and frame.depth.dtype == np.float32
        assert frame.T_room_cam.shape == (4, 4) and frame.T_room_cam.dtype == np.float64
        assert frame.intrinsics.shape == (3, 3) and frame.intrinsics.dtype == np.float64


def test_stream_shows_what_render_sees():
    room = make_room(4)
    poses = trajectory(room, 5)
    _, depth = render(furnish(room), poses, K, HEIGHT, WIDTH)
    for frame, pose, expected in zip(stream(4, 5, WIDTH, HEIGHT), poses, depth, strict=True):
        assert np.array_equal(frame.T_room_cam, pose)
        np.testing.assert_allclose(frame.depth, expected, rtol=1e-5)


def test_stream_leaves_torch_its_threads():
    def threads_of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        frames = stream(0, 4, WIDTH, HEIGHT)
        next(frames)
        frames.close()  # before its end
        assert torch.get_num_threads() == 3 and threads_of_a_new_thread() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("kind", "style"), [*((kind, PLAIN) for kind in KINDS), ("handheld", VARIED)])
@pytest.mark.parametrize("seed", SEEDS)
def test_depth_is_that_of_the_first_surface(seed, kind, style):
    scene, poses = views(seed, kind=kind, style=style)
    _, depth = render(scene, poses, K, HEIGHT, WIDTH)
    for T_room_cam, d in zip(poses, depth, strict=True):
        points = points_of_room(d, T_room_cam)
        assert np.abs(clearances(scene, points)).min(1).max() < 1e-4
        for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
            before = T_room_cam[:3, 3] + share * (points - T_room_cam[:3, 3])
            assert clearances(scene, before).min() > -1e-4


def test_depth_of_a_bare_wall_is_its_distance_not_the_length_of_the_ray():
    room = make_room(0)
    T_room_cam = np.eye(4)
    T_room_cam[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]  # looks along x
    T_room_cam[:3, 3] = (0.25, -0.1, 1.2)
    width, height = 65, 49  # the ray in the middle has components that are 0
    _, depth = render(empty(furnish(room)), T_room_cam[None], pinhole(width, height, 20), height, width)
    np.testing.assert_allclose(depth, room.half[0] - 0.25, rtol=1e-6)


def test_every_pixel_shows_the_mean_of_its_area():
    finer = 6
    fine = K * [[finer], [finer], [1]]
    fine[:2, 2] += (finer - 1) / 2
    errors = []
    for seed in SEEDS:
        scene, poses = views(seed, frames=3)
        colour, _ = render(empty(scene), poses, K, HEIGHT, WIDTH)
        fine_colour, _ = render(empty(scene), poses, fine, finer * HEIGHT, finer * WIDTH)
        mean = fine_colour.unflatten(1, (HEIGHT, finer)).unflatten(3, (WIDTH, finer)).mean((2, 4))
        errors.append((colour - mean).abs().mean())
    assert np.mean(errors) < 0.013  # twice that without filtering, or with filters twice as wide


def test_clutter_stands_on_something_and_hides_nothing_that_moves():
    """Of the varied rooms' pieces on top, most find a place; all others are as far from the path as ever."""
    on_top, found = 0, 0
    for seed in SEEDS:
        room = make_room(seed)
        scene = furnish(room, style=VARIED)
        tops = [k for k, piece in enumerate(VARIED.pieces, 1) if piece.place == "top"]
        bottom = (scene.centre - scene.half)[0, tops, 2]
        on_top, found = on_top + len(tops), found + int((bottom > 0.2).sum())
        positions = trajectory(room, 40, rate=1)[:, :3, 3]
        assert clearances(scene, positions).min() > 0.2
    assert found > 0.8 * on_top


def test_varied_rooms_have_lamps_of_their_own_colours():
    scene, poses = views(3, style=VARIED)
    white = replace(scene, glow=torch.ones_like(scene.glow))
    dark = replace(scene, glow=scene.glow * torch.tensor([1.0, 0.0])[:, None])
    colours = [render(s, poses, K, HEIGHT, WIDTH)[0].mean((0, 1, 2)) for s in (dark, scene, white)]
    assert (colours[0] < colours[1]).all() and (colours[1] < colours[2]).all()
    assert (colours[2] - colours[1]).std() > 1e-3


def test_photographs_tile_and_are_missed_by_name(monkeypatch):
    assert len(texture._photographs()) == len(texture.PHOTOGRAPHS)
    for image in texture._photographs():
        assert image.shape == (texture.SIZE, texture.SIZE) and 0 <= image.min() < image.max() <= 1
        inside = np.abs(np.diff(image, axis=0)).mean()
        assert np.abs(image[0] - image[-1]).mean() <= inside and np.abs(image[:, 0] - image[:, -1]).mean() <= inside
    monkeypatch.setattr(texture, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install scikit-image"):
        furnish(make_room(0), style=VARIED)
    furnish(make_room(0))


def test_cameras_of_one_call_may_differ():
    scene, poses = views(2, frames=2)
    lenses = np.stack([pinhole(WIDTH, HEIGHT, angle) for angle in (50, 90)])
    together = render(scene, poses, lenses, HEIGHT, WIDTH)
    for k, lens in enumerate(lenses):
        for both, alone in zip(together, render(scene, poses[k : k + 1], lens, HEIGHT, WIDTH), strict=True):
            torch.testing.assert_close(both[k], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_point_seen_from_elsewhere_is_where_it_was(seed):
    room = make_room(seed)
    scene, poses = furnish(room), trajectory(room, 2, rate=0.8)
    colour, depth = render(scene, poses, K, HEIGHT, WIDTH)
    in_second = transform(inverse(poses[1]), points_of_room(depth[0], poses[0]))
    pixels = in_second @ K.T
    u, v = np.rint(pixels[:, :2] / pixels[:, 2:]).astype(int).T
    seen = (in_second[:, 2] > 0.1) & (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
    assert seen.mean() > 0.3
    there = depth[1].numpy()[v[seen], u[seen]]
    ratio = there / in_second[seen, 2]
    assert (ratio > 1.1).mean() < 0.02  # nothing behind a surface shows, but for half a pixel at edges
    unhidden = np.abs(ratio - 1) < 0.05
    assert unhidden.mean() > 0.75
    first, second = colour[0].reshape(-1, 3).numpy()[seen][unhidden], colour[1].numpy()[v[seen], u[seen]][unhidden]
    unrelated = np.random.default_rng(0).permutation(second)
    assert np.abs(first - second).mean() < 0.3 * np.abs(first - unrelated).mean()


def test_a_ray_sees_the_same_at_every_resolution():
    scene, poses = views(3)
    fine = K * [[3], [3], [1]]  # pixel 3u is pixel u
    _, depth = render(scene, poses, K, HEIGHT, WIDTH)
    _, fine_depth = render(scene, poses, fine, 3 * HEIGHT, 3 * WIDTH)
    same = torch.isclose(fine_depth[:, ::3, ::3], depth, rtol=1e-4)
    assert same.float().mean() > 0.999  # but for rays that touch an edge


def test_scenes_of_a_batch_are_rendered_as_if_alone():
    scenes, poses = zip(*(views(seed, frames=1) for seed in (5, 6, 7)), strict=True)
    colour, depth = render(Scene.cat(scenes), np.concatenate(poses), K, HEIGHT, WIDTH)
    for scene, pose, c, d in zip(scenes, poses, colour, depth, strict=True):
        alone = render(scene, pose, K, HEIGHT, WIDTH)
        assert torch.isclose(d, alone[1][0], rtol=1e-4).float().mean() > 0.999
        assert torch.isclose(c, alone[0][0], atol=1e-2).float().mean() > 0.999


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_well_exposed_and_textured(kind):
    for seed in SEEDS:
        for frame in stream(seed, 4, WIDTH, HEIGHT, kind, rate=0.3):
            assert 40 < frame.rgb.mean() < 220
            assert frame.rgb.std() > 10
            assert (frame.rgb == 255).mean() < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_the_camera_keeps_clear_of_everything(kind):
    for seed in range(40):
        room = make_room(seed)
        positions = trajectory(room, 300, kind, rate=4)[:, :3, 3]  # more than a lap
        assert clearances(furnish(room), positions).min() > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_poses_are_rigid_and_motion_is_smooth(kind):
    for seed in range(20):
        poses = trajectory(make_room(seed), 600, kind)
        R = poses[:, :3, :3]
        R_transposed = R.swapaxes(1, 2)
        np.testing.assert_allclose(R @ R_transposed, np.broadcast_to(np.eye(3), R.shape), atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(R), 1)
        np.testing.assert_array_equal(poses[:, 3], np.broadcast_to([0, 0, 0, 1], (600, 4)))
        assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).max() < 0.05
        cosine = (np.trace(R_transposed[:-1] @ R[1:], axis1=1, axis2=2) - 1) / 2
        assert np.rad2deg(np.arccos(cosine.min())) < 3


def test_a_robot_stays_level_and_a_hand_does_not():
    for seed in range(20):
        robot, hand = (trajectory(make_room(seed), 600, kind, rate=4) for kind in KINDS)
        assert np.ptp(robot[:, 2, 3]) == 0
        assert np.rad2deg(np.arcsin(np.abs(robot[:, 2, 0]).max())) < 1  # the camera's x axis: roll
        assert np.rad2deg(np.arcsin(np.abs(robot[:, 2, 2]).max())) < 8  # its line of sight: pitch
        assert np.ptp(hand[:, 2, 3]) > 0.02
        assert np.ptp(np.rad2deg(np.arcsin(hand[:, 2, 2]))) > 5


def test_the_path_comes_back_to_where_it_was():
    for seed in range(20):
        positions = trajectory(make_room(seed), 3000, "robot", rate=30)[:, :2, 3]  # 100 s
        direction = np.diff(positions, axis=0)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        later = slice(300, -1)
        near = np.linalg.norm(positions[later] - positions[0], axis=1) < 0.03
        assert (near & (direction[300:] @ direction[0] > 0.99)).any()
        assert np.linalg.norm(positions - positions[0], axis=1).max() > 0.5


def test_the_path_goes_round_the_room():
    for seed in range(100):
        room = make_room(seed)
        x, y = room.path.T
        area = abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
        assert area > 0.2 * np.ptp(x) * np.ptp(y)
        assert (np.abs(room.path).max(0) <= room.half - 0.6).all()


def test_more_frames_only_add_to_fewer():
    few, many = (list(stream(3, frames, WIDTH, HEIGHT, "handheld")) for frames in (4, 9))
    for a, b in zip(few, many, strict=False):
        assert a.rgb.tobytes() == b.rgb.tobytes() and a.depth.tobytes() == b.depth.tobytes()
    long = trajectory(make_room(3), 5000, "handheld")
    np.testing.assert_allclose([frame.T_room_cam for frame in many], long[:9], atol=1e-12)


def test_bad_motion_is_refused_at_once():
    with pytest.raises(ValueError, match="robot, handheld"):
        stream(0, 2, kind="flying")
    with pytest.raises(ValueError, match="rate must be from"):
        stream(0, 2, rate=0)


def test_pinhole_has_the_field_of_view_and_the_centre():
    intrinsics = pinhole(320, 240, 90)
    assert intrinsics[0, 0] == pytest.approx(160) and intrinsics[1, 1] == intrinsics[0, 0]
    assert tuple(intrinsics[:2, 2]) == (159.5, 119.5)


def test_textures_tile_and_fade_to_their_mean():
    index = torch.arange(len(TEXTURES), dtype=torch.int32)[:, None].expand(-1, 100)
    u, v = torch.rand(2, len(TEXTURES), 100, generator=torch.Generator().manual_seed(0))
    small, whole = torch.full_like(u, 1e-3), torch.full_like(u, 3.0)
    torch.testing.assert_close(sample(index, u, v, small), sample(index, u + 2, v - 3, small), atol=0.05, rtol=0)
    spread = sample(index, u, v, small).std(1)
    assert (spread > 0.05).all()
    assert (sample(index, u, v, whole).std(1) < 0.02 * spread).all()


def test_folder_holds_the_sequence(tmp_path):
    frames = list(stream(2, 3, WIDTH, HEIGHT))
    write_folder(frames, tmp_path / "new" / "room")
    folder = tmp_path / "new" / "room"
    poses = np.loadtxt(folder / "groundtruth.txt")
    assert poses.shape == (3, 8)
    np.testing.assert_allclose(np.loadtxt(folder / "intrinsics.txt"), K)
    for i, frame in enumerate(frames):
        rgb = cv2.imread(str(folder / "rgb" / f"{i:06d}.png"))[..., ::-1]
        depth = cv2.imread(str(folder / "depth" / f"{i:06d}.png"), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(rgb, frame.rgb) and depth.dtype == np.uint16
        assert np.abs(depth / 1000 - frame.depth).max() < 0.00051
        assert poses[i, 0] * 1e9 == pytest.approx(frame.stamp_ns)
        np.testing.assert_allclose(poses[i, 1:4], frame.T_room_cam[:3, 3], atol=1e-8)
        np.testing.assert_allclose(rotation_matrix(poses[i, 4:]), frame.T_room_cam[:3, :3], atol=1e-8)


def test_a_folder_in_use_is_refused_before_anything_is_rendered(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty"):
        write_folder((pytest.fail("rendered") for _ in range(1)), tmp_path)


def test_command_writes_a_sequence(tmp_path, capsys):
    arguments = ["rooms", "--seed", "3", "--frames", "2", "--width", "32", "--height", "24", "--output"]
    assert main([*arguments, str(tmp_path / "new")]) == 0
    assert len(list((tmp_path / "new" / "rgb").iterdir())) == 2
    assert main([*arguments, str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "none"), "--frames", "0"]) == 2


@pytest.fixture(scope="module")
def frames():
    return list(stream(2, 3, WIDTH, HEIGHT, "handheld"))


@pytest.fixture(scope="module")
def bag(frames, tmp_path_factory):
    path = tmp_path_factory.mktemp("rooms") / "new" / "bag"
    write_bag(frames, path)
    return path


def test_bag_plays_as_the_camera_recorded_it(bag, frames):
    with open_source(bag) as source:
        usable = Images(source)
        images = list(usable)
    assert source.length == len(images) == 3 and not usable.skipped
    for image, frame in zip(images, frames, strict=True):
        assert np.array_equal(image.image, frame.rgb) and np.array_equal(image.intrinsics, frame.intrinsics)
        assert (image.stamp_ns, image.frame_id) == (frame.stamp_ns, "camera")


def test_bag_holds_the_true_depth_and_pose(bag, frames):
    found: dict[str, list] = {topic: [] for topic in TOPICS}
    with AnyReader([bag]) as reader:
        for connection, time, data in reader.messages():
            found[connection.topic].append((time, reader.deserialize(data, connection.msgtype)))
    for i, frame in enumerate(frames):
        assert {found[topic][i][0] for topic in TOPICS} == {frame.stamp_ns}
        depth, info, tf = (found[topic][i][1] for topic in ("/camera/depth/image", "/camera/depth/camera_info", "/tf"))
        (stamped,) = tf.transforms
        assert depth.encoding == "32FC1" and depth.header == info.header and stamp_ns(depth.header) == frame.stamp_ns
        assert np.array_equal(depth.data.view("<f4").reshape(HEIGHT, WIDTH), frame.depth)
        assert np.array_equal(decode_intrinsics(info, frame.depth.shape), frame.intrinsics)
        assert (stamped.header.frame_id, stamped.child_frame_id) == ("room", "camera")
        t, q = stamped.transform.translation, stamped.transform.rotation
        np.testing.assert_allclose((t.x, t.y, t.z), frame.T_room_cam[:3, 3])
        rotation = rotation_matrix(np.array([q.x, q.y, q.z, q.w]))
        np.testing.assert_allclose(rotation, frame.T_room_cam[:3, :3], atol=1e-9)
    assert {len(messages) for messages in found.values()} == {3}


@pytest.mark.parametrize("format_", ["folder", "bag"])
def test_command_says_how_a_replay_has_the_same_stamps(tmp_path, capsys, format_):
    size = ["--frames", "3", "--width", "56", "--height", "42", "--shape", "corridor"]
    assert main(["rooms", *size, "--rate", "4", "--format", format_, "--output", str(tmp_path / "a room")]) == 0
    _, command = capsys.readouterr().out.strip().split(": xsvggt ")
    assert main([*shlex.split(command)[:-1], str(tmp_path / "out")]) == 0
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "out" / "trajectory.txt")[:, 0], [0, 0.25, 0.5])


def test_command_makes_a_room_of_the_shape_that_is_asked_for(tmp_path):
    size = ["--frames", "1", "--width", "56", "--height", "42", "--seed", "3"]
    for shape in SHAPES:
        assert main(["rooms", *size, "--shape", shape, "--output", str(tmp_path / shape)]) == 0
        (truth,) = stream(3, 1, 56, 42, shape=shape)
        written = cv2.imread(str(tmp_path / shape / "rgb" / "000000.png"))
        np.testing.assert_array_equal(written[..., ::-1], truth.rgb)


def test_command_writes_a_bag_that_replays(tmp_path, capsys):
    bag = tmp_path / "bag"
    arguments = ["rooms", "--format", "bag", "--frames", "2", "--width", "56", "--height", "42", "--output", str(bag)]
    assert main(arguments) == 0
    assert main(["replay", str(bag), "--output", str(tmp_path / "replay")]) == 0
    assert "2 frames, 0 images skipped" in capsys.readouterr().out
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
