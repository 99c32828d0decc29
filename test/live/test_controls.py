# SPDX-License-Identifier: Apache-2.0
"""Settings of the page, on a real server; who is at it is made up."""

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("viser", reason="the extra `live` is not installed")


from xsvggt_ros.config import NodeConfig, ViewerConfig
from xsvggt_ros.live import controls as module
from xsvggt_ros.live.controls import Controls, slider_range, table
from xsvggt_ros.live.owner import Owner, done
from xsvggt_ros.live.server import close_server, open_server
from xsvggt_ros.settings import changed, settings, values
from xsvggt_ros.status import Status

LIVE = [setting for setting in settings(NodeConfig) if setting.live]
BY_NAME = {setting.name: setting for setting in LIVE}


class Stream:
    """An owner whose configuration changes as asked."""

    def __init__(self):
        self.config = NodeConfig()
        self.asked = []

    def change(self, changes):
        self.asked.append(changes)
        self.config = changed(self.config, changes)
        return "done"

    def run(self, action):
        future = Future()
        done(action, future)
        return future

    def owner(self):
        return Owner(Status, lambda: self.config, LIVE, self.change, {}, self.run)


@pytest.fixture(scope="module")
def server():
    server, _ = open_server(ViewerConfig(port=0))
    yield server
    close_server(server)


@pytest.fixture
def stream(monkeypatch):
    monkeypatch.setattr(module, "SETTLED_S", -1.0)
    monkeypatch.setattr(module, "TYPED_S", -1.0)
    return Stream()


@pytest.fixture
def controls(server, stream):
    server.gui.reset()
    return Controls(server.gui, stream.owner())


def move(controls, name, value):
    """As a browser does, of which viser knows."""
    made = controls._inputs[name]
    made._impl.value = value
    for told in made._impl.update_cb:
        told(SimpleNamespace(client_id=0, target=made))


def test_every_live_setting_has_an_input_of_its_kind(controls):
    assert set(controls._inputs) == set(BY_NAME)
    kinds = {
        name: type(made).__name__.removeprefix("Gui").removesuffix("Handle") for name, made in controls._inputs.items()
    }
    for name, setting in BY_NAME.items():
        if setting.type is bool:
            assert kinds[name] == "Checkbox", name
        elif setting.choices:
            assert kinds[name] == "Dropdown", name
        else:
            assert kinds[name] in {str: ("Text",)}.get(setting.type, ("Slider", "Number")), name
        assert setting.description in controls._inputs[name].hint
    assert kinds["cache.budget_frames"] == kinds["segment.overlap"] == "Slider"
    assert kinds["cache.budget_mib"] == "Number"


@pytest.mark.parametrize("name", BY_NAME)
def test_sliders_stay_within_what_is_allowed_and_reach_the_value(name):
    setting = BY_NAME[name]
    for value in (setting.default, setting.minimum, setting.maximum):
        if value is None or not (span := slider_range(setting, setting.check(value))):
            continue
        low, high, step = span
        assert low <= value <= high
        assert setting.check(low) == low and setting.check(high) == high
        assert type(low) is type(high) is type(step) is setting.type
        assert 0 < step <= high - low


def test_what_users_change_comes_into_force_together_and_once(controls, stream):
    move(controls, "cache.budget_frames", 4.0)
    move(controls, "cache.key_bits", "8")
    move(controls, "publish_tf", False)
    for _ in range(3):
        controls.update()
    assert stream.asked == [{"cache.budget_frames": 4.0, "cache.key_bits": 8, "publish_tf": False}]
    assert controls.said == "cache.budget_frames = 4.0, cache.key_bits = 8, publish_tf = False done"


def test_what_a_user_still_moves_waits(controls, stream, monkeypatch):
    monkeypatch.setattr(module, "SETTLED_S", 1000.0)
    move(controls, "cache.budget_frames", 4.0)
    controls.update()
    assert stream.asked == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("cache.budget_frames", 0.0, "cache.policy coreset needs a budget"),
        ("cache.budget_frames", float("nan"), "must be between"),
        ("cache.key_bits", "5", "must be one of"),
        ("cache.key_bits", "many", "must be of type int"),
    ],
)
def test_a_refused_value_says_why_and_goes_back(controls, stream, name, value, reason):
    before = stream.config
    move(controls, name, value)
    controls.update()
    controls.update()
    assert controls.said.startswith("refused: ") and reason in controls.said
    assert stream.config == before
    assert controls._inputs[name].value == {"cache.budget_frames": 16.0, "cache.key_bits": "2"}[name]


