# SPDX-License-Identifier: Apache-2.0
"""A page that takes frames: nothing of it holds whoever gives them."""

import time
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("viser", reason="the extra `live` is not installed")

from scipy.spatial.transform import Rotation
from support.frames import frame, place
from support.live_page import client, look, wait_until

from xsvggt_ros.config import NodeConfig, ViewerConfig
from xsvggt_ros.geometry import rigid
from xsvggt_ros.live import viewer as module
from xsvggt_ros.live.owner import Owner, done
from xsvggt_ros.live.panel import DOWNLOADS, VIEWS, cloud_file, coloured, way_file
from xsvggt_ros.live.scene import BLOCK
from xsvggt_ros.live.server import close_server
from xsvggt_ros.live.viewer import Viewer, new_file
from xsvggt_ros.pictures import CONFIDENCE_COLOURS, DEPTH_COLOURS
from xsvggt_ros.status import Status, StepStatus

SIZE = (60, 80)
STEP = StepStatus(seconds={"step": 0.0})


class Log:
    def __init__(self):
        self.lines = []

    def error(self, line):
        self.lines.append(line)

    warning = info = error


def owner(**page):
    def run(action):
        future = Future()
        done(action, future)
        return future

    config = NodeConfig(page=ViewerConfig(**({"port": 0, "refresh": 30.0} | page)))
    return Owner(Status, lambda: config, [], lambda changes: "", {}, run)


@contextmanager
def page(record=None, **settings):
    log = Log()
    with new_file(record) if record else nullcontext() as file:
        viewer = Viewer(owner(**settings), log, file)
        try:
            yield viewer, log
        finally:
            viewer.close()


def frames(count, first=0):
    return [place(frame(index, SIZE, status=STEP), stamp_ns=index) for index in range(first, first + count)]


def test_a_port_that_is_taken_is_said_beside_the_address():
    with page() as (viewer, _):
        assert viewer.where == f"live at {viewer.address}"  # any port was asked for
        port = viewer._server.get_port()
        with page(port=port) as (other, _):
            assert other.where == f"live at {other.address} ({port} is taken)"


def test_frames_become_a_cloud_a_way_and_files():
    with page() as (viewer, log):
        for placed in frames(5):
            viewer.show(placed)
            wait_until(lambda: viewer._newest is None)
        wait_until(lambda: len(viewer._scene.way) == 5)
        assert not log.lines
        name, ply = cloud_file(viewer._scene, viewer._owner)
        assert name == "cloud.ply" and f"element vertex {len(viewer._scene.cloud.points):012d}".encode() in ply
        name, text = way_file(viewer._scene, viewer._owner)
        assert name == "trajectory.txt" and len(text.splitlines()) == 6


def test_the_page_has_the_colours_of_reports_and_notebooks():
    slope = np.tile(np.linspace(1, 9, SIZE[1], dtype=np.float32), (SIZE[0], 1))
    shown = coloured(slope, DEPTH_COLOURS)
    assert np.array_equal(shown, np.asarray(frame(size=SIZE, depth=slope, status=STEP).depth_image()))
    near, far = shown[0, 8].astype(int), shown[0, -8].astype(int)
    assert near[2] > near[0] and far[0] > far[2]
    unsure, sure = (coloured(slope, CONFIDENCE_COLOURS)[0, column].sum(dtype=int) for column in (0, -1))
    assert sure > 1.5 * unsure


def test_giving_frames_waits_for_nothing_and_those_passed_over_are_counted(monkeypatch):
    with page() as (viewer, _):
        monkeypatch.setattr(viewer._scene, "add", lambda *_: time.sleep(0.5))
        given = frames(200)
        started = time.monotonic()
        for placed in given:
            viewer.show(placed)
        assert time.monotonic() - started < 0.4  # shorter than one frame takes to be drawn
    assert viewer._passed_over >= 197


def test_a_browser_that_reads_nothing_holds_nobody_and_nothing_piles_up():
    with page() as (viewer, log), client(viewer.address) as stuck:
        look(stuck)
        wait_until(lambda: viewer.watched)
        buffer = viewer._server._websock_server.get_message_buffer()
        sizes = []
        for placed in frames(60):
            viewer.show(placed)
            wait_until(lambda: viewer._newest is None)
            sizes.append(sum(getattr(m, "props", None) is not None for m in buffer.message_from_id.values()))
        assert max(sizes[30:]) <= max(sizes[:30]) + len(viewer._scene.cloud.points) // 2048
        assert not log.lines
        assert stuck.recv(timeout=10)


