# SPDX-License-Identifier: Apache-2.0
"""Processes that end with the one that has started them."""

import os
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from threading import Thread


def end_with_parent() -> None:
    """Call it in a process that multiprocessing has started: it ends with its parent, also where that is killed."""
    parent = parent_process()
    assert parent is not None
    Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