def test_what_is_changed_elsewhere_is_shown_and_not_asked_for_again(controls, stream):
    stream.config = changed(stream.config, {"cache.budget_frames": 300.0, "cache.policy": "ovggt"})
    controls.update()
    assert controls._inputs["cache.budget_frames"].value == 300.0
    assert controls._inputs["cache.budget_frames"].max >= 300.0
    assert controls._inputs["cache.policy"].value == "ovggt"
    controls.update()
    assert stream.asked == []


def test_what_is_half_typed_is_not_asked_for(controls, stream, monkeypatch):
    monkeypatch.setattr(module, "TYPED_S", 60.0)
    move(controls, "cache.budget_mib", 1.0)  # of 1.25
    move(controls, "loop.folder", "/ho")
    move(controls, "cache.budget_frames", 8.0)
    controls.update()
    assert stream.asked == [{"cache.budget_frames": 8.0}]


def test_numbers_take_decimals_where_they_are_no_whole_ones(controls):
    for name, made in controls._inputs.items():
        if type(made).__name__ == "GuiNumberHandle":
            least = BY_NAME[name].minimum or 0.01
            assert made.precision == 0 if BY_NAME[name].type is int else 10.0**-made.precision <= least, name
    assert controls._inputs["cache.budget_mib"].precision == 2


def shown_of_cache(controls):
    return {name.removeprefix("cache.") for name, made in controls._inputs.items() if made.visible and "cache." in name}


def test_what_does_nothing_beside_the_others_is_hidden_until_it_does(controls, stream):
    of_coreset = {"probes", "per_head"}
    always = {
        name.removeprefix("cache.") for name, setting in BY_NAME.items() if "cache." in name and not setting.where
    }
    for change, shown in (
        ({}, of_coreset | {"layer_budgets", "adaptive"}),
        ({"cache.policy": "xstream"}, {"query_pool", "layer_budgets", "adaptive"}),
        ({"cache.policy": "full", "cache.intake": "moved"}, {"intake_degrees"}),
        ({"cache.policy": "coreset"}, of_coreset | {"intake_degrees", "layer_budgets", "adaptive"}),
    ):
        for name, value in change.items():
            move(controls, name, value)
        controls.update()  # asks
        controls.update()  # sees what is in force
        assert shown_of_cache(controls) == always | shown


def test_what_is_of_no_use_where_it_began_is_shown_once_it_is(controls, stream):
    (scale,) = (folder for folder, names in controls._folders if "scale.factor" in names)
    assert not controls._inputs["scale.factor"].visible and not scale.visible
    assert "<b>scale</b>" not in table(stream.owner())
    stream.config = changed(stream.config, {"scale.source": "fixed"})  # which is not live: as a node of others has it
    controls.update()
    assert scale.visible and "<b>scale</b>" in table(stream.owner())
    assert controls._inputs["scale.factor"].visible and not controls._inputs["scale.camera_height"].visible


def test_the_table_has_every_setting_that_acts_and_no_markup_of_others(stream):
    stream.config = replace(stream.config, camera_frame="<script>")
    shown = table(stream.owner())
    acting = [setting for setting in LIVE if setting.acts(values(stream.config))]
    assert shown.count("<tr><td>") == len(acting) < len(LIVE)
    assert "<td>probes</td>" in shown and "<td>query_pool</td>" not in shown
    assert "&lt;script&gt;" in shown and "<script>" not in shown


def test_a_value_that_comes_while_others_are_read_is_asked_for_next(controls, stream, monkeypatch):
    """The page's messages are handled in another thread: here, between two lines of this one."""
    name = "cache.budget_frames"
    move(controls, name, 8.0)

    class Moving(dict):
        def __getitem__(self, key):
            made = super().__getitem__(key)
            read = SimpleNamespace(value=made.value)
            if made.value == 8.0:
                move(SimpleNamespace(_inputs=inputs), key, 9.0)
            return read

    inputs = controls._inputs
    monkeypatch.setattr(controls, "_inputs", Moving(inputs))
    controls.update()
    assert name in controls._touched
    monkeypatch.setattr(controls, "_inputs", inputs)
    controls.update()
    controls.update()
    assert stream.asked == [{name: 8.0}, {name: 9.0}]
