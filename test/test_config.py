# SPDX-License-Identifier: Apache-2.0
import inspect
import math
import re
from dataclasses import replace

import pytest
from support.caches import shape_of

from xsvggt_ros.cache.policies import BY_NAME, make_policy
from xsvggt_ros.config import POLICIES, CacheConfig, NodeConfig, ScaleConfig, StreamConfig
from xsvggt_ros.placement.scale import make_scale
from xsvggt_ros.settings import changed, settings, values


def test_every_setting_says_what_it_is():
    found = settings(NodeConfig)
    assert len({s.name for s in found}) == len(found)
    for s in found:
        assert s.description.endswith(".") or s.description.endswith(")"), s.name
        assert s.check(s.default) == s.default


def test_names_are_those_of_the_values():
    assert list(values(NodeConfig())) == [s.name for s in settings(NodeConfig)]
    assert values(NodeConfig()) == {s.name: s.default for s in settings(NodeConfig)}


def test_no_setting_is_also_the_group_of_others():
    """Tools that write parameters as nested YAML, as `ros2 param dump`, could not say both."""
    names = [s.name for s in settings(NodeConfig)]
    assert not [(name, other) for name in names for other in names if other.startswith(f"{name}.")]


def test_all_settings_of_cache_segments_loops_and_refining_and_none_of_the_model_are_live():
    for s in settings(StreamConfig):
        assert s.live == (s.name.startswith(("cache.", "segment.", "loop.")) or s.name == "refine"), s.name


def test_changes_reach_nested_groups_and_leave_the_rest():
    config = changed(NodeConfig(), {"cache.budget_tokens": 10, "queue": "all"})
    assert (config.stream.cache.budget_tokens, config.queue) == (10, "all")
    rest = {name: value for name, value in values(config).items() if name not in ("cache.budget_tokens", "queue")}
    assert rest.items() <= values(NodeConfig()).items()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cache.policy": "best"}, "cache.policy must be one of coreset, xstream"),
        ({"cache.key_bits": 5}, "cache.key_bits must be one of 1, 2, 3, 4, 8, 16"),
        ({"cache.key_bits": "4"}, "cache.key_bits must be of type int"),
        ({"cache.budget_tokens": -1}, "cache.budget_tokens must be between 0 and 1000000000000 tokens"),
        ({"cache.budget_frames": 0}, "policy coreset needs a budget"),
        ({"cache.budget_mib": 8.0, "cache.camera_window": 0}, "cache.budget_mib holds for the camera head's cache"),
        ({"cache.budget_mib": math.nan}, "cache.budget_mib must be between"),
        ({"cache.pin_first_frame": 1}, "must be of type bool"),
        ({"image_width": 500}, "try 490 or 504"),
        ({"colour": 1}, "unknown setting: colour"),
        ({"image_width": 500.5}, "image_width must be of type int, got 500.5"),
        ({"cache.budget_tokns": 500}, r"unknown setting: cache.budget_tokns \(did you mean cache.budget_tokens\?\)$"),
        ({"device": 0}, "device must be of type str, got 0; put text in quotes"),
        ({"world_frame": True}, "world_frame must be of type str, got True; put text in quotes"),
        ({"publish_tf": "on"}, "publish_tf must be of type bool, got 'on'; it is true or false"),
        ({"target_latency_ms": True}, "target_latency_ms must be of type float, got True"),
        ({"target_latency_ms": None}, "target_latency_ms must be of type float, got None; it cannot be unset, 0.0 is"),
        ({"weights": None}, "weights must be of type str, got None; it cannot be unset, '' is usual"),
        ({"point_stride": 1e300}, r"point_stride must be of type int, got 1e\+300"),
        ({"cache.seed": float(2**53 + 2)}, "cache.seed must be of type int"),
        ({"world_frame": ""}, "world_frame must name a frame, for example odom; got ''"),
        ({"world_frame": " / "}, "world_frame must name a frame"),
        ({"base_frame": "odom"}, "world_frame must have a name of its own, got 'odom' beside base_frame 'odom'"),
        ({"base_frame": "/odom"}, "world_frame must have a name of its own, got 'odom' beside base_frame 'odom'"),
        ({"scale.source": "tf", "scale.parent_frame": "odom", "scale.child_frame": "/"}, "needs the two frames"),
        ({"scale.parent_frame": "/odom", "scale.child_frame": "odom"}, "scale.child_frame must be another frame than"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_the_reason(change, reason):
    with pytest.raises(ValueError, match=reason):
        changed(NodeConfig(), change)


def test_a_whole_number_will_do_for_a_float():
    assert changed(NodeConfig(), {"cache.budget_mib": 64}).stream.cache.budget_mib == 64.0


def test_a_float_that_is_whole_will_do_for_a_whole_number():
    tokens = changed(NodeConfig(), {"cache.budget_tokens": 3e3}).stream.cache.budget_tokens
    assert (tokens, type(tokens)) == (3000, int)


@pytest.mark.parametrize(
    "name", ["world_frame", "base_frame", "camera_frame", "scale.parent_frame", "scale.child_frame"]
)
def test_frames_are_named_as_in_tf2(name):
    assert values(changed(NodeConfig(), {name: "/left/camera "}))[name] == "left/camera"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("target_latency_ms", "100", 100.0),
        ("cache.budget_tokens", "3e3", 3000),
        ("seed", "9007199254740993", 2**53 + 1),  # which no float is
        ("publish_tf", "False", False),
        ("rectify", "on", True),
        ("device", "0", "0"),
    ],
)
def test_a_text_is_read_as_the_settings_type(name, text, value):
    setting = next(s for s in settings(NodeConfig) if s.name.endswith(name))
    parsed = setting.parse(text)
    assert (parsed, type(parsed)) == (value, setting.type)


