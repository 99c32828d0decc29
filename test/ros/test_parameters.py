# SPDX-License-Identifier: Apache-2.0
import pytest

pytest.importorskip("rclpy")

import rclpy
from rclpy.impl.rcutils_logger import RcutilsLogger
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
        {"cache__key_bits": 5},
        {"cache__policy": "best"},
        {"cache__budget_frames": 0},  # with the policy coreset, and no other limit
        {"image_width": 100},
        {"queue": True},
        {"device": 0},
        {"publish_tf": 1},
        {"point_stride": 2.5},
        {"path_length": 1e300},
        {"confidence_threshold": "high"},
        {"max_gap": float("nan")},
        {"world_frame": [1, 2]},
        {"base_frame": "/odom"},  # which is world_frame
    ],
    ids=str,
)
def test_bad_initial_value_is_refused_by_name(make_node, bad):
    (name,) = bad
    with pytest.raises(ValueError, match=name.replace("__", ".").split(".")[-1]):
        Parameters(make_node(**bad))


WHOLE = {"target_latency_ms": 100, "cache__budget_mib": 8, "cache__budget_tokens": 3e3, "cache__key_bits": 8.0}


def check_whole_numbers(node, parameters):
    for name, value in WHOLE.items():
        name = name.replace("__", ".")
        wanted = type(values(NodeConfig())[name])
        assert (values(parameters.config)[name], type(values(parameters.config)[name])) == (value, wanted)
        assert type(node.get_parameter(name).value) is wanted
        assert node.describe_parameter(name).type == node.get_parameter(name).type_.value


def test_a_whole_number_is_taken_for_either_type_of_numbers_at_the_start(make_node):
    node = make_node(**WHOLE)
    check_whole_numbers(node, Parameters(node))


def test_a_whole_number_is_taken_for_either_type_of_numbers_as_a_change(make_node):
    node = make_node()
    parameters = Parameters(node)
    assert set_all(node, **WHOLE).successful
    check_whole_numbers(node, parameters)


def test_frames_are_named_as_in_tf2(make_node):
    node = make_node(world_frame="/map")
    parameters = Parameters(node)
    assert set_all(node, base_frame="/base_link ").successful
    assert (parameters.config.world_frame, parameters.config.base_frame) == ("map", "base_link")
    assert node.get_parameter("world_frame").value == "map"
    assert not set_all(node, world_frame="/").successful


@pytest.fixture
def warnings(monkeypatch):
    """What the nodes warn of."""
    said = []
    monkeypatch.setattr(RcutilsLogger, "warning", lambda _, message, **__: said.append(message))
    return said


def test_unknown_names_are_said_with_the_nearest_known(make_node, warnings):
    qos = {"qos_overrides./image.subscription.reliability": "best_effort"}
    node = make_node(
        cache__budget_tokns=500, gibberish=1, use_sim_time=False, start_type_description_service=True, **qos
    )
    assert Parameters(node).config == NodeConfig()
    hint = "cache.budget_tokns (did you mean cache.budget_tokens?), gibberish"
    assert warnings == [f"parameters ignored, unknown here: {hint}"]


def test_known_names_are_not_warned_of(make_node, warnings):
    Parameters(make_node(**WHOLE, use_sim_time=False))
    assert not warnings


def test_the_unknown_name_is_said_before_what_it_brings_about(make_node, warnings):
    with pytest.raises(ValueError, match="needs a budget"):
        Parameters(make_node(cache__policy_="full", cache__budget_frames=0))
    assert "did you mean cache.policy?" in warnings[0]


CONTRADICTIONS = [
    [("cache__budget_frames", 0), ("cache__budget_mib", 40.0)],
    [("cache__budget_frames", 0), ("cache__policy", "full")],
    [("cache__camera_window", 0), ("cache__budget_mib", 0.0), ("cache__budget_tokens", 100)],
    [("base_frame", "odom"), ("world_frame", "map")],
    [("scale__source", "tf"), ("scale__parent_frame", "odom"), ("scale__child_frame", "base_link")],
    [("scale__child_frame", "a"), ("scale__source", "tf"), ("scale__parent_frame", "a"), ("scale__parent_frame", "b")],
]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("changes", CONTRADICTIONS, ids=str)
def test_settings_that_depend_on_each_other_change_one_after_the_other(make_node, warnings, changes, backwards):
    node = make_node(cache__budget_mib=8.0) if "cache__camera_window" in dict(changes) else make_node()
    parameters = Parameters(node)
    changes = list(dict(changes).items())
    for name, value in reversed(changes) if backwards else changes:
        before = parameters.config
        assert set_all(node, **{name: value}).successful
        assert node.get_parameter(name.replace("__", ".")).value == value
        if parameters.config == before:  # waits, which is said
            assert name.replace("__", ".") in warnings.pop()
    wanted = {name.replace("__", "."): value for name, value in changes}
    assert wanted.items() <= values(parameters.config).items()
    assert parameters.settled() == parameters.config


