# SPDX-License-Identifier: Apache-2.0
"""`xsvggt live` as a process of its own, and clients of a page that are no browser."""

from __future__ import annotations

import re
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.client import connect

from support.paths import ROOT

PATIENCE_S = 60.0


class LiveProcess:
    """The command, its output in a file."""

    def __init__(self, source: Path, log: Path, *flags: str) -> None:
        self._log = log
        command = [sys.executable, "-m", "xsvggt_ros.cli", "live", str(source), "--port", "0", *flags]
        with log.open("w") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        self.address = address(self.output)

    def output(self) -> str:
        return self._log.read_text()

    def end(self) -> int:
        """As Ctrl-C does; the exit code."""
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(timeout=PATIENCE_S)
        finally:
            self._process.kill()


def address(output) -> str:
    """Where a page is, once the output says it."""
    wait_until(lambda: "live at" in output(), output)
    return re.search(r"live at (\S+)", output())[1]


def wait_until(condition, said=lambda: "waited in vain") -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, said()
        time.sleep(0.02)


@contextmanager
def client(address: str, **headers: str):
    """A connection to the page at that address, as viser's browsers have; headers with _ for the hyphen."""
    import viser

    page, _, token = address.partition("?token=")
    cookie = {"Cookie": f"xsvggt_{token[:6]}={token}"} if token else {}  # as a browser that opened the page has
    extra = cookie | {name.replace("_", "-"): value for name, value in headers.items()}
    with connect(
        page.replace("http", "ws", 1),
        subprotocols=[f"viser-v{viser.__version__}"],
        additional_headers=extra,
        close_timeout=1,
    ) as connection:
        yield connection


def look(connection) -> None:
    """Says where a client looks from, as browsers do first: with it, it counts as one that looks."""
    flat, up = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]
    message = dict(wxyz=[1.0, 0.0, 0.0, 0.0], position=flat, fov=1.0, near=0.1, far=9.0, look_at=up, up_direction=up)
    send(connection, "ViewerCameraMessage", **message, image_height=100, image_width=100)


def send(connection, kind: str, **values) -> None:
    """A small message of that type."""
    connection.send(_packed(dict(type=kind, **values)))


def _packed(value) -> bytes:
    """As msgpack writes what is small."""
    if isinstance(value, dict):
        return bytes([0x80 | len(value)]) + b"".join(map(_packed, [x for pair in value.items() for x in pair]))
    if isinstance(value, list):
        return bytes([0x90 | len(value)]) + b"".join(map(_packed, value))
    if isinstance(value, str):
        return bytes([0xD9, len(value)]) + value.encode()
    return bytes([value]) if isinstance(value, int) else b"\xcb" + struct.pack(">d", value)
