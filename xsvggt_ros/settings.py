# SPDX-License-Identifier: Apache-2.0
"""How a setting is declared, checked, listed and changed; config.py declares them.

`settings` lists the settings of a configuration class, `values` those of a configuration, `changed` replaces some
of them by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, get_type_hints

from xsvggt_ros.names import frame_name, unknown_names

WORDS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}
HINTS = {str: "; put text in quotes", bool: "; it is true or false"}  # YAML takes bare words and numbers for others
EXACT = 2**53  # beyond it a float leaves out whole numbers


@dataclass(frozen=True)
class Where:
    """At which values of another setting a setting does anything; or, with `but`, at which alone it does nothing.

    name: of one of its own group, and of a `Setting` the dotted one.
    """

    name: str
    values: tuple
    but: bool = False

    def __str__(self) -> str:
        named = ", ".join(map(str, self.values))
        return f"any {self.name} but {named}" if self.but else f"{self.name} {named}"


def setting(
    default: Any,
    description: str,
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    step: int | None = None,
    choices: tuple | None = None,
    frame: bool = False,
    live: bool = False,
    where: Where | None = None,
) -> Any:
    """A dataclass field that knows what a user needs to know about it.

    step: whole numbers only, multiples of it. frame: the name of a TF frame, empty only if the default is. where: the
    description gets it in front.
    """
    description = f"{where}: {description}" if where else description
    about = dict(description=description, unit=unit, minimum=minimum, maximum=maximum, step=step)
    return field(default=default, metadata=dict(about, choices=choices, frame=frame, live=live, where=where))


def group(config: type, prefix: str = "") -> Any:
    """A field that holds another group of settings, whose names get `prefix`."""
    return field(default_factory=config, metadata=dict(prefix=prefix))


@dataclass(frozen=True)
class Setting:
    """One setting under its public, dotted name."""

    name: str
    type: type[Any]
    default: Any
    description: str
    unit: str
    minimum: float | None
    maximum: float | None
    step: int | None
    choices: tuple | None
    frame: bool
    live: bool
    where: Where | None

    def acts(self, among: Mapping[str, Any]) -> bool:
        """Whether it does anything beside these values of all settings, by dotted names."""
        return self.where is None or (among[self.where.name] in self.where.values) != self.where.but

    def check(self, value: Any) -> Any:
        """The value in the setting's type and form. Raises ValueError with the reason if it is not allowed."""
        value = self._typed(value)
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name} must be one of {', '.join(map(str, self.choices))}, got {value!r}")
        self._check_range(value)
        return self._framed(value) if self.frame else value

    def parse(self, text: str) -> Any:
        """The value of the setting's type that a text stands for; `check` says whether it is allowed.

        Raises ValueError if it stands for none.
        """
        if self.type is bool:
            return self._typed(WORDS.get(text.lower(), text))
        if self.type is not str:
            for number in (int, float):
                with suppress(ValueError):
                    return self._typed(number(text))
        return self._typed(text)

    def _typed(self, value: Any) -> Any:
        """A whole number may come as either of the two types of numbers."""
        whole = type(value) is int or (type(value) is float and value.is_integer() and abs(value) <= EXACT)
        if whole and self.type in (int, float):
            value = self.type(value)
        if type(value) is not self.type:
            hint = HINTS.get(self.type, "") if value is not None else f"; it cannot be unset, {self.default!r} is usual"
            raise ValueError(f"{self.name} must be of type {self.type.__name__}, got {value!r}{hint}")
        return value

    def _check_range(self, value: Any) -> None:
        low, high = self.minimum, self.maximum
        # Written so that NaN, which compares false with everything, is refused too.
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            bounds = f"at least {low}" if high is None else f"between {low} and {high}"
            raise ValueError(f"{self.name} must be {bounds}{' ' + self.unit if self.unit else ''}, got {value!r}")
        if self.step and value % self.step:
            below = value // self.step * self.step
            raise ValueError(
                f"{self.name} must be a multiple of {self.step}, got {value}; try {below} or {below + self.step}"
            )

    def _framed(self, value: str) -> str:
        name = frame_name(value)
        if self.default and not name:
            raise ValueError(f"{self.name} must name a frame, for example {self.default}; got {value!r}")
        return name


def settings(config: type, prefix: str = "") -> list[Setting]:
    """All settings of a configuration class, nested groups included, in order of declaration."""
    types = get_type_hints(config)
    found: list[Setting] = []
    for f in fields(config):
        if is_dataclass(types[f.name]):
            found += settings(types[f.name], prefix + f.metadata["prefix"])
        else:
            where = f.metadata["where"]
            about = dict(f.metadata, where=where and dataclasses.replace(where, name=prefix + where.name))
            found.append(Setting(name=prefix + f.name, type=types[f.name], default=f.default, **about))
    return found


def values(config: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of a configuration."""
    found: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        found |= values(value, prefix + f.metadata["prefix"]) if is_dataclass(value) else {prefix + f.name: value}
    return found


def changed(config: Any, changes: dict[str, Any]) -> Any:
    """The configuration with the named settings replaced.

    Raises ValueError, naming the setting and the reason, for an unknown name or a value not allowed.
    """
    known = values(config)
    unknown = changes.keys() - known
    if unknown:
        raise ValueError(f"unknown setting: {unknown_names(unknown, known)}")
    return _changed(config, changes, "")


def _changed(config: Any, changes: dict[str, Any], prefix: str) -> Any:
    new: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if is_dataclass(value):
            new[f.name] = _changed(value, changes, prefix + f.metadata["prefix"])
        elif prefix + f.name in changes:
            new[f.name] = changes[prefix + f.name]
    try:
        return dataclasses.replace(config, **new)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


class Checked:
    """Checks every field when a configuration is made, so that a bad one never exists."""

    def __post_init__(self) -> None:
        for s in settings(type(self)):
            if s.name in self.__dict__:
                object.__setattr__(self, s.name, s.check(getattr(self, s.name)))
