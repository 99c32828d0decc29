# SPDX-License-Identifier: Apache-2.0
"""Workers on Ray, which share recordings out among them: whoever is free takes the next.

Ray (https://docs.ray.io) places them on machines, by what they say they take, and tells when one is lost.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from threading import Event
from typing import Any

import torch

from xsvggt_ros.batch.recordings import Job, Record, read_record, remove
from xsvggt_ros.batch.summary import readable
from xsvggt_ros.batch.worker import Cause, Failure, Progress, Worker
from xsvggt_ros.config import NodeConfig
from xsvggt_ros.memory import MIB
from xsvggt_ros.model.loading import weight_nbytes, without_numbers
from xsvggt_ros.replay.sources import Reading
from xsvggt_ros.segments import SegmentedStream
from xsvggt_ros.threads import POLICY

log = logging.getLogger(__name__)

# Of a Ray that is only for this command: it tells nobody of its use, listens on loopback alone (that is the variable of
# other systems, obeyed on each), and only to who has the token.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}
THREADS = "OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"  # how many a worker has, of torch and of OpenCV
OBJECTS = 80 * MIB  # of Ray's store of objects, which takes no less: what workers say goes without it
FOLDERS = "/tmp"  # for its sockets, whose names must be short
PROCESS = 1024 * MIB  # of a worker without weights and cache: libraries, images on their way, the clouds of a frame
TRIES = 2  # of a recording
MOST_FAILED_STARTS = 3  # of workers, one after the other
POLL_S = 0.5  # in which Ctrl-C is noticed


@dataclass(frozen=True)
class Again:
    """A recording is tried again, in another process."""

    reason: str


def check_installed() -> None:
    """Raises ValueError, with the remedy, where Ray is not; it is not imported before `connected` does."""
    if find_spec("ray") is None:
        raise ValueError("batch needs Ray: pip install '.[batch]' in this package's source")


def _check_command_line() -> None:
    """Ray notes it, and takes no bytes that are no UTF-8."""
    for word in sys.argv:
        if (name := readable(word)) != word:
            raise ValueError(f"Ray takes no name that is not UTF-8: rename {name}, or give a link to it")


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, at an address or, without one, of this command's own, of which nothing is left afterwards.

    Raises OSError or ValueError, with the reason, where that is not to be had.
    """
    _check_command_line()
    with ExitStack() as stack:
        where: dict[str, Any] = {"address": address}
        if address is None:
            os.environ.update(ENVIRONMENT, RAY_AUTH_TOKEN=secrets.token_hex(32))  # read as Ray is imported
            folder = mkdtemp(prefix="xsvggt_ray_", dir=FOLDERS)
            stack.callback(remove, Path(FOLDERS), Path(folder).name)
            where = dict(address="local", include_dashboard=False, object_store_memory=OBJECTS, _temp_dir=folder)
            where["num_gpus"] = torch.cuda.device_count()
        elif "://" in address:
            raise ValueError(f"{address}: give HOST:PORT of Ray's head, or auto, on a machine that is part of Ray")
        import ray

        stack.callback(ray.shutdown)
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
        except RuntimeError as error:  # another version, or this machine is no part of it
            raise ValueError(f"Ray cannot be used: {error}") from error
        finally:
            signal.signal(signal.SIGTERM, before)  # Ray has set one of its own
        yield ray


def share_of(config: NodeConfig, nodes: list[dict], count: int | None, threads: int) -> dict[str, float]:
    """What each of `count` workers takes of a machine, by Ray's names.

    A GPU each where there are any, unless the device is to be the CPU; where there are more workers than GPUs each has
    the same part of one. memory: bytes. Raises ValueError where a GPU is asked for that Ray does not have.
    """
    device = config.stream.device
    gpus = sum(node["Resources"].get("GPU", 0) for node in nodes)
    if device.startswith("cuda:"):
        raise ValueError(f"Ray gives each worker its GPU: set device to cuda instead of {device}")
    if device == "cuda" and not gpus:
        raise ValueError("Ray has no GPU: set device to cpu")
    on_gpu = device != "cpu" and gpus > 0
    share = {"CPU": threads, "memory": PROCESS + model_nbytes(config, torch.device("cuda" if on_gpu else "cpu"))}
    return share | ({"GPU": 1 / max(1, math.ceil((count or 0) / gpus))} if on_gpu else {})


def model_nbytes(config: NodeConfig, device: torch.device) -> int:
    """Of weights, and of caches that are full."""
    stream = SegmentedStream(config.stream, without_numbers(config.stream.model))
    return weight_nbytes(config.stream, device) + stream.most_nbytes()


def room(nodes: list[dict], share: dict[str, float]) -> int:
    """How many workers these machines have room for. Raises ValueError if for none."""
    fitting = [min(int(node["Resources"].get(name, 0) / need + 1e-6) for name, need in share.items()) for node in nodes]
    if not sum(fitting):
        needed = f"{share['CPU']} cores, {share['memory'] / MIB / 1024:.1f} GiB" + ", a GPU" * ("GPU" in share)
        raise ValueError(f"no machine of Ray has what a worker takes ({needed}): lower --threads, or add memory")
    return sum(fitting)


