# SPDX-License-Identifier: Apache-2.0
import errno
import fcntl
import re
import shutil

import pytest

from xsvggt_ros.batch import recordings as module
from xsvggt_ros.batch.recordings import LOCK, RECORD, UNFINISHED, Record, output_of_one_batch, plan, settings_of
from xsvggt_ros.config import NodeConfig
from xsvggt_ros.replay.sources import Reading
from xsvggt_ros.settings import changed


def record(recording, **settings):
    return Record(str(recording), settings, 2, 0, 1, 1.0, 1000, 1, [])


@pytest.fixture
def folders(tmp_path):
    """Makes recordings of these names, empty."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"") if path.suffix else path.mkdir(exist_ok=True)
        return [tmp_path / name for name in names]

    return make


@pytest.fixture
def output(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def names(inputs, output):
    jobs, _ = plan(inputs, output, {})
    assert [job.recording for job in jobs] == list(dict.fromkeys(inputs))
    return [job.name for job in jobs]


@pytest.mark.parametrize(
    ("recordings", "expected"),
    [
        (["one", "two.mp4"], ["one", "two"]),
        (["a/room", "b/room", "c/hall"], ["a_room", "b_room", "hall"]),
        (["x/a/room", "y/a/room"], ["x_a_room", "y_a_room"]),
        (["room.mp4", "room"], ["room.mp4", None]),  # None: with more of its path
        (["a/room", "a/room"], ["a_room"[2:]]),  # the same one
        ([".hidden", "summary.csv", "v1.2"], ["hidden", "summary", "v1"]),
    ],
)
def test_folders_are_called_as_recordings_with_as_much_of_the_path_as_tells_them_apart(
    folders, output, recordings, expected
):
    found = names(folders(*recordings), output)
    assert len(set(found)) == len(found) == len(expected)
    assert all(name == wanted or wanted is None for name, wanted in zip(found, expected, strict=True))
    assert not any(name.startswith(".") or "/" in name for name in found)


def test_what_is_in_the_output_folder_already_keeps_its_name(folders, output):
    first, second = folders("a/room", "b/room")
    (output / "room").mkdir()
    record(first).write(output / "room")
    assert names([second], output) == ["b_room"]
    jobs, done = plan([first, second], output, {})
    assert [job.name for job in jobs] == ["b_room"]
    assert done == {"room": record(first)}


def test_done_with_other_settings_is_refused(folders, output):
    (first,) = folders("a")
    (output / "a").mkdir()
    record(first, stride=2, policy="stac").write(output / "a")
    said = re.escape("a was made with other settings (policy: 'stac', now the default, stride: 2, now 3)")
    with pytest.raises(ValueError, match=said):
        plan([first], output, {"stride": 3})
    assert plan([first], output, {"policy": "stac", "stride": 2})[0] == []


def test_settings_that_count_are_those_that_are_not_at_their_default():
    config = changed(NodeConfig(), {"cache.key_bits": 4, "point_stride": NodeConfig().output.point_stride})
    assert settings_of(config, Reading(max_frames=3)) == {"cache.key_bits": 4, "max_frames": 3}
    assert settings_of(NodeConfig(), Reading()) == {}
    assert settings_of(NodeConfig(), Reading(), threads=2) == {"threads": 2}


def test_inputs_that_cannot_be_meant_are_refused(folders, output):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        plan([*folders("a"), output / "nowhere"], output, {})
    (output / "b").mkdir()
    with pytest.raises(ValueError, match="b lies in the output folder"):
        plan([output / "b"], output, {})


def test_a_damaged_record_is_named(folders, output):
    (output / "a").mkdir()
    (output / "a" / RECORD).write_text("{")
    with pytest.raises(ValueError, match=f"a/{RECORD} is not as a batch writes it"):
        plan(folders("a"), output, {})


class TestOutputOfOneBatch:
    def test_what_is_unfinished_is_removed_before_and_after(self, output):
        old, new = (output / UNFINISHED.format(name="room.1", attempt=n) for n in (0, 1))
        other = output / ".git"
        for folder in (old, other):
            (folder / "depth").mkdir(parents=True)
        with output_of_one_batch(output):
            assert not old.exists()
            new.mkdir()
        assert list(output.iterdir()) == [other]

    def test_two_at_a_time_are_refused(self, output):
        with output_of_one_batch(output):
            with pytest.raises(ValueError, match="another batch writes into"), output_of_one_batch(output):
                pytest.fail("both are in")
            with pytest.raises(ValueError, match="another batch writes into"), output_of_one_batch(output):
                pytest.fail("the refused one has let go of the lock")

    def test_one_that_ends_between_open_and_lock_does_not_let_two_in(self, output, monkeypatch):
        flock = fcntl.flock

        def another_ends(file, operation):
            monkeypatch.setattr(module.fcntl, "flock", flock)
            (output / LOCK).unlink()
            flock(file, operation)

        monkeypatch.setattr(module.fcntl, "flock", another_ends)
        with (
            output_of_one_batch(output),
            pytest.raises(ValueError, match="another batch writes into"),
            output_of_one_batch(output),
        ):
            pytest.fail("both are in")

    def test_a_disk_that_knows_no_locks_is_named(self, output, monkeypatch):
        def fail(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(module.fcntl, "flock", fail)
        with (
            pytest.raises(ValueError, match=r"cannot write into .*No locks available; choose another"),
            output_of_one_batch(output),
        ):
            pass

    def test_what_a_process_writes_as_it_ends_is_removed_too(self, output, monkeypatch):
        unfinished = output / UNFINISHED.format(name="room", attempt=0)
        rmtree = shutil.rmtree

        def still_written(path, **options):
            monkeypatch.setattr(module.shutil, "rmtree", rmtree)
            rmtree(path, **options)
            path.mkdir()

        with output_of_one_batch(output):
            unfinished.mkdir()
            monkeypatch.setattr(module.shutil, "rmtree", still_written)
        assert not list(output.iterdir())

    def test_a_folder_that_nothing_was_written_into_is_gone(self, tmp_path):
        with pytest.raises(RuntimeError), output_of_one_batch(tmp_path / "new"):
            raise RuntimeError
        assert not (tmp_path / "new").exists()

    def test_a_file_in_its_place_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with (
            pytest.raises(ValueError, match=r"cannot write into .*file.*choose another"),
            output_of_one_batch(tmp_path / "file"),
        ):
            pass


@pytest.mark.parametrize("inside", [["a/0.jpg", "b/0.jpg"], ["a/x.mcap", "b.mp4"], ["a.mp4", "b.mp4"]])
def test_a_folder_of_recordings_is_refused_before_anything_is_begun(folders, output, inside):
    several = folders(*(f"in/{name}" for name in inside))[0].parents[inside[0].count("/")]
    names = "a, b" if "/" in inside[1] else f"{inside[0].partition('/')[0]}, b.mp4"
    with pytest.raises(ValueError, match=re.escape(f"{several} holds recordings ({names})")):
        plan([several], output, {})
