# SPDX-License-Identifier: Apache-2.0
"""A slider, menu, box or line of text for every setting, as config.py declares it."""

from __future__ import annotations

import math
import time
from concurrent.futures import Future
from html import escape
from itertools import groupby
from typing import Any

from xsvggt_ros.live.owner import Owner
from xsvggt_ros.parameters_file import facts
from xsvggt_ros.settings import Setting, values

SETTLED_S = 0.3  # for so long a value must stand: what is dragged over is not asked for
TYPED_S = 2.0  # nor what is half typed
FINE = 0.01  # to which numbers are typed that may be 0
NARROW = 1000  # a range that a slider may have whole
STEPS = 100  # of a slider, about


class Controls:
    """Inputs for the owner's settings. `update`, called again and again in one thread, does the rest.

    What users do is asked of the owner once they have let go; what it refuses goes back to what is in force. What is
    changed elsewhere is shown. What does nothing beside what is in force is hidden.
    """

    def __init__(self, gui: Any, owner: Owner) -> None:
        self.said = ""  # what came of the newest change
        self._owner = owner
        self._settings = {setting.name: setting for setting in owner.settings}
        self._in_force = values(owner.config())
        self._touched: dict[str, float] = {}  # name: when a user last moved it
        self._asked: tuple[dict[str, Any], Future[str]] | None = None
        self._inputs = {}
        self._folders = []  # each with the names of what it holds
        for title, settings in by_group(owner):
            with gui.add_folder(title, expand_by_default=title == "cache") as folder:
                for setting in settings:
                    self._inputs[setting.name] = self._input(gui, setting)
            self._folders.append((folder, [setting.name for setting in settings]))
        self._hide_idle()

    def _input(self, gui: Any, setting: Setting) -> Any:
        made = add_input(gui, setting, self._in_force[setting.name])

        @made.on_update
        def _(event: Any) -> None:
            if event.client_id is not None:  # a user, not this program
                self._touched[setting.name] = time.monotonic()

        return made

    def update(self) -> None:
        """Asks for what users have changed, says what came of it, and shows what is in force."""
        if self._asked and self._asked[1].done():
            self._answer(*self._asked)
            self._asked = None
        self._follow()
        settled = [name for name, when in self._touched.copy().items() if time.monotonic() - when > self._wait(name)]
        if settled and not self._asked:
            for name in settled:
                self._touched.pop(name)  # before the value is read: one that comes meanwhile is asked for next
            wanted = {name: self._inputs[name].value for name in settled}
            self._asked = wanted, self._owner.run(lambda: self._change(wanted))

    def _wait(self, name: str) -> float:
        """Seconds from when it was last moved until it is asked for."""
        return TYPED_S if is_typed(self._settings[name], self._in_force[name]) else SETTLED_S

    def _change(self, wanted: dict[str, Any]) -> str:
        """Menus have texts for numbers. Raises ValueError for what is refused."""
        named = ((self._settings[name], value) for name, value in wanted.items())
        return self._owner.change({s.name: s.parse(value) if s.choices else value for s, value in named})

    def _answer(self, wanted: dict[str, Any], answer: Future[str]) -> None:
        what = ", ".join(f"{name} = {value}" for name, value in wanted.items())
        if error := answer.exception():
            self.said = f"refused: {what}: {error}"
            for name in wanted:
                self._show(name, self._in_force[name])
        else:
            self.said = f"{what} {answer.result()}"

    def _follow(self) -> None:
        """Shows what has come into force since it was last looked at, unless a user is at it."""
        before, self._in_force = self._in_force, values(self._owner.config())
        for name in self._inputs:
            if self._in_force[name] != before[name] and name not in self._touched:
                self._show(name, self._in_force[name])
        self._hide_idle()

    def _hide_idle(self) -> None:
        acting = {name for name, setting in self._settings.items() if setting.acts(self._in_force)}
        for name, made in self._inputs.items():
            made.visible = name in acting
        for folder, names in self._folders:
            folder.visible = not acting.isdisjoint(names)

    def _show(self, name: str, value: Any) -> None:
        made, setting = self._inputs[name], self._settings[name]
        if span := slider_range(setting, value):
            made.min, made.max, made.step = span
        made.value = str(value) if setting.choices else value


def by_group(owner: Owner) -> list[tuple[str, list[Setting]]]:
    """The owner's settings, by what stands before the dot in their names; those of no group first."""
    found = sorted(owner.settings, key=_group)
    return [(title or "stream", list(settings)) for title, settings in groupby(found, _group)]


def _group(setting: Setting) -> str:
    return setting.name.rpartition(".")[0]


def label(setting: Setting) -> str:
    """Its name in its group."""
    return setting.name.rpartition(".")[2]


def add_input(gui: Any, setting: Setting, value: Any) -> Any:
    """The input that suits the setting's type and range."""
    name, hint = label(setting), f"{setting.name}: {setting.description} {facts(setting)}"
    if setting.type is bool:
        return gui.add_checkbox(name, value, hint=hint)
    if setting.choices:
        return gui.add_dropdown(name, tuple(map(str, setting.choices)), initial_value=str(value), hint=hint)
    if setting.type is str:
        return gui.add_text(name, value, hint=hint)
    if span := slider_range(setting, value):
        return gui.add_slider(name, *span, value, hint=hint)
    step = 1 if setting.type is int else setting.minimum or FINE
    return gui.add_number(name, value, min=setting.minimum, max=setting.maximum, step=step, hint=hint)


def is_typed(setting: Setting, value: Any) -> bool:
    """Whether its input is a number or a line of text, which is typed key by key."""
    return setting.type is not bool and not setting.choices and slider_range(setting, value) is None


def slider_range(setting: Setting, value: float) -> tuple[float, float, float] | None:
    """From where to where a slider goes, and in which steps; None where it is no slider.

    A range too wide for one ends at four times the default, and moves on with the value. Where the default is 0, which
    usually means no limit, the setting does not say what is usual.
    """
    if setting.type not in (int, float) or setting.choices:
        return None
    low, high = setting.minimum or 0, math.inf if setting.maximum is None else setting.maximum
    if high - low > NARROW:
        if not setting.default:
            return None
        high = min(high, max(4 * setting.default, 2 * value))
    step = 10.0 ** math.floor(math.log10((high - low) / STEPS))
    if setting.type is int:
        step = max(step, setting.step or 1)
    low = min(max(low, math.ceil(round(low / step, 6)) * step), value)
    low, high, step = (setting.type(round(number, 9)) for number in (low, high, step))
    return low, high, step


def table(owner: Owner) -> str:
    """The settings in force that do anything, as HTML: what a page shows that must not change them."""
    now = values(owner.config())
    rows = []
    for title, settings in by_group(owner):
        acting = [f"<tr><td>{label(s)}</td><td>{escape(str(now[s.name]))}</td></tr>" for s in settings if s.acts(now)]
        if acting:
            rows += [f"<tr><td colspan=2><b>{escape(title)}</b></td></tr>", *acting]
    return f"<table style='width:100%;font-size:0.8em'>{''.join(rows)}</table>"
