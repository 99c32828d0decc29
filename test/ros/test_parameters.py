# SPDX-License-Identifier: Apache-2.0
import pytest

pytest.importorskip("rclpy")

import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.ros.parameters import Parameters
from xsvggt_ros.settings import changed, settings, values


@pytest.fixture
def make_node():
    context = rclpy.Context()
    rclpy.init(context=context)
    nodes = []

    def make(**overrides):
        given = [Parameter(name.replace("__", "."), value=value) for name, value in overrides.items()]
        nodes.append(Node("stream", context=context, parameter_overrides=given))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()
    context.try_shutdown()


def set_all(node, **new):
    return node.set_parameters_atomically([Parameter(name.replace("__", "."), value=v) for name, v in new.items()])


def test_every_setting_is_a_parameter_with_its_default(make_node):
    node = make_node()
    assert Parameters(node).config == NodeConfig()
    assert {name: node.get_parameter(name).value for name in values(NodeConfig())} == values(NodeConfig())


@pytest.mark.parametrize("setting", settings(NodeConfig), ids=lambda setting: setting.name)
def test_descriptor_says_what_the_setting_says(make_node, setting):
    node = make_node()
    Parameters(node)
    descriptor = node.describe_parameter(setting.name)
    assert setting.description in descriptor.description
    assert setting.unit in descriptor.description
    assert ("Read when the node is configured" in descriptor.description) == (not setting.live)
    ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
    if setting.choices:
        assert all(str(choice) in descriptor.additional_constraints for choice in setting.choices)
    elif setting.minimum is not None:
        assert ranges[0].from_value == setting.minimum
        assert setting.maximum in (None, ranges[0].to_value)
    else:
        assert not ranges


def test_initial_values_are_taken(make_node):
    config = Parameters(make_node(queue="all", cache__key_bits=2, cache__budget_mib=1.5, weights="a.pt")).config
    wanted = {"queue": "all", "cache.key_bits": 2, "cache.budget_mib": 1.5, "weights": "a.pt"}
    assert config == changed(NodeConfig(), wanted)


@pytest.mark.parametrize(
    "bad",
    [
        {"cache__budget_tokens": -1},
        {"cache__key_bits": 3},
        {"cache__policy": "best"},
        {"cache__budget_tokens": 0},  # with the policy xstream, and no limit in MiB
        {"cache__budget_mib": 100},  # an integer where a float belongs
        {"image_width": 100},
        {"queue": True},
    ],
    ids=str,
)
def test_bad_initial_value_is_refused_by_name(make_node, bad):
    (name,) = bad
    with pytest.raises(ValueError, match=name.replace("__", ".").split(".")[-1]):
        Parameters(make_node(**bad))


def test_change_replaces_the_configuration_as_a_whole(make_node):
    node = make_node()
    parameters = Parameters(node)
    before = parameters.config
    assert set_all(node, cache__budget_tokens=500, cache__value_bits=2, point_stride=7).successful
    assert before == NodeConfig()
    wanted = {"cache.budget_tokens": 500, "cache.value_bits": 2, "point_stride": 7}
    assert parameters.config == changed(NodeConfig(), wanted)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"cache__key_bits": 5}, "one of 2, 4, 8, 16, got 5"),
        ({"confidence_threshold": float("nan")}, "confidence_threshold"),
        ({"point_stride": 0}, "point_stride"),
        ({"cache__policy": 3}, "type"),
        ({"cache__budget_mib": None}, "undeclared"),
        ({"cache__budget_tokens": 0}, "needs a budget"),
    ],
    ids=str,
)
def test_bad_change_is_refused_with_the_reason_and_changes_nothing(make_node, bad, reason):
    node = make_node()
    parameters = Parameters(node)
    result = set_all(node, path_length=5, **bad)
    assert not result.successful
    assert reason in result.reason
    assert parameters.config == NodeConfig()
    assert node.get_parameter("path_length").value == NodeConfig().path_length


def test_what_is_read_when_the_node_is_configured_waits_for_that(make_node):
    node = make_node()
    parameters = Parameters(node)
    assert set_all(node, weights="a.pt").successful
    parameters.in_use = True
    result = set_all(node, weights="b.pt", device="cpu", point_stride=3)
    assert not result.successful
    assert "weights, device can only change before the node is configured: `ros2 lifecycle set /stream" in result.reason
    assert parameters.config == changed(NodeConfig(), {"weights": "a.pt"})
    assert set_all(node, weights="a.pt", point_stride=3).successful  # no change of what is fixed


def test_parameters_of_others_pass(make_node):
    node = make_node()
    parameters = Parameters(node)
    node.declare_parameter("other", 1)
    assert set_all(node, other=2, use_sim_time=False).successful
    assert parameters.config == NodeConfig()


def test_changes_apply_on_humble_too(make_node, monkeypatch):
    """Humble's rclpy has no post-set callbacks."""
    monkeypatch.delattr(Node, "add_post_set_parameters_callback")
    node = make_node()
    parameters = Parameters(node)
    assert set_all(node, cache__budget_tokens=500).successful
    assert parameters.config.stream.cache.budget_tokens == 500
    assert not set_all(node, cache__key_bits=8, cache__value_bits=3).successful
    assert parameters.config.stream.cache.key_bits == 4
