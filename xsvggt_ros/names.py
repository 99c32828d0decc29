# SPDX-License-Identifier: Apache-2.0
"""Names as people write them: those of frames, and those that nothing has."""

import string
from collections.abc import Iterable
from difflib import get_close_matches

ALIKE = 0.6  # difflib's ratio from which a name may have been meant


def frame_name(name: str) -> str:
    """As tf2 calls the frame: without the slashes that tf's names began with, and without blanks around it."""
    return name.lstrip("/" + string.whitespace).rstrip()


def nearest(name: str, known: Iterable[str], alike: float = ALIKE) -> str:
    """The known name, dotted or not, whose last part or whole is most like the last part; empty: none is alike."""
    meant = {part: full for full in known for part in (full.rpartition(".")[2], full)}
    matches = get_close_matches(name.rpartition(".")[2].lower(), meant, n=1, cutoff=alike)
    return meant[matches[0]] if matches else ""


def unknown_names(unknown: Iterable[str], known: Iterable[str]) -> str:
    """The unknown names, each with the nearest known one, for a message."""
    known = list(known)
    hints = {name: nearest(name, known) for name in sorted(unknown)}
    return ", ".join(f"{name} (did you mean {hint}?)" if hint else name for name, hint in hints.items())
