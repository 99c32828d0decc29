# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole, or not at all."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file aside, then in its place. Raises OSError if it cannot; what was there is there still."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder: make it first, for {path.name}")
    aside = path.with_name(f"{path.name}.part")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
