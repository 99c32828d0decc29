# SPDX-License-Identifier: Apache-2.0
"""An endpoint on loopback that answers as huggingface.co does, as far as a download asks."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ASKED = re.compile(
    r"/(?P<api>api/models/)?(?P<repo>[^/]+/[^/]+)(?:/(?:revision|resolve)/(?P<revision>[^/]+))?/?(?P<file>.*)"
)


class Hub:
    """{OWNER/NAME: {name of a file: its bytes}}, what the cards say, who wants a token, and what was asked for."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.cards: dict[str, dict[str, str]] = {}
        self.tokens: dict[str, str] = {}
        self.served: list[str] = []  # files whose bytes were sent
        self.broken = False
        self.endpoint = ""

    def refusal(self, repository: str, revision: str | None, token: str) -> tuple[int, str] | None:
        if self.broken:
            return 503, ""
        if repository not in self.repositories:
            return 401, "RepoNotFound"
        if self.tokens.get(repository, token) != token:
            return 403, "GatedRepo"
        return None if revision in (None, "main", COMMIT) else (404, "RevisionNotFound")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        asked = ASKED.fullmatch(self.path.partition("?")[0])
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if refusal := self.hub.refusal(asked["repo"], asked["revision"], token):
            return self._send(refusal[0], b"", {"X-Error-Code": refusal[1]}, body)
        files = self.hub.repositories[asked["repo"]]
        if asked["api"]:
            about = {"id": asked["repo"], "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            about["cardData"] = self.hub.cards.get(asked["repo"])
            return self._send(200, json.dumps(about).encode(), {}, body)
        if asked["file"] not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
        content = files[asked["file"]]
        if body:
            self.hub.served.append(asked["file"])
        etag = hashlib.sha256(content).hexdigest()
        return self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)

    def _send(self, status, content, headers, body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub while it answers."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
