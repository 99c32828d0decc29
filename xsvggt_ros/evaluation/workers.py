# SPDX-License-Identifier: Apache-2.0
"""Streams of synthetic rooms, one after the other in processes of a thread each."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import cv2
import torch

from xsvggt_ros.config import StreamConfig
from xsvggt_ros.model import StreamVGGT, load_model
from xsvggt_ros.model.loading import open_device
from xsvggt_ros.processes import end_with_parent

T = TypeVar("T")

_model: StreamVGGT  # of this worker


def in_processes(
    work: Callable[[int, StreamVGGT], T], seeds: list[int], config: StreamConfig, workers: int | None
) -> Iterator[tuple[int, T]]:
    """(seed, work(seed, model)) as they get done; workers: as many as there are cores, on a GPU 1, where None."""
    count = workers or (torch.get_num_threads() if open_device(config.device).type == "cpu" else 1)
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start_worker, (config,))
    try:
        futures = {pool.submit(_work, work, seed): seed for seed in seeds}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in multiprocessing.active_children():  # one may be in the middle of a stream
            worker.terminate()


def _start_worker(config: StreamConfig) -> None:
    global _model
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _model = load_model(config)


def _work(work: Callable[[int, StreamVGGT], T], seed: int) -> T:
    return work(seed, _model)