@pytest.mark.parametrize(
    ("name", "text"), [("point_stride", "2.5"), ("point_stride", ""), ("max_gap", "5 s"), ("rectify", "maybe")]
)
def test_a_text_that_means_no_value_is_refused_by_name(name, text):
    setting = next(s for s in settings(NodeConfig) if s.name == name)
    with pytest.raises(ValueError, match=f"{name} must be of type {setting.type.__name__}, got {text!r}"):
        setting.parse(text)


def test_every_policy_can_be_made():
    for name in POLICIES:
        assert make_policy(CacheConfig(policy=name), shape_of(10)).floor() >= 0


def test_where_settings_of_policies_act_is_what_these_go_by():
    read: dict[str, set[str]] = {}
    for name, policy in BY_NAME.items():
        names = re.findall(r"self\.config\.(\w+)", inspect.getsource(inspect.getmodule(policy)))
        for setting in {*names, *["per_head"] * policy.chooses_by_head} - {"chunk"}:  # which is everybody's
            read.setdefault(setting, set()).add(name)
    of_policies = [s for s in settings(CacheConfig) if s.where and s.where.name == "policy"]
    assert {s.name: set(s.where.values) for s in of_policies if not s.where.but} == read
    idle = {s.name: set(s.where.values) for s in of_policies if s.where.but}
    alike = {name for name, policy in BY_NAME.items() if policy.same_in_all_layers}
    assert idle == {"layer_budgets": alike | {"full"}, "adaptive": {"full"}}


def test_a_setting_says_where_it_acts():
    by_name = {s.name: s for s in settings(NodeConfig)}
    assert by_name["cache.probes"].description.startswith("policy coreset, stac, output_aware: patches")
    assert by_name["cache.layer_budgets"].description.startswith("any policy but frame_bank, full: how tokens")
    now = values(NodeConfig())
    acting = {name for name, setting in by_name.items() if setting.acts(now)}
    assert {"cache.probes", "cache.layer_budgets", "cache.policy"} <= acting
    assert acting.isdisjoint({"cache.seed", "cache.intake_degrees", "scale.factor", "scale.window"})
    acting = {name for name, setting in by_name.items() if setting.acts(now | {"cache.policy": "frame_bank"})}
    assert acting.isdisjoint({"cache.probes", "cache.layer_budgets"}) and "cache.adaptive" in acting


@pytest.mark.parametrize("source", ["none", "fixed"])
def test_where_nothing_is_measured_only_what_acts_on_the_scale_changes_it(source):
    config = ScaleConfig(source=source)
    scale_of = lambda config: repr(make_scale(config).update(None, 0, None, config))  # noqa: E731
    others = {"factor": 2.0, "camera_height": 2.0, "parent_frame": "odom", "child_frame": "base"}
    others |= {"window": 7, "min_motion": 0.5}
    for s in settings(ScaleConfig):
        if s.name != "source":
            same = scale_of(replace(config, **{s.name: others[s.name]})) == scale_of(config)
            assert same is not s.acts(values(config)), s.name


def test_settings_act_beside_values_that_there_are():
    choices = {s.name: s.choices for s in settings(NodeConfig)}
    for s in settings(NodeConfig):
        assert s.where is None or set(s.where.values) < set(choices[s.where.name]), s.name
