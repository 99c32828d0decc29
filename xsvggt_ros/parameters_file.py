# SPDX-License-Identifier: Apache-2.0
"""The node's settings as text, `xsvggt parameters`: config/stream.yaml and the table of parameters."""

import argparse
import json
import textwrap

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.settings import Setting, settings

HEADER = """\
# Every parameter of the node, at its default; a file that sets some of them is enough.
# Written by `xsvggt parameters`.
/**:
  ros__parameters:
"""
INDENT = "    "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="as a table instead of a ROS 2 parameter file")


def run(args: argparse.Namespace) -> int:
    """Prints the parameters; returns the exit code."""
    print(markdown_table() if args.markdown else yaml_text(), end="")
    return 0


def yaml_text() -> str:
    """A ROS 2 parameter file with every setting at its default, each under a comment that explains it."""
    return HEADER + "\n".join(_yaml_entry(setting) for setting in settings(NodeConfig))


def markdown_table() -> str:
    """A Markdown table of every setting: name, default, allowed values, unit, whether it changes live, meaning."""
    rows = ["| parameter | default | allowed | unit | live | meaning |", "|---|---|---|---|---|---|"]
    for s in settings(NodeConfig):
        cells = (f"`{s.name}`", f"`{_scalar(s.default)}`", allowed(s), s.unit, "yes" if s.live else "", s.description)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def allowed(setting: Setting) -> str:
    """The values a setting takes, in words; empty if its type says it all."""
    low, high = setting.minimum, setting.maximum
    if setting.choices:
        return ", ".join(map(str, setting.choices))
    if low is None or high is None:
        return "" if low is None else f"at least {low:.9g}"
    return f"{low:.9g} to {high:.9g}"


def facts(setting: Setting) -> str:
    """What to know about a setting beside its description: allowed values, unit, whether it changes live."""
    limits = f"Allowed: {allowed(setting)}. " if allowed(setting) else ""
    unit = f"Unit: {setting.unit}. " if setting.unit else ""
    return limits + unit + ("Changes live." if setting.live else "Read at start only.")


def _yaml_entry(setting: Setting) -> str:
    comment = [*textwrap.wrap(setting.description, 110), facts(setting)]
    lines = [*(f"# {line}" for line in comment), f"{setting.name}: {_scalar(setting.default)}"]
    return textwrap.indent("\n".join(lines), INDENT) + "\n"


def _scalar(value: bool | int | float | str) -> str:
    return json.dumps(value)  # JSON is YAML, and keeps 0.0 a float and "" a string
