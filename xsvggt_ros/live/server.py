# SPDX-License-Identifier: Apache-2.0
"""The web server of a page, and who may come in: all that knows how viser serves."""

from __future__ import annotations

import hmac
import secrets
import socket
from contextlib import redirect_stdout
from http import HTTPStatus
from io import StringIO
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

from xsvggt_ros.config import ViewerConfig

REFUSED = "This page is open to who has its whole address, with the token: the log of the stream says it.\n"
LAST_PORT = 65535
MOST_BYTES = 65536  # of a message from a browser


def open_server(config: ViewerConfig) -> tuple[Any, str]:
    """A viser.ViserServer that sends nothing to whom its `Door` refuses; and the address to open in a browser.

    Raises ValueError as `check_page`.
    """
    port = check_page(config)
    import viser
    from websockets.asyncio import server as websockets

    door = Door("" if only_here(config.host) and not config.control else secrets.token_urlsafe(16))
    serve = websockets.serve

    def guarded(*args: Any, process_request: Any, **options: Any) -> Any:
        door.there = True
        options["max_size"] = MOST_BYTES
        return serve(*args, process_request=lambda c, r: door.refusal(c, r) or process_request(c, r), **options)

    # viser has no way to say who may connect. The library below it has, before a byte is sent.
    websockets.serve = guarded  # type: ignore[misc, assignment]
    try:
        with redirect_stdout(StringIO()):  # its banner
            server = viser.ViserServer(config.host, port, label="xsvggt_ros", verbose=False)
    finally:
        websockets.serve = serve  # type: ignore[misc]
    if not door.there:
        server.stop()
        raise ValueError(f"viser {viser.__version__} serves without asking who may come in: pip install 'viser<1.2'")
    server.request_share_url = lambda verbose=True: None  # type: ignore[method-assign]  # a client could ask for a tunnel to the outside
    _take_values_only(server)
    return server, door.address(config.host, server.get_port())


def check_page(config: ViewerConfig) -> int:
    """The port that a page would be served at; 0: any. To be asked before a model is loaded.

    Raises ValueError, with the fix, where viser is missing or the address cannot be served at.
    """
    try:
        import viser  # noqa: F401
        from websockets.asyncio import server  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"the live page needs {error.name}: pip install '.[live]' in this package's source") from error
    only_here(config.host)
    # viser looks for a free one too, but waits for ever where there is none.
    for port in range(config.port, LAST_PORT + 1):
        if _is_free(config.host, port):
            return port
    raise ValueError(f"no port from viewer_port {config.port} on is free: give viewer_port 0, for any that is")


def _is_free(host: str, port: int) -> bool:
    try:
        for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            socket.create_server(address, family=family).close()
    except OSError:
        return False
    return True


def _take_values_only(server: Any) -> None:
    """Has it take values for its inputs only. viser would also take uploads, and whatever else an input is."""
    from viser._messages import GuiUpdateMessage

    handlers = server._websock_server._incoming_handlers
    (update,) = handlers[GuiUpdateMessage]

    async def values_only(client_id: int, message: Any) -> None:
        if message.updates.keys() == {"value"}:
            await update(client_id, message)

    handlers.clear()
    handlers[GuiUpdateMessage] = [values_only]


def close_server(server: Any) -> None:
    """Ends it, and its connections."""
    with redirect_stdout(StringIO()):
        server.stop()


def only_here(host: str) -> bool:
    """Whether only this machine can reach a server at that address. Raises ValueError if there can be none."""
    try:
        if not host:
            raise ValueError("it is empty")
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"viewer_host {host!r} is no address of this machine ({error}): give 127.0.0.1, one of its own, or 0.0.0.0 "
            "for all of them"
        ) from error
    return all(ip_address(address[0]).is_loopback for *_, address in found)


class Door:
    """Who may see a page: with a token who has it; without one who is on this machine.

    token: empty where the server listens to this machine only, and only shows. Browsers of this machine do also what
    strangers' pages tell them: those are told by the origin that a browser names.
    """

    def __init__(self, token: str) -> None:
        self.there = False  # whether the server asks it
        self._token = token
        self._cookie = f"xsvggt_{token[:6]}"  # a name of its own: all ports of a machine have their cookies in common

    def address(self, host: str, port: int) -> str:
        """What to open in a browser."""
        name = socket.gethostname() if host in ("0.0.0.0", "::") else host
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{port}/" + (f"?token={self._token}" if self._token else "")

    def refusal(self, connection: Any, request: Any) -> Any:
        """The answer to a request that is not let in, or that comes with the token; None: it is served."""
        try:
            if not self._of_this_page(request.headers):
                return connection.respond(HTTPStatus.FORBIDDEN, REFUSED)
            if not self._token or self._matches(self._cookies(request.headers)):
                return None
            if not self._matches(parse_qs(urlsplit(request.path).query).get("token", [])):
                return connection.respond(HTTPStatus.FORBIDDEN, REFUSED)
        except (ValueError, LookupError):  # what is no URL, two origins, what is no text
            return connection.respond(HTTPStatus.FORBIDDEN, REFUSED)
        # A cookie, since the page's own connection would not have what stands in the address.
        response = connection.respond(HTTPStatus.SEE_OTHER, "")
        response.headers["Location"] = "/"
        response.headers["Set-Cookie"] = f"{self._cookie}={self._token}; HttpOnly; SameSite=Lax; Path=/"
        return response

    def _cookies(self, headers: Any) -> list[str]:
        """What comes as our cookie. Other programs of that machine have theirs, of any form, beside it."""
        pairs = (each.strip().partition("=") for each in ";".join(headers.get_all("Cookie")).split(";"))
        return [value for name, _, value in pairs if name == self._cookie]

    def _matches(self, given: list[str]) -> bool:
        return any(hmac.compare_digest(each.encode(), self._token.encode()) for each in given)

    def _of_this_page(self, headers: Any) -> bool:
        """Whether no page from elsewhere is behind the request, under another name or under ours."""
        host, origin = headers.get("Host", ""), headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return False
        return bool(self._token) or _is_loopback(urlsplit(f"//{host}").hostname or "")


def _is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False
