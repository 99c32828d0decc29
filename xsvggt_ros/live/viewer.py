# SPDX-License-Identifier: Apache-2.0
"""A live page: takes frames from a stream without holding it, and draws them in a thread of its own."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import IO, Any

from xsvggt_ros.live.owner import Owner
from xsvggt_ros.live.panel import Panel
from xsvggt_ros.live.scene import Scene
from xsvggt_ros.live.server import close_server, open_server
from xsvggt_ros.placement.placement import Placed

CONTROLS_S = 0.1  # between two looks at what users want
RECORDED_BYTES = 500_000_000  # of a recording, in memory; about what a browser opens


class Viewer:
    """A page for browsers, from `open_server` to `close`.

    `show` may be called by any thread and waits for nothing: the newest frame replaces one that is not drawn yet, and
    is drawn at the next update. Browsers get what is newest when they are ready for it, each at its own pace.
    record: `new_file` for HTML that shows the scene as it grew; `close` writes it.
    Raises ValueError, with the fix, where the page cannot be served.
    """

    def __init__(self, owner: Owner, log: Any, record: IO[str] | None = None) -> None:
        self._owner, self._log = owner, log
        self._newest: Placed | None = None
        self._passed_over = 0
        self._lock = Lock()
        self._closing = Event()
        asked = owner.config().page.port
        self._server, self.address = open_server(owner.config().page)
        taken = asked and asked != self._server.get_port()
        self.where = f"live at {self.address}" + (f" ({asked} is taken)" if taken else "")  # for users
        try:
            self._scene = Scene(self._server)
            self._panel = Panel(self._server, owner, self._scene, lambda: self._passed_over)
            self._recording = Recording(self._server, record, log) if record else None
            self._thread = Thread(target=self._run, name="viewer", daemon=True)
            self._thread.start()
        except BaseException:
            close_server(self._server)
            raise

    @property
    def watched(self) -> bool:
        """Whether someone looks."""
        return self._thread.is_alive() and bool(self._recording or self._server.get_clients())

    def show(self, placed: Placed) -> None:
        """Gives the page a frame."""
        with self._lock:
            if self._newest:
                self._passed_over += 1
                placed = replace(placed, starts=placed.starts or self._newest.starts)
            self._newest = placed

    def close(self) -> None:
        """Draws what is there still, writes the recording and ends the page."""
        self._closing.set()
        self._thread.join()
        try:
            if self._recording:
                self._recording.write()
        finally:
            close_server(self._server)

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._closing.wait(min(CONTROLS_S, max(0.0, due - time.monotonic()))):
                self._panel.serve()
                if time.monotonic() >= due:
                    due = time.monotonic() + 1 / self._owner.config().page.refresh
                    self._draw()
            self._draw()
        except Exception:  # the stream goes on without its page
            self._log.error(f"the live page stands still: {traceback.format_exc()}")

    def _draw(self) -> None:
        with self._lock:
            placed, self._newest = self._newest, None
        if placed:
            self._scene.add(placed, self._owner.config())
        if self.watched:
            self._scene.draw()
            self._panel.draw(placed)
        if self._recording:
            self._recording.next(self._scene.sent)


class Recording:
    """The scene as it grew, in an HTML file that needs no server."""

    def __init__(self, server: Any, file: IO[str], log: Any) -> None:
        self._file, self._log = file, log
        self._serializer = server.get_scene_serializer()
        self._before = time.monotonic()
        self._full = False

    def next(self, sent: int) -> None:
        """What comes now comes later than what is there; sent: bytes so far."""
        if self._full:
            return
        now = time.monotonic()
        self._serializer.insert_sleep(now - self._before)
        self._before = now
        if sent > RECORDED_BYTES:
            self._log.warning(f"{self._file.name} ends here: it has all that a browser opens")
            self._full = True
            self._serializer._filter = lambda message: False

    def write(self) -> None:
        """Writes it. That takes all cores for a while: no stream should run. Raises OSError if it cannot."""
        self._file.write(self._serializer.as_html())


@contextmanager
def new_file(path: Path) -> Iterator[IO[str]]:
    """A text file that was not there; it is gone at the end where nothing was written.

    Raises ValueError, with the fix, if there can be none.
    """
    try:
        file = path.open("x", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot record to {path}: {error.strerror}; choose another file") from error
    try:
        with file:
            yield file
    finally:
        if path.exists() and not path.stat().st_size:
            path.unlink()
