# SPDX-License-Identifier: Apache-2.0
"""Text files of data sets: poses, cameras and lists, as people's disks have them.

Comments, blank lines, commas, any line end and any Unicode are read. A line that does not say what it should is named
in a warning: it has no pose, NaN, or is passed over where it is a count above all poses or an index above each. A file
without any line that does raises ValueError, naming it.
"""

from __future__ import annotations

import codecs
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.geometry import Array, rigid, rotation_matrix

COMMENT = re.compile(r"(^|\s)(#|%|//).*")  # not the # of -1.#IND
SEPARATOR = re.compile(r"[\s,;]+")
MSVC_NAN = re.compile(r"[+-]?(1\.#\w+|nan\(\w+\))", re.IGNORECASE)  # how Windows writes what is no number
ORTHONORMAL = 0.05  # how far a rotation that was rounded may be from one
SHOWN = 5  # lines a warning names before it only counts

log = logging.getLogger(__name__)


def read_text(path: Path) -> str:
    content = path.read_bytes()
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # PowerShell's >
    return content.decode("utf-16" if utf16 else "utf-8-sig", errors="replace")


def read_trajectory(path: Path) -> tuple[Array, Array]:
    """Seconds [N] and poses [N, 4, 4] of a TUM trajectory; NaN the pose that is none, and both of a damaged line."""
    rows, numbers = _rows(path, 8)
    lost = ~np.isfinite(rows).all(axis=1) | ~rows[:, 4:].any(axis=1)
    if lost.all():
        raise ValueError(f"{path} has no pose: in no line are all 8 numbers finite and the quaternion longer than 0")
    _warn(path, [n for n, row in zip(numbers, rows, strict=True) if not row[4:].any()], "a quaternion of length 0")
    rows[lost, 1:] = np.nan
    return rows[:, 0], np.stack([rigid(rotation_matrix(row[4:]), row[1:4]) for row in rows])


def read_matrices(path: Path) -> Array:
    """Poses [N, 4, 4], from a line each or from four; NaN where a matrix is no rigid transform."""
    rows, numbers = _rows(path, 4, 16)
    lines = 16 // rows.shape[1]  # of a pose
    missing = -len(rows) % lines
    T = np.concatenate([rows, np.full((missing, rows.shape[1]), np.nan)]).reshape(-1, 4, 4)
    lost = ~_are_rigid(T)
    if lost.all():
        raise ValueError(f"{path} has no pose of 16 numbers: from line {numbers[0]} on, no matrix is a rigid transform")
    wrong = [numbers[i * lines] for i in np.flatnonzero(lost & np.isfinite(T).all(axis=(1, 2)))]
    _warn(path, wrong, "not the start of a rigid transform")
    _warn(path, numbers[-1:] if missing else [], "the end of a pose that is cut")
    T[lost] = np.nan
    return T


def read_pose(path: Path) -> Array:
    """The pose [4, 4] of a file of its own; NaN, with a warning, if it has none."""
    try:
        poses = read_matrices(path)
        if len(poses) == 1:
            return poses[0]
        log.warning("left without a pose: %s has %d", path, len(poses))
    except (ValueError, OSError) as error:
        log.warning("left without a pose: %s", error)
    return np.full((4, 4), np.nan)


def read_camera(path: Path) -> Array:
    """Intrinsics [3, 3]."""
    K, _ = _rows(path, 3)
    if K.shape != (3, 3) or not np.isfinite(K).all():
        raise ValueError(f"{path} must have the 3 lines of 3 numbers of a camera matrix")
    return K


def read_list(path: Path) -> tuple[Array, list[Path]]:
    """Seconds [N] and files of a list `seconds file`."""
    lines = [(number, SEPARATOR.split(text, maxsplit=1)) for number, text in _lines(path)]
    rows = [(_value(words[0]), words[1]) for _, words in lines if len(words) == 2 and np.isfinite(_value(words[0]))]
    if not rows:
        raise ValueError(f"{path} must have a line `seconds file` per image{_first(lines)}")
    _warn(path, [n for n, words in lines if len(words) != 2 or not np.isfinite(_value(words[0]))], "no `seconds file`")
    return np.array([seconds for seconds, _ in rows]), [path.parent / name.replace("\\", "/") for _, name in rows]


def _lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that say something."""
    texts = (COMMENT.sub("", line).strip(" \t\0,;") for line in read_text(path).splitlines())
    return [(number, text) for number, text in enumerate(texts, 1) if text]


def _rows(path: Path, *columns: int) -> tuple[Array, list[int]]:
    """Numbers [rows, one of `columns`] and where each row is. Damaged rows, which begin with a number, are NaN."""
    lines = [(number, SEPARATOR.split(text)) for number, text in _lines(path)]
    rows = [(number, [_value(word) for word in words]) for number, words in lines if _is_number(words[0])]
    whole = {number for number, words in lines if len(words) in columns and all(map(_is_number, words))}
    if not whole:
        raise ValueError(f"{path} must have {' or '.join(map(str, columns))} values per line{_first(lines)}")
    ((width, _),) = Counter(len(values) for number, values in rows if number in whole).most_common(1)
    good = {number for number, values in rows if number in whole and len(values) == width}
    _warn(path, [number for number, _ in lines if number not in good], f"not {width} numbers")
    above = _headings([len(values) for _, values in rows], width)
    rows = [row for row, is_heading in zip(rows, above, strict=True) if not is_heading]
    table = np.empty((len(rows), width))
    for row, (number, values) in zip(table, rows, strict=True):
        row[:] = values if number in good else np.nan
    return table, [number for number, _ in rows]


def _headings(lengths: Sequence[int], width: int) -> NDArray[np.bool_]:
    """Which rows of so many numbers are no damaged ones: a count above all records, or an index above each."""
    record = 4 if width == 4 else 1  # rows
    short = np.array(lengths) < min(width, max(width / 2, 4))
    first = int(np.argmin(short))
    if len(short) % (record + 1) == 0 and (short.reshape(-1, record + 1) == (np.arange(record + 1) == 0)).all():
        return short
    return (np.arange(len(short)) < first) & (np.count_nonzero(~short) % record == 0)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return MSVC_NAN.fullmatch(word) is not None
    return True


def _value(word: str) -> float:
    """NaN if it is none."""
    return float(word) if _is_number(word) and not MSVC_NAN.fullmatch(word) else np.nan


def _are_rigid(T: Array) -> NDArray[np.bool_]:
    """Which of the matrices [N, 4, 4] are rotations and translations; [N]."""
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(T).all(axis=(1, 2)))
    known: Array = np.where(finite[:, None, None], T, 0)
    R = known[:, :3, :3]
    orthonormal = np.abs(R.swapaxes(1, 2) @ R - np.eye(3)).max(axis=(1, 2)) < ORTHONORMAL
    last_row = np.abs(known[:, 3] - np.array([0, 0, 0, 1])).max(axis=1) < ORTHONORMAL
    return orthonormal & last_row & (np.linalg.det(R) > 0)


def _first(lines: Sequence[tuple[int, Sequence[str]]]) -> str:
    return f", but line {lines[0][0]} is {' '.join(lines[0][1])[:60]!r}" if lines else ", but it has none"


def _warn(path: Path, numbers: Sequence[int], why: str) -> None:
    """Of the lines of these numbers, if there are any."""
    if numbers:
        more = ", ..." if len(numbers) > SHOWN else ""
        shown = ", ".join(map(str, numbers[:SHOWN])) + more
        log.warning("%s: left out, %d lines that are %s (line %s)", path, len(numbers), why, shown)
