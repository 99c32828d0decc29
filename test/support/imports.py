# SPDX-License-Identifier: Apache-2.0
"""What the package's modules import, read from their sources, and the order of its folders, read from the documents."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.paths import ROOT

PACKAGE = ROOT / "xsvggt_ros"


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of all that a file imports, wherever the statement stands: `from a import b` is a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports name the whole path"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_module":
            yield from ((arg.value, node.lineno) for arg in node.args if isinstance(arg, ast.Constant))


@dataclass(frozen=True)
class Import:
    """A statement by which one module of the package imports another, both under their dotted names."""

    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """{dotted name: file} of every module."""
    names = {path: path.relative_to(package.parent).with_suffix("") for path in sorted(package.rglob("*.py"))}
    return {".".join(name.parts).removesuffix(".__init__"): path for path, name in names.items()}


def inner_imports(package: Path = PACKAGE) -> list[Import]:
    """Every import of a module of the package by another."""
    known = modules(package)
    found = []
    for importer, path in known.items():
        for name, line in imports(path):
            while name and name not in known:  # what is imported is a class, say: its module counts
                name = name.rpartition(".")[0]
            if name and name != importer:
                found.append(Import(importer, name, line))
    return found


def part(module: str) -> str:
    """The folder `name/` or file `name.py` right below the package that a module belongs to."""
    package, _, inner = module.partition(".")
    name = inner.partition(".")[0]
    if not name:
        return "__init__.py"
    return f"{name}/" if (PACKAGE.parent / package / name).is_dir() else f"{name}.py"


@dataclass(frozen=True)
class Level:
    """Folders and files that stand at one height, and what they are part of: the robot or the laboratory."""

    parts: tuple[str, ...]
    place: str


def levels(document: str) -> list[Level]:
    """The first fenced block below `## Folders`, bottom to top.

    A line is the names of folders (`name/`) and files (`name.py`) of one height and what they are; a comment such as
    `# robot` says what the lines below it are part of.
    """
    block = re.search(r"^## Folders\n.*?^```\w*\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    assert block, "docs/ARCHITECTURE.md shows the folders in a fenced block below '## Folders'"
    found, place = [], ""
    for line in filter(None, map(str.strip, block[1].splitlines())):
        if line.startswith("#"):
            place = line.removeprefix("#").split()[0].strip(":,.")
            continue
        names = re.match(r"(?:[\w/]+(?:/|\.py)(?:\s+|$))+", line)
        assert names, f"a line starts with the names of folders or files, got {line!r}"
        found.append(Level(tuple(names[0].split()), place))
    return found


def upward(found: list[Import], order: list[Level]) -> list[Import]:
    """The imports of something that stands higher. The package itself, which offers names of all, is the highest."""
    height = {name: i for i, level in enumerate(order) for name in level.parts} | {"__init__.py": len(order)}
    return [each for each in found if height[part(each.imported)] > height[part(each.importer)]]


def cycle(found: list[Import]) -> list[str]:
    """Modules of which each imports the next, the last one the first; empty if there are none."""
    following: dict[str, set[str]] = {}
    for each in found:
        following.setdefault(each.importer, set()).add(each.imported)
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        loops = (walk(other, [*path, module]) for other in sorted(following.get(module, ())))
        loop = next(filter(None, loops), [])
        done.add(module)
        return loop

    return next(filter(None, (walk(module, []) for module in sorted(following))), [])
