# SPDX-License-Identifier: Apache-2.0
import pytest

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.names import frame_name, nearest, unknown_names
from xsvggt_ros.settings import values

KNOWN = list(values(NodeConfig()))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("camera", "camera"),
        ("/camera", "camera"),
        ("//camera", "camera"),
        (" /camera\n", "camera"),
        ("/robot/camera link", "robot/camera link"),
        ("/", ""),
        (" ", ""),
        ("", ""),
    ],
)
def test_a_frames_name_is_that_of_tf2(written, name):
    assert frame_name(written) == name


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cache.budget_tokns", "cache.budget_tokens"),
        ("budget_tokens", "cache.budget_tokens"),  # without its group
        ("seed", "cache.seed"),
        ("cache/key-bits", "cache.key_bits"),
        ("stream.cache.policy", "cache.policy"),
        ("World_Frame", "world_frame"),
        ("targetLatencyMs", "target_latency_ms"),
        ("gibberish", ""),
        ("cache.gibberish", ""),
        ("use_sim_time", ""),
    ],
)
def test_the_nearest_name_is_the_one_that_was_meant(written, meant):
    assert nearest(written, KNOWN) == meant


def test_a_message_has_each_unknown_name_with_its_hint():
    assert unknown_names(["worldframe", "gibberish"], KNOWN) == "gibberish, worldframe (did you mean world_frame?)"
