# SPDX-License-Identifier: Apache-2.0
import argparse

import pytest

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.flags import add_settings, given_settings
from xsvggt_ros.settings import changed, settings

SETTINGS = settings(NodeConfig)


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_settings(parser, SETTINGS)
    return given_settings(parser.parse_args(arguments), SETTINGS)


def another(setting):
    """An allowed value that is not the default."""
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if setting.type is bool:
        return not setting.default
    return "other" if setting.type is str else setting.default + 14


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_setting_is_a_flag(setting):
    value = another(setting)
    negated = f"--no-{setting.name}" if value is False else f"--{setting.name}"
    arguments = [negated] if setting.type is bool else [negated, str(value)]
    assert parse(*arguments) == {setting.name: value}
    assert parse() == {}


def test_help_says_description_unit_default_and_choices():
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=10_000))
    add_settings(parser, SETTINGS)
    text = parser.format_help()
    for setting in SETTINGS:
        unit = f" [{setting.unit}]" if setting.unit else ""
        assert f"{setting.description}{unit} (default: {setting.default!r})" in text
    assert "[tokens]" in text and "{1,2,3,4,8,16}" in text


@pytest.mark.parametrize(
    "arguments", [["--cache.key_bits", "5"], ["--cache.budget_tokens", "many"], ["--cache.policy", "best"]]
)
def test_wrong_type_or_choice_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        parse(*arguments)
    assert arguments[0] in capsys.readouterr().err


def test_range_is_checked_by_the_configuration():
    with pytest.raises(ValueError, match=r"cache\.budget_tokens must be between 0"):
        changed(NodeConfig(), parse("--cache.budget_tokens", "-1"))