def test_without_a_browser_the_cloud_grows_and_nothing_is_sent():
    with page() as (viewer, _):
        before = viewer._server._websock_server.get_message_buffer().message_counter
        viewer.show(frames(1)[0])
        wait_until(lambda: len(viewer._scene.cloud.points))
        assert not viewer.watched
        assert viewer._server._websock_server.get_message_buffer().message_counter <= before + 2  # where to look from


def test_a_new_world_begins_with_nothing():
    with page() as (viewer, _):
        for placed in [*frames(3), *frames(1)]:
            viewer.show(placed)
            wait_until(lambda: viewer._newest is None)
        wait_until(lambda: len(viewer._scene.way) == 1)


def test_a_new_world_is_not_missed_with_its_first_frame():
    with page(refresh=1.0) as (viewer, _):
        viewer.show(frames(1, 1)[0])
        wait_until(lambda: len(viewer._scene.way) == 1)
        for placed in frames(3):  # of another world, in less than a second: the first is passed over
            viewer.show(placed)
        wait_until(lambda: viewer._newest is None)
        wait_until(lambda: viewer._scene.way[-1].stamp_ns == 2)
        assert len(viewer._scene.way) == 1 and viewer._passed_over == 2


def test_a_world_is_looked_at_from_where_it_begins():
    first, later = frames(2)
    T_odom_cam = rigid(Rotation.from_euler("z", 90, degrees=True).as_matrix(), [10.0, 20, 3]) @ first.T_odom_cam
    with page() as (viewer, _):
        looks = []
        for placed in (first, replace(first, T_odom_cam=T_odom_cam), later):
            viewer._scene.add(placed, viewer._owner.config())
            camera = viewer._server.initial_camera
            looks.append((np.array(camera.position), np.array(camera.look_at)))
    (eye, target), (moved_eye, moved_target), after = looks
    d = np.median(first.frame.depth)
    assert np.allclose(eye, [-2.5 * d, 0, 3.2 * d]) and np.allclose(target, [0.8 * d, -0.8 * d, 0])
    assert np.allclose(moved_eye, [10, 20 - 2.5 * d, 3 + 3.2 * d])
    assert np.allclose(moved_target, [10 + 0.8 * d, 20 + 0.8 * d, 3])
    assert np.array_equal(after, looks[1])


@pytest.mark.parametrize("aspect", [0.5, 1.6])
@pytest.mark.parametrize("view", VIEWS)
def test_the_whole_cloud_comes_into_view(view, aspect):
    away = np.array([3.0, 4.0, 0.0])
    camera = SimpleNamespace(position=away, look_at=np.zeros(3), fov=1.0, aspect=aspect)
    camera.client = SimpleNamespace(atomic=nullcontext)
    browser = SimpleNamespace(camera=camera)
    with page() as (viewer, log):
        viewer._panel._wanted.append((browser, view))  # before there is a cloud
        wait_until(lambda: not viewer._panel._wanted)
        for placed in frames(3):
            viewer.show(placed)
            wait_until(lambda: viewer._newest is None)
        wait_until(lambda: len(viewer._scene.way) == 3)
        assert camera.position is away
        viewer._panel._wanted.append((browser, view))
        wait_until(lambda: camera.look_at.any())
        looks = (camera.look_at - camera.position) / np.linalg.norm(camera.look_at - camera.position)
        assert np.allclose(looks, [0, 0, -1] if view == "From above" else [-0.6, -0.8, 0])
        seen = viewer._scene.cloud.points - camera.position
        ahead = seen @ looks
        off = np.linalg.norm(seen - ahead[:, None] * looks, axis=1)
        assert np.mean(off / ahead < min(1, aspect) * np.tan(0.5)) > 0.9
        camera.look_at = camera.position  # looks nowhere
        camera.fov = 0.0
        viewer._panel._wanted.append((browser, view))
        wait_until(lambda: f"refused: {view}" in viewer._panel._said.content)
    assert not log.lines


def test_the_chart_counts_frames_of_the_world_as_the_stream_does():
    with page() as (viewer, _):
        panel = viewer._panel
        for placed in frames(2) + frames(1, 7):
            panel.draw(placed)
        assert panel._chart.data[0].tolist() == [0, 1, 7]
        panel.draw(frames(1)[0])  # of another world
        assert panel._chart.data[0].tolist() == [0]
        assert "0 browsers" in panel._figures.content


