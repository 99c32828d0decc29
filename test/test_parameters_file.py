# SPDX-License-Identifier: Apache-2.0
import argparse

import pytest
import yaml
from support.paths import ROOT

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.parameters_file import markdown_table, run, yaml_text
from xsvggt_ros.settings import settings, values


def test_yaml_file_in_the_repository_is_up_to_date():
    assert (ROOT / "config" / "stream.yaml").read_text() == yaml_text(), "xsvggt parameters > config/stream.yaml"


def test_documentation_shows_the_table():
    shown = (ROOT / "docs" / "parameters.md").read_text()
    assert shown.startswith("# Parameters\n")
    assert shown.endswith("\n\n" + markdown_table()), "xsvggt parameters --markdown"


def test_command_prints_either(capsys):
    run(argparse.Namespace(markdown=False))
    run(argparse.Namespace(markdown=True))
    assert capsys.readouterr().out == yaml_text() + markdown_table()


def test_yaml_holds_every_default_with_its_type():
    loaded = yaml.safe_load(yaml_text())["/**"]["ros__parameters"]
    assert loaded == values(NodeConfig())
    assert {name: type(value) for name, value in loaded.items()} == {s.name: s.type for s in settings(NodeConfig)}


@pytest.mark.parametrize("setting", settings(NodeConfig), ids=lambda setting: setting.name)
def test_comment_says_what_a_user_needs(setting):
    above, _ = yaml_text().split(f"    {setting.name}: ")
    comment = " ".join(line.strip().removeprefix("# ") for line in above.rsplit("\n\n", 1)[-1].splitlines())
    assert setting.description in comment
    assert setting.unit in comment
    assert all(str(choice) in comment for choice in setting.choices or ())
    assert ("Changes live." in comment) == setting.live


def test_ros_reads_the_file():
    rclpy = pytest.importorskip("rclpy")
    context = rclpy.Context()
    rclpy.init(args=["--ros-args", "--params-file", str(ROOT / "config" / "stream.yaml")], context=context)
    node = rclpy.create_node("stream", context=context, automatically_declare_parameters_from_overrides=True)
    try:
        assert {name: node.get_parameter(name).value for name in values(NodeConfig())} == values(NodeConfig())
    finally:
        node.destroy_node()
        context.try_shutdown()
