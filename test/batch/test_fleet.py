# SPDX-License-Identifier: Apache-2.0
"""How recordings are shared out, with workers that are functions of this process; test_batch.py has real ones."""

import sys
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from xsvggt_ros.batch.fleet import (
    MOST_FAILED_STARTS,
    PROCESS,
    Again,
    Fleet,
    connected,
    model_nbytes,
    room,
    share_of,
)
from xsvggt_ros.batch.recordings import Job, Record
from xsvggt_ros.batch.worker import Cause, Failure, Progress
from xsvggt_ros.config import NodeConfig
from xsvggt_ros.memory import MIB
from xsvggt_ros.settings import changed


class Lost(Exception):
    """What Ray raises for a process that is gone."""


class Told(Exception):
    """What Ray raises for an exception in a worker."""

    cause = KeyError("x")


class Ray:
    """Calls are iterators; a worker that is killed says nothing more."""

    exceptions = SimpleNamespace(RayError=(Lost, Told), RayTaskError=Told, OutOfMemoryError=())

    def __init__(self):
        self.killed = []

    def wait(self, calls, timeout):
        return [call for call in calls if call.answers][:1], []

    def get(self, said):
        said = said() if isinstance(said, Call) else said
        if isinstance(said, type):
            raise said
        return said

    def kill(self, worker):
        self.killed.append(worker)