def test_what_stands_still_is_not_sent_again():
    with page() as (viewer, _):
        scene, config = viewer._scene, viewer._owner.config()
        (placed,) = frames(1)
        scene.add(placed, config)
        scene.draw()
        everything = scene.sent
        scene.draw()
        assert scene.sent == everything > scene.cloud.points.nbytes + scene.cloud.colors.nbytes
        assert len(scene.cloud.points) % BLOCK > 100  # the last block is not full
        scene.add(replace(placed, starts=False), config)  # a pose, and no new point
        scene.draw()
        image = len(scene._scene.get_handle_by_name("/camera")._image_data)
        assert image < scene.sent - everything < image + 1000


def test_frames_without_depth_move_the_camera_only():
    with page() as (viewer, log):
        nothing = np.full(SIZE, np.nan, np.float32)
        for index in range(2):
            seen = frame(index, SIZE, depth=nothing, confidence=nothing, status=replace(STEP, dense=False))
            viewer.show(place(seen))
            wait_until(lambda: viewer._newest is None)
        wait_until(lambda: len(viewer._scene.way) == 2)
        assert len(viewer._scene.cloud.points) == 0
    assert not log.lines


def test_the_way_is_thinned_and_keeps_its_ends(monkeypatch):
    monkeypatch.setattr("xsvggt_ros.live.scene.MOST_POSES", 8)
    with page() as (viewer, _):
        scene, config = viewer._scene, viewer._owner.config()
        for placed in frames(100):
            scene.add(placed, config)
            assert len(scene.way) <= 8
        stamps = [pose.stamp_ns for pose in scene.way]
        assert stamps[0] == 0 and stamps[-1] > 80
        assert len(set(np.diff(stamps))) == 1


def test_what_fails_in_drawing_is_said_and_the_stream_goes_on(monkeypatch):
    with page() as (viewer, log):
        monkeypatch.setattr(viewer._scene, "add", lambda *_: 1 / 0)
        viewer.show(frames(1)[0])
        wait_until(lambda: log.lines)
        viewer.show(frames(1)[0])
        monkeypatch.setattr(viewer._server, "get_clients", lambda: {0: None})
        wait_until(lambda: not viewer.watched)
    assert "the live page stands still" in log.lines[0] and "ZeroDivisionError" in log.lines[0]


@pytest.mark.parametrize("part", ["Panel", "Recording"])
def test_what_fails_at_the_start_leaves_no_server(monkeypatch, tmp_path, part):
    closed = []
    monkeypatch.setattr(module, part, lambda *_: 1 / 0)
    monkeypatch.setattr(module, "close_server", lambda server: (closed.append(server), close_server(server)))
    path = tmp_path / "scene.html"
    with pytest.raises(ZeroDivisionError), page(path):
        pass
    assert closed and not path.exists()


def test_a_download_that_cannot_be_made_is_said_and_the_page_goes_on(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(DOWNLOADS, "Cloud", full)
    with page() as (viewer, log):
        viewer.show(frames(1)[0])
        wait_until(lambda: viewer._scene.way)
        viewer._panel._wanted.append((None, "Cloud"))
        wait_until(lambda: "refused: Cloud" in viewer._panel._said.content)
        assert "No space left on device" in viewer._panel._said.content
        viewer.show(frames(1, 1)[0])
        wait_until(lambda: len(viewer._scene.way) == 2)
    assert not log.lines


def test_a_recording_is_a_page_of_its_own_and_never_overwrites(tmp_path):
    path = tmp_path / "scene.html"
    with page(path) as (viewer, _):
        assert viewer.watched
        for placed in frames(3):
            viewer.show(placed)
            wait_until(lambda: viewer._newest is None)
    text = path.read_text()
    assert text.startswith("<!doctype html>") and "__VISER_EMBED_DATA__" in text
    for bad in (path, tmp_path / "no" / "folder.html"):
        with pytest.raises(ValueError, match=r"cannot record to .*choose another file"):
            new_file(bad).__enter__()
    assert path.read_text() == text


def test_a_recording_ends_where_a_browser_could_not_open_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RECORDED_BYTES", 100)
    path = tmp_path / "scene.html"
    with page(path) as (viewer, log):
        viewer.show(frames(1)[0])
        wait_until(lambda: log.lines)
        viewer.show(frames(1, 1)[0])
        wait_until(lambda: viewer._newest is None)
        kept = len(viewer._recording._serializer._messages)
        viewer.show(frames(1, 2)[0])
        wait_until(lambda: len(viewer._scene.way) == 3)
        assert len(viewer._recording._serializer._messages) == kept
    assert len(log.lines) == 1 and "ends here" in log.lines[0] and "__VISER_EMBED_DATA__" in path.read_text()
