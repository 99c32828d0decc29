# SPDX-License-Identifier: Apache-2.0
"""`xsvggt live` in a real browser."""

import re
from contextlib import contextmanager

import pytest

pytest.importorskip("viser", reason="the extra `live` is not installed")

from support.browser import browser
from support.live_page import LiveProcess
from support.recordings import write_folder

from xsvggt_ros.config import CacheConfig
from xsvggt_ros.live.controls import label
from xsvggt_ros.memory import MIB
from xsvggt_ros.settings import settings, values

OF_CACHE = settings(CacheConfig)
BUTTONS = {"Reset", "Pause", "Save map"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images") / "images", 600)


@pytest.fixture(scope="module")
def user():
    with browser() as user:
        yield user


@contextmanager
def live(images, tmp_path, *flags):
    process = LiveProcess(images, tmp_path / "output.txt", "--rate", "10", *flags)
    try:
        yield process
    finally:
        assert process.end() == 0, process.output()


def number(text):
    return float(re.search(r"[\d.]+", text)[0])


def points(user):
    found = re.search(r"(\d+) points", user.figure("page"))
    return int(found[1]) if found else 0


def labels(user):
    """Of the inputs for settings of the cache, whose folder is open."""
    return set(user.labels()) & {label(setting) for setting in OF_CACHE}


def acting(**changes):
    """What they should be, beside these values."""
    now = values(CacheConfig(**changes))
    return {label(setting) for setting in OF_CACHE if setting.acts(now)}


def test_a_user_sees_the_stream_and_controls_it(user, images, tmp_path):
    from selenium.webdriver.common.keys import Keys

    record = tmp_path / "scene.html"
    with live(images, tmp_path, "--control", "--record", str(record)) as process:
        user.open(process.address)
        user.until(lambda: points(user) > 500)
        user.until(lambda: user.drawn() > 0.01)
        assert user.buttons() >= BUTTONS
        before = number(user.figure("cache"))
        assert "848 tokens" in user.figure("cache")
        assert "coreset" in user.figure("policy")
        user.press("Settings")
        slider = user.slider("budget_frames")
        assert labels(user) == acting()
        user.choose("policy", "xstream")
        user.until(lambda: labels(user) == acting(policy="xstream"))
        user.choose("policy", "coreset")
        user.until(lambda: labels(user) == acting())
        assert [slider.get_attribute(f"aria-value{what}") for what in ("min", "now", "max")] == ["0", "16", "64"]
        slider.send_keys(Keys.ARROW_LEFT * 80)  # of 0.1 frames each
        user.until(lambda: "cache.budget_frames = 8.0 from the next image on" in user.text())
        slider.send_keys(Keys.HOME)
        user.until(lambda: "refused: cache.budget_frames = 0.0: cache.policy coreset needs a budget" in user.text())
        user.until(lambda: user.slider("budget_frames").get_attribute("aria-valuenow") == "8")
        user.press("Now")
        user.until(lambda: "of 424" in user.figure("cache"))
        user.until(lambda: number(user.figure("cache")) < 0.85 * before)
        user.press("Reset")
        user.until(lambda: "1 resets" in user.figure("images"))
        user.press("Pause")
        user.until(lambda: "images wait until Continue is pressed" in user.text())
        user.until(lambda: "Continue" in user.buttons() and "Pause" not in user.buttons())
        user.until(lambda: user.figure("paused") == "images wait")
        assert re.fullmatch(r"\d+ of 600 images", user.figure("recording"))
        user.press("Save map")
        user.until(lambda: "refused: Save map: no folder is set for maps" in user.text())
    assert record.stat().st_size > MIB // 2
    user.open(record.as_uri())
    user.until(lambda: user.drawn() > 0.01)


def test_a_page_says_that_the_recording_has_ended(user, images, tmp_path):
    with live(images, tmp_path, "--control", "--max-frames", "3") as process:
        user.open(process.address)
        user.until(lambda: user.figure("recording") == "ended, 3 of 3 images")
        user.press("Pause")
        user.until(lambda: "refused: Pause: the recording has ended" in user.text())
        assert not user.figure("paused")


def test_a_page_that_only_shows_has_nothing_to_set(user, images, tmp_path):
    with live(images, tmp_path) as process:
        user.open(process.address)
        user.until(lambda: points(user) > 500)
        user.press("Settings")
        user.until(lambda: user.figure("budget_frames") == "16.0")
        assert labels(user) == set()
        assert "Cloud" in user.buttons() and not BUTTONS & user.buttons()
        user.press("Now")
        user.until(lambda: user.figure("page").endswith("; 1 browser"))
        for view in ("From above", "Fit"):
            user.press(view)
            user.until(lambda: user.drawn() > 0.01)
        assert "refused" not in user.text()


def test_a_page_for_others_opens_with_its_token_only(user, images, tmp_path):
    with live(images, tmp_path, "--host", "0.0.0.0") as process:
        here = re.sub(r"//[^:]+", "//127.0.0.1", process.address)
        user.open(here.partition("?")[0])
        assert "with the token" in user.text()
        user.open(here)
        user.until(lambda: points(user) > 500)
        assert "token" not in user.chrome.current_url
