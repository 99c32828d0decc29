# SPDX-License-Identifier: Apache-2.0
"""The node as the owner of a live page."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.live.owner import CONTINUE, PAUSE, Owner, done, for_page
from xsvggt_ros.ros.worker import Worker
from xsvggt_ros.settings import settings

ACTIONS = {"Reset": "reset", PAUSE: "disable", CONTINUE: "enable", "Save map": "save_map"}  # button -> service


def page_owner(node: Any, worker: Worker) -> Owner:
    """What the page of a StreamNode shows, and may ask for: what services and parameters may, in the node's thread."""

    def run(action: Callable[[], str]) -> Future[str]:
        future: Future[str] = Future()
        node.executor.create_task(done, action, future)
        return future

    return Owner(
        status=worker.status,
        config=lambda: node.settings.config,
        settings=for_page(settings(NodeConfig)),
        change=node.settings.change,
        actions={button: partial(node.ask, service) for button, service in ACTIONS.items()},
        run=run,
        paused=lambda: node.paused,
    )
