# SPDX-License-Identifier: Apache-2.0
"""Who sees a page: real servers, real connections."""

import socket
import sys
from contextlib import closing, contextmanager
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPCookieProcessor, Request, build_opener

import pytest

pytest.importorskip("viser", reason="the extra `live` is not installed")

from support.live_page import client, send, wait_until
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from xsvggt_ros.config import ViewerConfig
from xsvggt_ros.live import server as module
from xsvggt_ros.live.server import close_server, only_here, open_server


@contextmanager
def page(host="127.0.0.1", control=False):
    """(address as seen from this machine, token) of a page."""
    server, address = open_server(ViewerConfig(host=host, port=0, control=control))
    server.gui.add_html("what the robot sees")
    try:
        yield f"http://127.0.0.1:{server.get_port()}/", urlsplit(address).query.removeprefix("token=")
    finally:
        close_server(server)


@pytest.fixture(scope="module")
def here():
    with page() as (address, token):
        assert token == ""
        yield address


@pytest.fixture(scope="module")
def anywhere():
    with page("0.0.0.0") as (address, token):
        assert len(token) > 20
        yield address, token


def status(address, **headers):
    """Of what the server answers to a browser that asks for a page, and the cookies that it is left with."""
    cookies = HTTPCookieProcessor()
    try:
        with build_opener(cookies).open(Request(address, headers=headers), timeout=10) as answer:
            return answer.status, {each.name: each.value for each in cookies.cookiejar}
    except HTTPError as error:
        return error.code, {}


def refused(address, **headers):
    """Whether a connection is refused before anything is sent over it."""
    try:
        with client(address, **headers) as connection:
            assert connection.recv(timeout=10)
            return False
    except InvalidStatus as error:
        return error.response.status_code == 403


def test_on_this_machine_a_page_needs_no_token(here):
    assert status(here)[0] == 200
    assert not refused(here)
    assert not refused(here, Origin=here.rstrip("/"))
    assert not refused(here.replace("127.0.0.1", "localhost"))


def test_pages_from_elsewhere_are_told_by_their_origin(here):
    port = urlsplit(here).port
    assert refused(here, Origin="https://strangers.example")
    assert refused(here, Origin=f"http://127.0.0.1:{port + 1}")
    assert refused(here, Origin="null")
    assert refused(here, Origin="http://[")


def test_a_stranger_s_name_for_this_machine_is_refused(here):
    port = urlsplit(here).port
    assert status(here, Host=f"strangers.example:{port}")[0] == 403
    assert status(here, Host="[")[0] == 403


def test_elsewhere_nothing_comes_without_the_token(anywhere):
    address, token = anywhere
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    for given in ("", "?token=", f"?token={wrong}", f"?token={token}x", "?token=%ff", "?websocket=x"):
        assert status(address + given)[0] == 403, given
    assert refused(address)
    name = f"xsvggt_{token[:6]}"
    for cookie in (f"{name}={wrong}", f"{name}=", "=", f"other={token}", "\xff"):
        assert refused(address, Cookie=cookie), cookie


def test_the_address_with_the_token_opens_the_page_and_its_connection(anywhere):
    address, token = anywhere
    code, cookies = status(f"{address}?token={token}")
    assert code == 200
    (cookie,) = cookies.items()
    assert not refused(address, Cookie="=".join(cookie))
    assert not refused(address, Cookie="a=b; " + "=".join(cookie))
    assert refused(address, Cookie="=".join(cookie), Origin="http://strangers.example")


def test_other_programs_cookies_of_any_form_do_not_lock_out(anywhere):
    address, token = anywhere
    ours = f"xsvggt_{token[:6]}={token}"
    for other in ("a=[1, 2]", "b", "=", "{}", 'c="d'):
        assert not refused(address, Cookie=f"{other}; {ours}; {other}"), other
        assert refused(address, Cookie=other), other


def test_who_may_change_something_needs_the_token_on_this_machine_too():
    with page(control=True) as (address, token):
        assert len(token) > 20
        assert status(address)[0] == 403 and refused(address)
        assert status(f"{address}?token={token}")[0] == 200


def test_of_what_browsers_send_only_values_of_inputs_are_taken():
    server, address = open_server(ViewerConfig(port=0))
    try:
        made = server.gui.add_slider("rate", 0.0, 9.0, 1.0, 1.0)
        uuid = made._impl.uuid
        with client(address) as connection:
            for updates in (dict(removed=1), dict(value=5.0, removed=1)):
                send(connection, "GuiUpdateMessage", uuid=uuid, updates=updates)
            names = dict(source_component_uuid=uuid, transfer_uuid="mine")
            send(
                connection, "FileTransferStartUpload", filename="a", mime_type="b", part_count=9, size_bytes=9, **names
            )
            send(connection, "GuiUpdateMessage", uuid=uuid, updates=dict(value=3.0))
            wait_until(lambda: made.value != 1.0)
            assert made.value == 3.0 and not made._impl.removed
            assert not server.gui._current_file_upload_states
    finally:
        close_server(server)


def test_a_message_too_large_for_any_input_ends_its_connection(here):
    with client(here) as connection:
        connection.send(bytes(module.MOST_BYTES + 1))
        with pytest.raises(ConnectionClosedError, match="1009"):
            while connection.recv(timeout=10):
                pass


def test_no_client_can_have_a_tunnel_made_to_the_outside():
    server, _ = open_server(ViewerConfig(port=0))
    try:
        assert server.request_share_url() is None
    finally:
        close_server(server)


@pytest.mark.parametrize("host", ["", "192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_ours_is_refused(host):
    with pytest.raises(ValueError, match=r"viewer_host .* is no address of this machine"):
        open_server(ViewerConfig(host=host, port=0))


def test_which_addresses_only_this_machine_reaches():
    assert only_here("127.0.0.1") and only_here("localhost")
    assert not only_here("0.0.0.0")


def test_a_port_in_use_leaves_the_next():
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server, address = open_server(ViewerConfig(port=port))
        close_server(server)
    assert urlsplit(address).port > port


def test_where_no_later_port_is_free_it_is_said(monkeypatch):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(module, "LAST_PORT", port)
        with pytest.raises(ValueError, match=f"no port from viewer_port {port} on is free: give viewer_port 0"):
            open_server(ViewerConfig(port=port))


def test_without_viser_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[live\]' in this package's source"):
        open_server(ViewerConfig(port=0))


def test_a_viser_that_does_not_ask_who_comes_is_not_used(monkeypatch):
    import viser

    class Other:
        def __init__(self, *args, **options):
            pass

        def stop(self):
            self.stopped = True

    monkeypatch.setattr(viser, "ViserServer", Other)
    with pytest.raises(ValueError, match="serves without asking"):
        module.open_server(ViewerConfig(port=0))
