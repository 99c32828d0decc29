# SPDX-License-Identifier: Apache-2.0
"""Pages of the site (mkdocs.yml) that are made of other files: README.md and its like, docstrings, the notebook."""

from __future__ import annotations

import ast
import base64
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import xsvggt_ros
from xsvggt_ros.config import POLICIES

ROOT = Path(__file__).resolve().parent.parent
COPIED = {  # file of the project -> page
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "xsvggt_ros/weights/README.md": "model_card.md",
}
API = (
    "GeometryStream",
    "Frame",
    "status.StepStatus",
    "SegmentedStream",
    "load_model",
    "cache.policies.base.Policy",
    "geometry",
)
SETTINGS = [name for name in xsvggt_ros.__all__ if name not in API]
POLICY = "cache.policies.base.Policy"
LINK = re.compile(r"(!?\[[^\]]*\])\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
ARXIV = re.compile(r"arXiv (\d{4}\.\d{5})")


def on_config(config: Any) -> Any:
    """Lists the policies' pages."""
    section = next(entry for entry in config["nav"] if "Cache policies" in entry)
    section["Cache policies"] += [f"policies/{name}.md" for name in POLICIES]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that are made."""
    pages: dict[str, str | bytes] = {page: (ROOT / source).read_text() for source, page in COPIED.items()}
    pages |= {"api.md": _api(), "policies/index.md": _policies()} | _notebook()
    pages |= {f"policies/{name}.md": _policy(name) for name in POLICIES}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links between files of the project -> links between pages; to what is no page: its name."""
    source = next((source for source, made in COPIED.items() if made == page.file.src_uri), f"docs/{page.file.src_uri}")

    def follow(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        uri = COPIED.get(path, path.removeprefix("docs/"))
        if uri not in files.src_uris:
            return text[1:-1]
        return f"{text}({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri))}{anchor})"

    return LINK.sub(follow, markdown)


def _api() -> str:
    """The public names, and what they are made of; the settings' fields are in their source."""
    return "# API\n\n" + "\n\n".join(f"::: xsvggt_ros.{name}" for name in (*API, *SETTINGS, POLICY)) + "\n"


def _notebook() -> dict[str, str | bytes]:
    """Its page, and the pictures there."""
    cells = json.loads((ROOT / "docs" / "notebook" / "stream.ipynb").read_text())["cells"]
    pictures: dict[str, str | bytes] = {}
    shown = []
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        shown.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", []):
            if "text" in output:
                shown.append(f"```text\n{''.join(output['text'])}```")
            elif picture := output["data"].get("image/png"):
                name = f"stream_{number}.png"
                pictures[f"notebook/{name}"] = base64.b64decode(picture)
                shown.append(f"![{source.splitlines()[-1]}]({name})")
    return pictures | {"notebook/stream.md": "\n\n".join([*shown, "[The notebook itself](stream.ipynb)"])}


def _policies() -> str:
    rows = "".join(f"| [{name}]({name}.md) | {_docstring(name).splitlines()[0]} |\n" for name in POLICIES)
    return f"""# Cache policies

Which of the cached tokens stay when the budget is full (`cache.policy`). What each costs: [accuracy](../accuracy.md).
Another one: [add a policy](../add_a_policy.md).

| policy | |
|---|---|
{rows}"""


def _policy(name: str) -> str:
    return f"""# {name}

{_prose(_docstring(name))}

```bash
ros2 param set /stream cache.policy {name}
xsvggt replay INPUT --output DIR --cache.policy {name}
```

## Its code

::: xsvggt_ros.cache.policies.{name}
    options:
      show_root_heading: false
      show_root_toc_entry: false
      show_docstring_description: false
      show_source: true
      heading_level: 3
"""


def _docstring(name: str) -> str:
    module = ast.parse((ROOT / "xsvggt_ros" / "cache" / "policies" / f"{name}.py").read_text())
    return ast.get_docstring(module) or ""


def _prose(docstring: str) -> str:
    """Markdown of a docstring: formulas, which are indented, apart from the text around them; papers as links."""
    lines = [""]
    for line in docstring.splitlines():
        if line.startswith("    ") != lines[-1].startswith("    "):
            lines.append("")
        lines.append(line)
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", "\n".join(lines))
