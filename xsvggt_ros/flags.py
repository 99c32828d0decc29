# SPDX-License-Identifier: Apache-2.0
"""Settings as command-line flags: `--name value` under the setting's own dotted name."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from xsvggt_ros.settings import Setting


def add_settings(parser: argparse.ArgumentParser, wanted: Iterable[Setting]) -> None:
    """One flag per setting; those not given leave no trace in the parsed arguments."""
    group = parser.add_argument_group("settings")
    for setting in wanted:
        kind: dict[str, Any] = {"type": setting.type, "choices": setting.choices}
        if setting.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        elif not setting.choices:
            kind["metavar"] = setting.type.__name__.upper()
        group.add_argument(
            f"--{setting.name}", dest=setting.name, default=argparse.SUPPRESS, help=_help(setting), **kind
        )


def given_settings(args: argparse.Namespace, wanted: Iterable[Setting]) -> dict[str, Any]:
    """{name: value} of the flags that were given."""
    given = vars(args)
    return {setting.name: given[setting.name] for setting in wanted if setting.name in given}


def _help(setting: Setting) -> str:
    unit = f" [{setting.unit}]" if setting.unit else ""
    return f"{setting.description}{unit} (default: {setting.default!r})".replace("%", "%%")
