# SPDX-License-Identifier: Apache-2.0
"""Whose page it is: a node, or the command `xsvggt live`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.settings import Setting
from xsvggt_ros.status import Status

PAUSE, CONTINUE = "Pause", "Continue"


@dataclass(frozen=True)
class Owner:
    """What a page shows beside frames, and what may be asked of it.

    `status`, `config`, `paused` and `recording` answer in any thread, at once. `change` and the actions are for the
    owner's own thread, which `run` hands them to, without waiting: its future has what there is to say, or the
    ValueError or OSError that says why not.
    """

    status: Callable[[], Status]
    config: Callable[[], NodeConfig]  # in force
    settings: Sequence[Setting]  # of `for_page`
    change: Callable[[dict[str, Any]], str]  # of settings, all of them or none
    actions: Mapping[str, Callable[[], str]]  # by what stands on their buttons
    run: Callable[[Callable[[], str]], Future[str]]
    paused: Callable[[], str] = str  # what becomes of images meanwhile; empty: it is not paused
    recording: Callable[[], str] = str  # how much of it is played; empty: there is none

    def buttons(self) -> tuple[str, ...]:
        """Of the actions those that there is a use for now."""
        needless = PAUSE if self.paused() else CONTINUE
        return tuple(action for action in self.actions if action != needless)


def for_page(settings: Iterable[Setting]) -> list[Setting]:
    """Those that may change while the stream runs, but for where it writes: a browser would choose the place."""
    return [setting for setting in settings if setting.live and setting.name != "loop.folder"]


def done(action: Callable[[], str], future: Future[str]) -> None:
    """Does it, and tells the future what came of it."""
    try:
        future.set_result(action())
    except Exception as error:  # the page says it; whose thread this is goes on
        future.set_exception(error)
