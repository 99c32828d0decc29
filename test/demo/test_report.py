# SPDX-License-Identifier: Apache-2.0
"""The report says what the recording holds, and needs no other file."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from support.answers import NEARER, make_recording, shortened

from xsvggt_ros.demo import figures, pictures
from xsvggt_ros.demo.recording import Check, check
from xsvggt_ros.demo.report import COLUMNS, headline, html
from xsvggt_ros.pictures import false_colour, png
from xsvggt_ros.settings import changed

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
    return Image.open(io.BytesIO(base64.b64decode(picture.partition(";base64,")[2])))


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
    assert all(link.startswith(("data:image/png;base64,", "data:image/webp;base64,", "#")) for link in parsed.links)
    assert "http" not in re.sub("base64,[A-Za-z0-9+/=]+", "", page)  # which the bytes of a picture may spell
    assert "url(" not in page


def test_points_are_drawn_with_the_way_they_came_unless_they_are_hidden(recording):
    """One of the two that every answer has moves to the right by a pixel from image to image."""
    drawn, sent = pictures.followed(recording, 4), recording.images[recording.answers[4].image].image
    rows, columns = np.nonzero((drawn != sent).any(-1))
    here = recording.answers[4].image + 10
    assert abs(rows - 20).max() <= 3
    assert (columns.min(), columns.max()) == pytest.approx((10, here + 2), abs=1)


def test_there_are_a_film_rows_of_pictures_and_two_figures_for_light_and_dark(recording, page):
    film, light, dark, *stills = [decode(picture) for picture in Page(page).pictures]
    assert film.n_frames == len(recording.answers)
    assert film.size == (3 * 64, 48)
    assert light.size == dark.size
    assert len(stills) == 5 * COLUMNS + 2
    assert stills[0].size == (64, 48)
    assert np.array_equal(np.asarray(stills[0]), pictures.followed(recording, 0))
    assert stills[2 * COLUMNS].size == (56, 42)


def test_without_ground_truth_all_that_is_about_it_is_left_out(recording):
    page = html(replace(recording, truth=[], unchanged=[]), [])
    assert "No truth" in page
    for text in ("True depth", "AbsRel", "standing still", "had nothing changed", "metres"):
        assert text not in page
    assert len(Page(page).pictures) == 1 + 2 + 3 * COLUMNS + 2


def test_true_and_estimated_depth_have_one_scale(page):
    labels = re.findall(r"<b>(True depth|Depth|Error)</b>", page)
    ends = re.findall(r'<div class="scale"><span>([\d.]+)</span><i[^>]*></i><span>([\d.]+)</span>', page)
    assert labels == ["True depth", "Depth", "Error"]
    assert ends[0] == ends[1]
    assert ends[2] == ("0.5", "0")


def test_headline_has_the_recorded_numbers(recording):
    numbers = dict(headline(recording))
    before, after = (recording.answers[i].status.cache_bytes / 2**20 for i in (0, -1))
    assert numbers["images answered"] == "9 of 10; sent at 30.0 Hz, 1 replaced by newer ones, 0 lost on the way"
    memory = f"{before:.2f} → {after:.2f} MiB"
    assert numbers["cache memory"] == f"{memory}; 68 tokens at 16 bits → 34 tokens at 4 bits"
    assert numbers["image to last output"] == "40 ms; 95 % within 40 ms"
    still = recording.comparison.trivial.centre.mean()
    assert numbers["position off by"] == f"{NEARER * still:.2f} m; standing still: {still:.2f} m"
    assert numbers["depth within 25 %"].startswith("100.0 %; a constant: ")


def test_the_table_sets_what_the_change_did_beside_what_would_have_been(page):
    rows = {name: cells for name, *cells in re.findall(r"<tr>" + r"<td>([^<]*)</td>" * 6 + "</tr>", page)}
    depth = rows["depth off by (AbsRel)"]
    assert (depth[0], depth[2], depth[3]) == ("10.0 %", "20.0 %", "10.0 %")
    assert rows["rotation off by"][0] == "0.0°"
    assert rows["cache"][1] == rows["step"][3] == ""


def test_what_the_weights_are_is_said(recording, page):
    def page_with(weights):
        return html(replace(recording, start=changed(recording.start, {"weights": weights})), [])

    assert "Random weights" in page_with("random")
    assert "Random weights" not in page
    assert "my.safetensors" in page_with("my.safetensors")


def test_the_demo_model_on_recorded_images_is_said_to_know_none(recording):
    recorded = replace(recording, truth=[], unchanged=[])
    assert "only seen synthetic rooms" in html(recorded, [])
    assert "only seen synthetic rooms" not in html(
        replace(recorded, start=changed(recorded.start, {"model": "streamvggt"})), []
    )


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
    silent, unchanged = shortened(recording, slice(0)), shortened(recording, slice(2))
    for incomplete in (silent, unchanged):
        Page(html(incomplete, check(incomplete)))
    assert dict(headline(unchanged))["ATE"].startswith("undefined of 2 answers; Sim(3) aligned")


def test_false_colours_run_from_low_to_high_and_leave_out_what_is_not_finite():
    values = np.array([[1.0, 3.0, np.nan, 9.0]])
    colours = pixels(png(false_colour(values, 1.0, 3.0, "viridis")))[0].astype(int)
    low, high = (list(bytes.fromhex(pictures.colour_stops("viridis")[end][1:])) for end in (0, -1))
    assert np.abs(colours[[0, 1, 3], :3] - [low, high, high]).max() <= 1
    assert list(colours[:, 3]) == [255, 255, 0, 255]


@pytest.mark.parametrize("draw", [figures.map_png, figures.timeline_png])
def test_figures_are_transparent_and_follow_the_colour_scheme(recording, draw):
    light, dark = (pixels(draw(recording, scheme)) for scheme in ("light", "dark"))
    assert light.shape == dark.shape
    assert light[0, 0, 3] == 0
    opaque = light[..., 3] == 255
    assert opaque.any()
    assert light[opaque].mean() < dark[opaque].mean()


def test_the_moment_of_the_change_is_drawn(recording):
    def red(r):
        difference = pixels(figures.timeline_png(r, "light"))[..., :3] - np.array([0xD1, 0x49, 0x5B])
        return (np.abs(difference).max(-1) < 4).sum()

    before = shortened(recording, slice(recording.change))
    assert red(recording) > 1000
    assert red(before) == 0