class Call:
    """Of a worker's method; it waits for ever where it has no answers."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self):
        return self.answers.pop(0)

    __next__ = __call__


class Worker:
    """starts: what `ready` gives, of all workers; replays: {name: what each try at it says}."""

    def __init__(self, starts, replays):
        self.ready = SimpleNamespace(remote=lambda: Call(*starts.pop(0)) if starts else Call(None))
        replay = SimpleNamespace(remote=lambda job, attempt: Call(*replays[job.name][attempt]))
        self.replay = SimpleNamespace(options=lambda num_returns: replay)


ONE, TWO, THREE = (Progress(frames, 3) for frames in (1, 2, 3))


def record(name):
    return Record(name, {}, 3, 0, 1, 1.0, 1000, 1, [])


def failure(cause):
    return Failure(cause, f"{cause.name} fails")


def run(tmp_path, replays, count=1, starts=()):
    """(name, event) of all that happens, and the killed workers."""
    ray, starts = Ray(), [*starts]
    jobs = [Job(name, Path(name)) for name in replays]
    fleet = Fleet(ray, lambda: Worker(starts, replays), tmp_path, jobs)
    return [(job.name, event) for job, event in fleet.run(count, Event())], ray.killed


def test_each_recording_goes_to_the_next_free_worker(tmp_path):
    events, killed = run(tmp_path, {name: [[ONE, TWO, record(name)]] for name in "abc"}, count=2)
    assert [event for event in events if event[1] in (ONE, TWO)] == [(name, n) for name in "abc" for n in (ONE, TWO)]
    assert [event[1] for event in events if isinstance(event[1], Record)] == [record(name) for name in "abc"]
    assert len(killed) == 2


def test_its_own_error_is_final(tmp_path):
    events, killed = run(tmp_path, {"bad": [[failure(Cause.RECORDING)]], "good": [[record("good")]]})
    assert events == [("bad", failure(Cause.RECORDING)), ("good", record("good"))]
    assert len(killed) == 1  # at the end: it was not the worker's fault


@pytest.mark.parametrize("end", [Lost, Told, failure(Cause.PLACE)])
def test_a_lost_worker_is_replaced_and_the_recording_tried_once_more(tmp_path, end):
    replays = {"once": [[ONE, end], [record("once")]], "twice": [[end], [end], ["never"]], "good": [[record("good")]]}
    events, killed = run(tmp_path, replays)
    kinds = [(name, type(event)) for name, event in events if not isinstance(event, Progress)]
    assert kinds == [("once", Again), ("twice", Again), ("good", Record), ("once", Record), ("twice", Failure)]
    assert len(killed) == len(set(map(id, killed))) == 3
    reasons = {event.reason for _, event in events if isinstance(event, Failure | Again)}
    (reason,) = reasons
    assert {Lost: "its process ended", Told: "KeyError: 'x'"}.get(end, "PLACE fails") in reason


def test_a_worker_that_is_lost_after_its_work_has_done_it(tmp_path):
    (tmp_path / "a").mkdir()
    record("a").write(tmp_path / "a")
    events, _ = run(tmp_path, {"a": [[Lost]], "b": [[record("b")]]})
    assert events == [("a", record("a")), ("b", record("b"))]


def test_after_a_full_disk_no_more_is_begun(tmp_path):
    replays = {"a": [[failure(Cause.DISK)]], "b": [[ONE, TWO, THREE, record("b")]], "c": [[record("c")]]}
    events, killed = run(tmp_path, replays, count=2)
    ends = [event for event in events if not isinstance(event[1], Progress)]
    assert ends == [("a", failure(Cause.DISK)), ("b", record("b"))]
    assert len(killed) == 2


def test_settings_that_are_to_blame_end_all(tmp_path):
    with pytest.raises(ValueError, match="SETTINGS fails"):
        run(tmp_path, {"a": [[failure(Cause.SETTINGS)]], "b": [[record("b")]]})


def test_workers_that_do_not_start_are_replaced_but_not_for_ever(tmp_path):
    events, _ = run(tmp_path, {"a": [[record("a")]]}, starts=[[Lost]] * (MOST_FAILED_STARTS - 1))
    assert events == [("a", record("a"))]
    with pytest.raises(OSError, match="workers end as they start: its process ended"):
        run(tmp_path, {"a": [[record("a")]]}, starts=[[Lost]] * MOST_FAILED_STARTS)


def test_where_workers_do_not_start_the_others_go_on(tmp_path, caplog):
    starts = [[None], *[[Lost]] * MOST_FAILED_STARTS]
    events, killed = run(tmp_path, {name: [[record(name)]] for name in "abcdef"}, count=2, starts=starts)
    assert events == [(name, record(name)) for name in "abcdef"]
    assert len(killed) == MOST_FAILED_STARTS + 1
    assert "workers end as they start (its process ended" in caplog.text and "the others go on" in caplog.text


def test_once_the_last_worker_is_lost_where_none_starts_all_ends(tmp_path):
    starts = [[None], *[[Lost]] * (MOST_FAILED_STARTS + 1)]
    replays = {name: [[record(name)]] for name in "abc"} | {"d": [[ONE, Lost], ["never"]], "e": [["never"]]}
    with pytest.raises(OSError, match="workers end as they start: its process ended"):
        run(tmp_path, replays, count=2, starts=starts)


def test_a_worker_for_which_there_is_no_room_is_not_waited_for(tmp_path):
    events, killed = run(tmp_path, {name: [[record(name)]] for name in "ab"}, count=2, starts=[[], [None]])
    assert events == [("a", record("a")), ("b", record("b"))]
    assert len(killed) == 2


def test_it_stops_when_told(tmp_path):
    ray, stop = Ray(), Event()
    replays = {name: [[ONE, record(name)]] for name in "ab"}
    fleet = Fleet(ray, lambda: Worker([], replays), tmp_path, [Job(name, Path(name)) for name in replays])
    for job, event in fleet.run(1, stop):
        assert (job.name, event) == ("a", ONE)
        stop.set()
    assert len(ray.killed) == 1


def nodes(*resources):
    return [{"Resources": dict(zip(("CPU", "GPU", "memory"), each, strict=True))} for each in resources]


class TestShares:
    config = NodeConfig()

    def test_of_processors(self):
        share = share_of(self.config, nodes((8, 0, 2**34)), None, 2)
        assert share.keys() == {"CPU", "memory"} and share["CPU"] == 2
        assert PROCESS + 25 * MIB < share["memory"] < PROCESS + 100 * MIB
        assert room(nodes((8, 0, 2**34), (5, 0, 2**34)), share) == 6
        assert room(nodes((8, 0, 2 * share["memory"])), share) == 2

    @pytest.mark.parametrize(("workers", "each"), [(None, 1), (2, 1), (3, 1 / 2), (4, 1 / 2), (5, 1 / 3)])
    def test_of_gpus_are_equal(self, workers, each):
        there = nodes((16, 2, 2**36))
        share = share_of(self.config, there, workers, 1)
        assert share["GPU"] == pytest.approx(each)
        assert room(there, share) >= (workers or 2)

    def test_of_the_cpu_although_there_are_gpus(self):
        assert "GPU" not in share_of(changed(self.config, {"device": "cpu"}), nodes((16, 2, 2**36)), None, 1)

    def test_that_ray_does_not_have(self):
        with pytest.raises(ValueError, match="Ray has no GPU: set device to cpu"):
            share_of(changed(self.config, {"device": "cuda"}), nodes((16, 0, 2**36)), None, 1)
        with pytest.raises(ValueError, match="set device to cuda instead of cuda:1"):
            share_of(changed(self.config, {"device": "cuda:1"}), nodes((16, 2, 2**36)), None, 1)
        with pytest.raises(ValueError, match=r"no machine of Ray has what a worker takes \(4 cores, 1\.\d GiB\)"):
            room(nodes((2, 0, 2**36)), share_of(self.config, nodes((2, 0, 2**36)), None, 4))

    def test_memory_grows_with_weights_and_cache(self):
        def needed(**values):
            return model_nbytes(changed(self.config, values), torch.device("cpu"))

        full = {"model": "streamvggt", "weights": "random"}
        in_floats, in_8_bits = needed(**full, dtype="float32"), needed(**full, dtype="float32", weight_bits=8)
        assert 4.5 * 2**30 < in_floats < 6 * 2**30
        assert in_8_bits < 0.5 * in_floats
        assert needed(**{"cache.budget_frames": 64.0}) > needed()


def test_a_command_line_that_ray_cannot_note_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["xsvggt", "batch", "room\udcff"])
    with pytest.raises(ValueError, match=r"no name that is not UTF-8: rename room\\udcff, or"), connected(None):
        pass


def test_an_address_of_rays_client_is_refused():
    with (
        pytest.raises(ValueError, match=r"ray://127\.0\.0\.1:10001: give HOST:PORT of Ray's head"),
        connected("ray://127.0.0.1:10001"),
    ):
        pass
