# SPDX-License-Identifier: Apache-2.0
import math

import pytest
from support.caches import shape_of

from xsvggt_ros.cache.policies import make_policy
from xsvggt_ros.config import POLICIES, CacheConfig, NodeConfig, StreamConfig
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


def test_all_cache_settings_and_no_model_settings_are_live():
    for s in settings(StreamConfig):
        assert s.live == s.name.startswith("cache."), s.name


def test_changes_reach_nested_groups_and_leave_the_rest():
    config = changed(NodeConfig(), {"cache.budget_tokens": 10, "queue": "all"})
    assert (config.stream.cache.budget_tokens, config.queue) == (10, "all")
    rest = {name: value for name, value in values(config).items() if name not in ("cache.budget_tokens", "queue")}
    assert rest.items() <= values(NodeConfig()).items()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cache.policy": "best"}, "cache.policy must be one of xstream"),
        ({"cache.key_bits": 3}, "cache.key_bits must be one of 2, 4, 8, 16"),
        ({"cache.key_bits": "4"}, "cache.key_bits must be of type int"),
        ({"cache.budget_tokens": -1}, "cache.budget_tokens must be between 0 and 1000000000000 tokens"),
        ({"cache.budget_tokens": 0}, "policy xstream needs a budget"),
        ({"cache.budget_mib": 8.0, "cache.camera_window": 0}, "cache.budget_mib holds for the camera head's cache"),
        ({"cache.budget_mib": math.nan}, "cache.budget_mib must be between"),
        ({"cache.pin_first_frame": 1}, "must be of type bool"),
        ({"image_width": 500}, "try 490 or 504"),
        ({"colour": 1}, "unknown setting: colour"),
        ({"world_frame": ""}, "world_frame must have a name of its own"),
        ({"base_frame": "odom"}, "world_frame must have a name of its own, got 'odom' beside base_frame 'odom'"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_the_reason(change, reason):
    with pytest.raises(ValueError, match=reason):
        changed(NodeConfig(), change)


def test_a_whole_number_will_do_for_a_float():
    assert changed(NodeConfig(), {"cache.budget_mib": 64}).stream.cache.budget_mib == 64.0


def test_every_policy_can_be_made():
    for name in POLICIES:
        assert make_policy(CacheConfig(policy=name), shape_of(10)).floor() >= 0
