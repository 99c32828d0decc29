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

from xsvggt_ros.evaluation.sweep import FULL, REFERENCE, ROWS, Row, Score, Scores
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
EXPLANATION = f"""
Nothing is aligned: depth and poses are compared in the first frame's scale and pose, lengths in units of the mean
distance of what the first frame sees. Mean ± standard error over streams; in brackets the difference to the full cache
with 16 bits on the same streams ± its standard error. Budget: frames of tokens in each global layer, or so many times
fewer bytes than {REFERENCE} frames take in full at 16 bits. The camera head's cache holds all frames in every row and
is not in the MiB, which are of the tokens in the global layers after the last frame. Step: median, rows in turn on one
thread; then as a share of the full cache's. The published 4-bit scheme is simulated, as published: all tokens are
quantised again at every frame, and nothing is packed.
"""
CONTROL = "random"


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
    """The lines of a sweep, in the order of its rows, of which FULL is one."""

    def __init__(self, scores: Scores, rows: Sequence[Row] = ROWS) -> None:
        self.seeds = sorted(scores)
        self._values = {row: self._columns(scores, row) for row in rows}
        full = self._values[FULL]
        for values in self._values.values():
            values[STEP_RATIO] = values["step_ms"] / full["step_ms"]
        self.lines = [Line(row, self._means(row), self.difference(row, FULL)) for row in rows]

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

    def minus_control(self) -> Iterator[tuple[Row, dict[str, Estimate]]]:
        """Each row beside the random choice at the same budget and bits, where there is one."""
        controls = {(row.budget, row.bits): row for row in self._values if row.name == CONTROL}
        for row in self._values:
            control = controls.get((row.budget, row.bits))
            if control not in (None, row):
                yield row, self.difference(row, control)

    def frontier(self, column: str) -> list[Line]:
        """Lines than which none has both fewer bytes and a lower mean of the column, by bytes."""
        found: list[Line] = []
        for line in sorted(self.lines, key=lambda line: (line.mean["global_bytes"].mean, line.mean[column].mean)):
            if not found or line.mean[column].mean < found[-1].mean[column].mean:
                found.append(line)
        return found


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
    return {"cache": row.name, "budget": row.budget, "key_bits": row.bits[0], "value_bits": row.bits[1]}


# --- markdown -------------------------------------------------------------------------------------


def _markdown(table: Table, command: str, facts: dict[str, Any]) -> Iterator[str]:
    frames = facts["frames"]
    yield f"`{command}`\n"
    yield (
        f"Streams of {frames} frames at {facts['rate']:g} Hz, {len(table.seeds)} in all, of rooms {table.seeds[0]} to "
        f"{table.seeds[-1]}, {facts['motion']} motion. Scored: frames {frames // 2} to {frames - 1}."
    )
    yield f"{EXPLANATION}\n"
    yield from _grid(_headings(), (_cells(line) for line in table.lines))
    if not (compared := [*table.minus_control()]):
        return
    yield f"\nMinus {CONTROL} at the same budget and bits, on the same streams; below 0 is better, for δ above 0:\n"
    headings = ["cache", "budget", "bits k/v", *(heading for heading, _ in SHOWN.values())]
    yield from _grid(headings, (_compared_cells(*pair) for pair in compared))


def _headings() -> list[str]:
    return ["cache", "budget", "bits k/v", *(heading for heading, _ in SHOWN.values()), "MiB", "step [ms]", "of full"]


def _cells(line: Line) -> list[str]:
    shown = [_with_difference(line, name, form) for name, (_, form) in SHOWN.items()]
    mib = f"{line.mean['global_bytes'].mean / MIB:.3f}"
    return [*_row_cells(line.row), *shown, mib, line.mean["step_ms"].text(".1f"), line.mean[STEP_RATIO].text(".3f")]


def _row_cells(row: Row) -> list[str]:
    return [row.name, row.budget, f"{row.bits[0]}/{row.bits[1]}"]


def _with_difference(line: Line, name: str, form: str) -> str:
    mean = line.mean[name].text(form)
    return mean if line.row is FULL else f"{mean} ({line.difference[name].text('+' + form)})"


def _compared_cells(row: Row, difference: dict[str, Estimate]) -> list[str]:
    return [*_row_cells(row), *(difference[name].text("+" + form) for name, (_, form) in SHOWN.items())]


def _grid(headings: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|" + "---|" * len(headings)
    for cells in rows:
        yield f"| {' | '.join(cells)} |"
