# SPDX-License-Identifier: Apache-2.0
"""Processes that end with the one that has started them."""

import os
from multiprocessing import parent_process
from threading import Thread


def end_with_parent() -> None:
    """Call it in a process that multiprocessing has started: it ends with its parent, also where that is killed."""
    Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
