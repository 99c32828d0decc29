# SPDX-License-Identifier: Apache-2.0
"""The report says what the recording holds, and needs no other file."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from answers import make_recording
from PIL import Image

from xsvggt_ros import figures
from xsvggt_ros.config import changed
from xsvggt_ros.recording import Check, check
from xsvggt_ros.report import COLUMNS, headline, html

VOID = {"meta", "img", "source"}


class Page(HTMLParser):
    """Collects pictures and links, and checks that elements nest."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.links, self._open = [], [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag not in VOID:
            self._open.append(tag)
        self.links += [attributes[name] for name in ("href", "src", "srcset") if name in attributes]
        if tag in ("img", "source"):
            self.pictures.append(attributes.get("src") or attributes["srcset"])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag


def decode(picture):
    return Image.open(io.BytesIO(base64.b64decode(picture.removeprefix("data:image/png;base64,"))))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.fixture(scope="module")
def recording():
    return make_recording()


@pytest.fixture(scope="module")
def page(recording):
    return html(recording, check(recording))


def test_everything_is_inside(page):
    parsed = Page(page)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in parsed.links)
    assert "http" not in page
    assert "url(" not in page


def test_there_are_rows_of_pictures_and_two_figures_for_light_and_dark(recording, page):
    pictures = [decode(picture) for picture in Page(page).pictures]
    assert len(pictures) == 4 * COLUMNS + 2 * 2
    assert pictures[0].size == (64, 48)
    assert np.array_equal(np.asarray(pictures[0]), recording.images[0].image)
    assert pictures[COLUMNS].size == (56, 42)


def test_without_ground_truth_its_row_is_left_out(recording):
    page = html(replace(recording, truth=[]), [])
    assert "True depth" not in page
    assert len(Page(page).pictures) == 3 * COLUMNS + 2 * 2


def test_headline_has_the_recorded_numbers(recording):
    numbers = dict(headline(recording))
    before, after = (recording.answers[i].status.cache_bytes / 2**20 for i in (0, -1))
    assert numbers["images sent"] == "10 at 30.0 Hz"
    assert numbers["answered"] == "9; 1 dropped, 0 lost on the way"
    assert numbers["cache memory"] == f"{before:.2f} → {after:.2f} MiB"
    assert numbers["budget of each layer"] == "68 → 34 tokens"
    assert numbers["image to last output"] == "40 ms; 95 % within 40 ms"


def test_random_weights_are_named_and_trained_ones_are_not(recording, page):
    trained = replace(recording, start=changed(recording.start, {"weights": "demo.safetensors"}))
    assert "No trained weights" in page
    assert "No trained weights" not in html(trained, [])
    assert "demo.safetensors" in html(trained, [])


def test_failed_checks_are_named_first_and_in_the_list(recording):
    page = html(recording, [Check("Holds", ""), Check("Breaks", "frame 3: <it> broke")])
    assert "1 of 2 checks failed" in page
    assert "frame 3: &lt;it&gt; broke" in page


def test_text_is_escaped(page):
    assert "a &lt;room&gt;" in page
    assert "<room>" not in page


def test_what_was_set_is_listed_and_nothing_else(page):
    rows = re.findall(r"<tr><td><code>(.*?)</code></td><td>(.*?)</td><td>(?:<b>)?(.*?)(?:</b>)?</td></tr>", page)
    assert rows == [
        ("image_width", "56", ""),
        ("cache.budget_tokens", "68", "34"),
        ("cache.key_bits", "16", "4"),
        ("cache.value_bits", "16", "4"),
    ]


def test_a_recording_without_answers_or_change_can_be_reported(recording):
    silent = replace(recording, played=replace(recording.played, answers=[]))
    unchanged = replace(recording, played=replace(recording.played, answers=recording.answers[:2]))
    for incomplete in (silent, unchanged):
        Page(html(incomplete, check(incomplete)))


def test_false_colours_run_from_low_to_high_and_leave_out_what_is_not_finite():
    values = np.array([[1.0, 3.0, np.nan, 9.0]])
    colours = pixels(figures.false_colour_png(values, 1.0, 3.0, "viridis"))[0].astype(int)
    low, high = (list(bytes.fromhex(figures.colour_stops("viridis")[end][1:])) for end in (0, -1))
    assert np.abs(colours[[0, 1, 3], :3] - [low, high, high]).max() <= 1
    assert list(colours[:, 3]) == [255, 255, 0, 255]


@pytest.mark.parametrize("draw", [figures.path_png, figures.memory_png])
def test_figures_are_transparent_and_follow_the_colour_scheme(recording, draw):
    light, dark = (pixels(draw(recording, scheme)) for scheme in ("light", "dark"))
    assert light.shape == dark.shape
    assert light[0, 0, 3] == 0
    opaque = light[..., 3] == 255
    assert opaque.any()
    assert light[opaque].mean() < dark[opaque].mean()


def test_the_moment_of_the_change_is_drawn(recording):
    def red(r):
        difference = pixels(figures.memory_png(r, "light"))[..., :3] - np.array([0xD1, 0x49, 0x5B])
        return (np.abs(difference).max(-1) < 4).sum()

    before = replace(recording, played=replace(recording.played, answers=recording.answers[: recording.change]))
    assert red(recording) > 1000
    assert red(before) == 0
