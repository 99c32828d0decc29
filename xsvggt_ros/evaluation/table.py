# SPDX-License-Identifier: Apache-2.0
"""A sweep in numbers: means over streams, and differences between rows on the same streams."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.evaluation.sweep import BUDGETS, FULL, ROWS, Row, Score, Scores
from xsvggt_ros.memory import MIB

STEP_RATIO = "step_ratio"  # a step's time as a share of that of the full cache with 16 bits
COLUMNS = (*(field.name for field in fields(Score)), STEP_RATIO)
SHOWN = {  # in the written table: column -> heading, format of the mean
    "abs_rel": ("AbsRel", ".4f"),
    "delta_125": ("δ < 1.25", ".4f"),
    "ate": ("ATE", ".4f"),
    "rotation": ("rotation [°]", ".2f"),
    "rpe_translation": ("RPE t", ".4f"),
    "rpe_rotation": ("RPE r [°]", ".2f"),
}
EXPLANATION = """
Nothing is aligned: depth and poses are compared in the first frame's scale and pose, lengths in units of the mean
distance of what the first frame sees. Mean ± standard error over streams; in brackets the difference to the full cache
with 16 bits on the same streams ± its standard error. Budget: frames of tokens in each global layer. xstream, random
and sliding_window raise a budget of 1 frame to 2, at which all three hold the first and the newest frame and nothing
else: here one row. The camera head's cache holds all frames in every row and is not in the MiB, which are of
the global layers' cache after the last frame, spare room included. Step: median, rows in turn on one thread; then as a
share of the full cache's. The published 4-bit scheme is simulated, as published: all tokens are quantised again at
every frame, and nothing is packed.
"""
COMPARED = tuple((n, bits) for bits in (16, 8, 4, 2) for n in BUDGETS)  # xstream with random


@dataclass(frozen=True)
class Estimate:
    """Of a mean over streams. The error is its standard error, None with a single stream."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Estimate:
        spread = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
        return cls(float(values.mean()), None if spread is None else float(spread))

    def text(self, form: str) -> str:
        return format(self.mean, form) + ("" if self.error is None else f" ± {format(self.error, form.lstrip('+'))}")


@dataclass(frozen=True)
class Line:
    """A row of a sweep: per column its mean, and its difference to the full cache with 16 bits, stream by stream."""

    row: Row
    mean: dict[str, Estimate]
    difference: dict[str, Estimate]


class Table:
    """The lines of a sweep, in the order of ROWS."""

    def __init__(self, scores: Scores) -> None:
        self.seeds = sorted(scores)
        self._values = {row: self._columns(scores, row) for row in ROWS}
        full = self._values[FULL]
        for values in self._values.values():
            values[STEP_RATIO] = values["step_ms"] / full["step_ms"]
        self.lines = [Line(row, self._means(row), self.difference(row, FULL)) for row in ROWS]

    def _columns(self, scores: Scores, row: Row) -> dict[str, NDArray[np.float64]]:
        """{column: value of each stream}."""
        each = [asdict(scores[seed][row.key]) for seed in self.seeds]
        return {field.name: np.array([score[field.name] for score in each]) for field in fields(Score)}

    def _means(self, row: Row) -> dict[str, Estimate]:
        return {name: Estimate.of(values) for name, values in self._values[row].items()}

    def difference(self, row: Row, other: Row) -> dict[str, Estimate]:
        """Row minus other."""
        mine, others = self._values[row], self._values[other]
        return {name: Estimate.of(mine[name] - others[name]) for name in COLUMNS}

    def xstream_minus_random(self) -> Iterator[tuple[Row, dict[str, Estimate]]]:
        """For each budget and number of bits at which both choose."""
        rows = {(row.name, row.frames, row.key_bits, row.value_bits): row for row in ROWS}
        for frames, bits in COMPARED:
            row, other = (rows[name, frames, bits, bits] for name in ("xstream", "random"))
            yield row, self.difference(row, other)


def write_table(table: Table, folder: Path, command: str, facts: dict[str, Any]) -> None:
    """Writes table.csv and table.md."""
    _write_csv(table, folder / "table.csv")
    (folder / "table.md").write_text("\n".join(_markdown(table, command, facts)) + "\n")


def _write_csv(table: Table, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [f"{c}{suffix}" for c in COLUMNS for suffix in ("", "_error", "_difference", "_difference_error")]
        writer.writerow([*_about(FULL), *names])
        for line in table.lines:
            pairs = [(line.mean[c], line.difference[c]) for c in COLUMNS]
            numbers = [n for mean, difference in pairs for n in (*vars(mean).values(), *vars(difference).values())]
            writer.writerow([*_about(line.row).values(), *numbers])


def _about(row: Row) -> dict[str, Any]:
    return {"cache": row.name, "frames": row.frames, "key_bits": row.key_bits, "value_bits": row.value_bits}


# --- markdown -------------------------------------------------------------------------------------


def _markdown(table: Table, command: str, facts: dict[str, Any]) -> Iterator[str]:
    frames = facts["frames"]
    yield f"`{command}`\n"
    yield (
        f"{len(table.seeds)} streams of {frames} frames at {facts['rate']:g} Hz: rooms {table.seeds[0]} to "
        f"{table.seeds[-1]}, {facts['motion']} motion. Scored: frames {frames // 2} to {frames - 1}."
    )
    yield f"{EXPLANATION}\n"
    yield from _grid(_headings(), (_cells(line) for line in table.lines))
    yield "\nxstream minus random on the same streams; below 0 xstream is better, for δ above 0:\n"
    headings = ["budget", "bits k/v", *(heading for heading, _ in SHOWN.values())]
    yield from _grid(headings, (_compared_cells(*pair) for pair in table.xstream_minus_random()))


def _headings() -> list[str]:
    return ["cache", "budget", "bits k/v", *(heading for heading, _ in SHOWN.values()), "MiB", "step [ms]", "of full"]


def _cells(line: Line) -> list[str]:
    shown = [_with_difference(line, name, form) for name, (_, form) in SHOWN.items()]
    mib = f"{line.mean['global_bytes'].mean / MIB:.3f}"
    return [*_row_cells(line.row), *shown, mib, line.mean["step_ms"].text(".1f"), line.mean[STEP_RATIO].text(".3f")]


def _row_cells(row: Row) -> list[str]:
    return [row.name, row.budget, f"{row.key_bits}/{row.value_bits}"]


def _with_difference(line: Line, name: str, form: str) -> str:
    mean = line.mean[name].text(form)
    return mean if line.row is FULL else f"{mean} ({line.difference[name].text('+' + form)})"


def _compared_cells(row: Row, difference: dict[str, Estimate]) -> list[str]:
    return [*_row_cells(row)[1:], *(difference[name].text("+" + form) for name, (_, form) in SHOWN.items())]


def _grid(headings: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|" + "---|" * len(headings)
    for cells in rows:
        yield f"| {' | '.join(cells)} |"
