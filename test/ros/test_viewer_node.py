# SPDX-License-Identifier: Apache-2.0
"""The node with its live page: what a user asks for in the browser is what parameters and services do."""

from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("viser", reason="the extra `live` is not installed")

from support import live_page
from support.browser import browser
from support.lifecycle import Lifecycle
from websockets.exceptions import InvalidStatus

from xsvggt_ros.ros.viewer import page_owner

START = dict(device="cpu", viewer=True, viewer_port=0, viewer_control=True, dense="subscribed")


@pytest.fixture(scope="module")
def node(start_node):
    return start_node(**START)


@pytest.fixture
def user(node, client):
    with browser() as user:
        client.connect()
        user.open(live_page.address(node.output))
        with client.flow():

            def until(condition):
                """Images come meanwhile."""
                client.spin(0.1)
                return condition()

            user.wait = lambda condition: user.until(lambda: until(condition))
            yield user


def test_the_page_of_a_node_controls_it(user, node, client):
    from selenium.webdriver.common.keys import Keys

    def status():
        return client.received["~/status"][-1]

    user.wait(lambda: "images a second" in user.figure("step") and " points" in user.figure("page"))
    user.press("Settings")
    slider = user.slider("budget_frames")
    slider.send_keys(Keys.ARROW_LEFT * 40)  # of 0.1 frames each
    user.wait(lambda: status().budget_tokens == 12 * 53)
    assert client.response(client.parameters.get_parameters(["cache.budget_frames"])).values[0].double_value == 12.0
    slider.send_keys(Keys.HOME)
    user.wait(lambda: "not in force yet: cache.budget_frames; cache.policy coreset needs a budget" in user.text())
    assert client.set_parameters(cache__budget_frames=20.0).successful
    user.wait(lambda: user.slider("budget_frames").get_attribute("aria-valuenow") == "20")
    user.press("Reset")
    user.wait(lambda: status().resets == 1)
    user.press("Pause")
    user.wait(lambda: "images are ignored" in user.text())
    user.wait(lambda: user.figure("paused") == "images are ignored")
    user.press("Save map")
    user.wait(lambda: "refused: Save map: no folder is set for maps" in user.text())
    user.press("Continue")
    user.wait(lambda: "images are used" in user.text())
    user.wait(lambda: "Pause" in user.buttons() and "Continue" not in user.buttons())
    user.wait(lambda: not user.figure("paused"))
    assert node.running()


def test_the_page_is_there_while_the_node_is_configured(node, client):
    address = live_page.address(node.output)
    with live_page.client(address) as connection:
        assert connection.recv(timeout=10)
    with pytest.raises(InvalidStatus), live_page.client(address, Origin="http://strangers.example"):
        pass
    lifecycle = Lifecycle(client)
    lifecycle.wait()
    assert lifecycle.change("DEACTIVATE") and lifecycle.change("CLEANUP")
    with pytest.raises(ConnectionRefusedError), live_page.client(address):
        pass
    assert lifecycle.change("CONFIGURE")
    assert node.output().count("live at") == 2


def test_a_page_that_cannot_be_served_is_said_and_ends_the_start(start_node):
    node = start_node("other", viewer=True, viewer_host="192.0.2.1", device="cpu", weights="no/such/file")
    assert node.exit_code() == 1
    assert "viewer_host '192.0.2.1' is no address of this machine" in node.output()  # not the weights


def test_where_the_node_writes_is_not_for_the_page():
    node = SimpleNamespace(settings=SimpleNamespace(change=None), ask=print)
    owner = page_owner(node, SimpleNamespace(status=None))
    names = {setting.name for setting in owner.settings}
    assert "loop.keyframes" in names and "loop.folder" not in names
