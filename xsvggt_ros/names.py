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
    """The known dotted name that was probably meant, for the whole or for its last part; empty: none is alike."""
    known = list(known)
    meant = {full.rpartition(".")[2]: full for full in known} | {full: full for full in known}
    return next((meant[match] for match in get_close_matches(name.lower(), meant, 1, alike)), "")


def unknown_names(unknown: Iterable[str], known: Iterable[str]) -> str:
    """The unknown names, each with the nearest known one, for a message."""
    known = list(known)
    hints = {name: nearest(name, known) for name in sorted(unknown)}
    return ", ".join(f"{name} (did you mean {hint}?)" if hint else name for name, hint in hints.items())