def test_a_contradiction_waits_and_holds_nothing_else_up(make_node, warnings):
    node = make_node()
    parameters = Parameters(node)
    assert set_all(node, cache__budget_frames=0).successful
    assert parameters.config == NodeConfig()
    assert "not in force yet: cache.budget_frames; cache.policy coreset needs a budget: set" in warnings[0]
    assert set_all(node, point_stride=7).successful
    assert parameters.config == changed(NodeConfig(), {"point_stride": 7})
    assert len(warnings) == 1  # nothing new waits
    assert not set_all(node, path_length=0).successful  # what is wrong by itself is refused all the same
    with pytest.raises(ValueError, match="needs a budget"):
        parameters.settled()
    assert set_all(node, cache__budget_tokens=500).successful
    assert parameters.config == parameters.settled()
    assert parameters.config == changed(
        NodeConfig(), {"point_stride": 7, "cache.budget_frames": 0, "cache.budget_tokens": 500}
    )


def test_what_does_not_fit_what_is_loaded_is_refused_with_the_reason(make_node):
    node = make_node()
    parameters = Parameters(node)
    asked = []

    def check(config):
        asked.append(config.stream.cache.budget_tokens)
        if config.stream.cache.budget_tokens > 10**6:
            raise ValueError("too large; lower it")

    parameters.check = check
    refused = set_all(node, cache__budget_tokens=10**9, point_stride=7)
    assert (refused.successful, refused.reason) == (False, "too large; lower it")
    assert parameters.config == NodeConfig()
    assert node.get_parameter("cache.budget_tokens").value == NodeConfig().stream.cache.budget_tokens
    assert set_all(node, cache__budget_tokens=10**5).successful
    contradiction = dict(cache__budget_frames=0, cache__budget_tokens=0)
    assert set_all(node, **contradiction).successful  # waits, and what stays in force is checked
    assert asked == [10**9, 10**5, 10**5]
    parameters.check = None
    assert set_all(node, cache__budget_tokens=10**9).successful


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
        ({"cache__key_bits": 5}, "one of 1, 2, 3, 4, 8, 16, got 5"),
        ({"confidence_threshold": float("nan")}, "confidence_threshold"),
        ({"point_stride": 0}, "point_stride"),
        ({"cache__policy": 3}, "cache.policy must be of type str, got 3; put text in quotes"),
        ({"device": 0}, "device must be of type str, got 0; put text in quotes"),
        ({"world_frame": True}, "world_frame must be of type str, got True"),
        ({"publish_tf": 1}, "publish_tf must be of type bool, got 1"),
        ({"cache__budget_tokens": 3000.5}, "cache.budget_tokens must be of type int, got 3000.5"),
        ({"cache__budget_tokens": -1.0}, "cache.budget_tokens must be between 0 and"),
        ({"cache__budget_mib": None}, "cache.budget_mib must be of type float, got None; it cannot be unset"),
        ({"point_stride": 1e300}, "point_stride must be of type int"),
    ],
    ids=str,
)
def test_bad_change_is_refused_with_the_reason_and_changes_nothing(make_node, bad, reason):
    node = make_node()
    parameters = Parameters(node)
    result = set_all(node, path_length=5, **bad)
    assert not result.successful
    assert reason in result.reason
    assert parameters.config == parameters.settled() == NodeConfig()
    for name in bad:
        parameter = node.get_parameter(name.replace("__", "."))
        assert parameter.value == values(NodeConfig())[parameter.name]
        assert node.describe_parameter(parameter.name).type == parameter.type_.value
    assert node.get_parameter("path_length").value == NodeConfig().path_length


def test_what_is_read_when_the_node_is_configured_waits_for_that(make_node):
    node = make_node()
    parameters = Parameters(node)
    assert set_all(node, weights="a.pt").successful
    parameters.check = lambda config: None
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
    assert set_all(node, cache__budget_frames=0, cache__budget_tokens=0).successful  # waits
    assert set_all(node, cache__budget_mib=40).successful
    assert parameters.config.stream.cache.budget_mib == 40.0
    assert not set_all(node, cache__key_bits=8, cache__value_bits=5).successful
    assert parameters.config.stream.cache.key_bits == NodeConfig().stream.cache.key_bits
