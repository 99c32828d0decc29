# SPDX-License-Identifier: Apache-2.0
"""What the documents refer to is there."""

import re

import pytest
from support.imports import PACKAGE
from support.paths import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md")), PACKAGE / "weights" / "README.md"]
documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def prose(text):
    """Without fenced blocks, whose comments look like headings."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document):
    """The relative links of a document that lead to no file, or to no heading in one."""
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", prose(document.read_text()))
    targets = [((document.parent / name) if name else document, anchor) for name, anchor in links]
    return [
        f"{path.name}#{anchor}"
        for path, anchor in targets
        if not path.exists() or (anchor and anchor not in anchors(path.read_text()))
    ]


@documents
def test_every_relative_link_leads_somewhere(document):
    assert broken_links(document) == []


@documents
def test_every_file_of_the_tests_that_is_named_is_there(document):
    named = set(re.findall(r"\btest/[\w/]+\.py\b", document.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_module_that_the_architecture_names_is_there():
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", (ROOT / "docs" / "ARCHITECTURE.md").read_text()))
    assert "cache/kv_cache.py" in named
    missing = [name for name in sorted(named) if not ((PACKAGE / name).exists() or (ROOT / name).exists())]
    assert missing == []


def test_links_to_nothing_are_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n[a](page.md) [b](#a-page) [c](gone.md) [d](#gone) [e](https://x.org)\n```\n# no\n```\n")
    assert broken_links(page) == ["gone.md#", "page.md#gone"]
    assert anchors(page.read_text()) == {"a-page"}