def employed(
    ray: Any,
    jobs: list[Job],
    most: int | None,
    threads: int,
    config: NodeConfig,
    reading: Reading,
    output: Path,
) -> tuple[Fleet, int]:
    """A fleet for these recordings, and of how many workers: `most`, as far as there is room for them.

    Raises ValueError where there is room for none.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    share = share_of(config, nodes, most, threads)
    actor = ray.remote(Worker).options(
        num_cpus=threads,
        num_gpus=share.get("GPU", 0),
        memory=share["memory"],
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": {POLICY: os.environ[POLICY], **dict.fromkeys(THREADS, str(threads))}},
    )
    fleet = Fleet(ray, lambda: actor.remote(config, reading, output, threads), output, jobs)
    return fleet, min(room(nodes, share), len(jobs), most or len(jobs))


class Fleet:
    """Some workers, and the recordings that wait for them.

    new_worker: starts one; output: where they write.
    """

    def __init__(self, ray: Any, new_worker: Callable[[], Any], output: Path, jobs: list[Job]) -> None:
        self._ray = ray
        self._new_worker = new_worker
        self._output = output
        self._waiting = deque(jobs)
        self._tries: Counter[str] = Counter()
        self._calls: dict[Any, tuple[Any, Job | None]] = {}  # under way; a worker that starts has no job yet
        self._failed_starts = 0  # in a row

    def run(self, count: int, stop: Event) -> Iterator[tuple[Job, Progress | Again | Record | Failure]]:
        """How far recordings are, now and then, and what becomes of each, until none is left or `stop` is set.

        A full disk ends it too, once the recordings under way are through. Raises ValueError where the settings are
        to be blamed, and OSError where workers cannot be started.
        """
        for _ in range(count):
            self._start()
        try:
            while self._busy and not stop.is_set():
                spoken, _ = self._ray.wait(list(self._calls), timeout=POLL_S)
                for call in spoken:
                    yield from self._heard(call)
        finally:
            for worker, _ in self._calls.values():
                self._ray.kill(worker)

    @property
    def _busy(self) -> bool:
        """A worker may start for which Ray has no room any more: it is not waited for."""
        return bool(self._waiting) or any(job for _, job in self._calls.values())

    def _start(self) -> None:
        worker = self._new_worker()
        self._calls[worker.ready.remote()] = worker, None

    def _heard(self, call: Any) -> Iterator[tuple[Job, Progress | Again | Record | Failure]]:
        """What a worker says, once it does."""
        worker, job = self._calls[call]
        try:
            said = self._ray.get(next(call) if job else call)
        except self._ray.exceptions.RayError as error:
            said = Failure(Cause.PLACE, _why(error, self._ray.exceptions))
        if job and isinstance(said, Progress):
            yield job, said
            return
        del self._calls[call]
        if job:
            settled = self._settled(job, said)
        elif not isinstance(said, Failure):
            self._failed_starts = 0
        if isinstance(said, Failure) and said.cause is Cause.PLACE:
            self._ray.kill(worker)
            if self._waiting and (job or self._may_start(said.reason)):
                self._start()
        elif self._waiting:
            self._employ(worker, self._waiting.popleft())
        else:
            self._ray.kill(worker)  # what it takes is for others
        if job:
            yield job, settled

    def _employ(self, worker: Any, job: Job) -> None:
        call = worker.replay.options(num_returns="streaming").remote(job, self._tries[job.name])
        self._calls[call] = worker, job

    def _may_start(self, reason: str) -> bool:
        """Whether another worker, after one that ended as it started. Raises OSError if none is left that works."""
        self._failed_starts += 1
        if self._failed_starts < MOST_FAILED_STARTS:
            return True
        if not any(job for _, job in self._calls.values()):
            raise OSError(f"workers end as they start: {reason}")
        log.warning("workers end as they start (%s): the others go on", reason)
        return False

    def _settled(self, job: Job, said: Record | Failure) -> Again | Record | Failure:
        """What becomes of a recording after a worker's last word on it."""
        if isinstance(said, Record):
            return said
        if said.cause is Cause.SETTINGS:
            raise ValueError(said.reason)
        if said.cause is Cause.DISK:
            self._waiting.clear()
        if said.cause is Cause.PLACE:
            if record := read_record(self._output / job.name):  # all but the word that it is done
                return record
            self._tries[job.name] += 1
            if self._tries[job.name] < TRIES:
                self._waiting.append(job)
                return Again(said.reason)
        return said


def _why(error: Exception, kinds: Any) -> str:
    """In a line."""
    if isinstance(error, kinds.RayTaskError):
        return f"{type(error.cause).__name__}: {error.cause}"
    if isinstance(error, kinds.OutOfMemoryError):
        return "its process was ended, as the machine had no memory left: lower --workers"
    return "its process ended (killed, perhaps for the memory it took, or crashed)"
