# SPDX-License-Identifier: Apache-2.0
"""Files in the order of the numbers in their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

NUMBER = re.compile(r"(\d+(?:\.\d+)?)")  # counts, or seconds with decimals


def naturally_sorted(paths: Iterable[Path]) -> list[Path]:
    """By name without suffix: img2 before img10, and 5.175 before 5.2."""
    return sorted(paths, key=lambda path: (_key(path.stem), path.name))


def numbers(path: Path) -> list[float]:
    """Of a file's name."""
    return [float(number) for number in NUMBER.findall(path.stem)]


def _key(text: str) -> list[str | Decimal]:
    """Text and numbers in turns, so that like is compared with like."""
    return [Decimal(part) if odd % 2 else part.casefold() for odd, part in enumerate(NUMBER.split(text))]
