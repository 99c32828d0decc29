# SPDX-License-Identifier: Apache-2.0
"""The documents build as a site, every link of theirs leads somewhere, and a reader fetches nothing from elsewhere."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
from PIL import Image
from support.paths import ROOT

from xsvggt_ros.config import POLICIES

PAPERLESS = {"random", "sliding_window"}

pytestmark = pytest.mark.skipif(find_spec("mkdocstrings") is None, reason="needs the extra docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # --strict: no page is missing in the menu, no link leads nowhere
    return folder


def prose(page):
    """What is written on a page, without its menus."""
    return re.search(r"<article.*?</article>", page.read_text(), re.DOTALL)[0]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_has_a_page_with_its_paper_and_its_code(site, policy):
    page = prose(site / "policies" / f"{policy}.html")
    assert f"cache.policy {policy}" in re.sub(r"<[^>]*>", "", page)
    assert f"xsvggt_ros/cache/policies/{policy}.py" in page
    assert ("https://arxiv.org/abs/" in page) == (policy not in PAPERLESS)


def test_the_public_names_are_described(site):
    page = prose(site / "api.html")
    for name in ("GeometryStream.step", "Frame.points_world", "Frame.save_ply", "StreamConfig", "load_model"):
        assert f'id="xsvggt_ros.{name}"' in page, name


def test_the_notebook_is_there_with_its_pictures_and_what_it_prints(site):
    page = prose(site / "notebook" / "stream.html")
    names = re.findall(r'<img[^>]* src="([^"]*)"', page)
    widths = [Image.open(site / "notebook" / name).width for name in names]
    assert widths == [672, 448, 448]
    assert "636 tokens" in page


def test_links_between_the_files_of_the_project_are_links_between_pages(site):
    assert 'href="recipes.html#replay-without-ros"' in prose(site / "index.html")
    assert 'src="demo.png"' in prose(site / "index.html") and (site / "demo.png").exists()
    assert 'href="ARCHITECTURE.html"' in prose(site / "contributing.html")
    assert "test/test_imports.py" in prose(site / "ARCHITECTURE.html")  # no page: named


def test_a_reader_fetches_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    fetched = re.compile(r'<(?:link|script|img|iframe)[^>]*(?:href|src)="(?:https?:)?//[^"]*"')
    assert len(pages) > 25
    assert [(page.name, found) for page in pages for found in fetched.findall(page.read_text())] == []
