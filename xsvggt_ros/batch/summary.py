# SPDX-License-Identifier: Apache-2.0
"""A batch at a glance: summary.csv, and summary.html, which needs no other file."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from xsvggt_ros.batch.recordings import PAGE, PREVIEW, TABLE, Job, Record
from xsvggt_ros.memory import MIB
from xsvggt_ros.natural_order import naturally_sorted
from xsvggt_ros.whole_file import write_whole

DONE, INCOMPLETE, FAILED, LEFT = "done", "incomplete", "failed", "not done"  # incomplete: done, as far as it goes


@dataclass
class Outcome:
    """Of a batch: what was to be done, and by names of folders what is, before it too, and what failed and why."""

    jobs: list[Job]
    done: dict[str, Record]
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def done_now(self) -> list[str]:
        """Of the jobs."""
        return [job.name for job in self.jobs if job.name in self.done]

    @property
    def settled(self) -> int:
        """How many of the jobs are done or failed."""
        return len(self.done_now) + len(self.failed)


@dataclass(frozen=True)
class Row:
    """Of the table; its fields are the columns of summary.csv, and what is not known is empty there."""

    name: str
    state: str
    recording: str
    frames: int | None = None
    skipped: int | None = None
    worlds: int | None = None
    seconds: float | None = None
    seconds_per_frame: float | None = None
    cache_mib: float | None = None
    threads: int | None = None
    said: str = ""  # why it failed, or what was warned of


def write_summary(output: Path, outcome: Outcome) -> None:
    """Both files. Raises OSError if one cannot be written, which is as it was then."""
    rows = list(_rows(outcome))
    write_whole(output / TABLE, readable(_csv(rows)).encode())
    write_whole(output / PAGE, readable(_html(output, rows)).encode())


def readable(text: str) -> str:
    """What of a file's name is no UTF-8, escaped."""
    return text.encode(errors="backslashreplace").decode()


def _rows(outcome: Outcome) -> Iterator[Row]:
    recordings = {name: record.recording for name, record in outcome.done.items()}
    recordings |= {job.name: str(job.recording) for job in outcome.jobs}
    for name in map(str, naturally_sorted(map(Path, recordings))):
        if record := outcome.done.get(name):
            yield Row(
                name,
                INCOMPLETE if record.damage else DONE,
                record.recording,
                record.frames,
                record.skipped,
                record.worlds,
                round(record.seconds, 3),
                round(record.seconds / record.frames, 5),
                round(record.cache_bytes / MIB, 3),
                record.threads,
                "; ".join(record.warnings),
            )
        else:
            state = FAILED if name in outcome.failed else LEFT
            yield Row(name, state, recordings[name], said=outcome.failed.get(name, ""))


def _csv(rows: list[Row]) -> str:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, Row.__dataclass_fields__)
    table.writeheader()
    table.writerows(map(vars, rows))
    return text.getvalue()


def _html(output: Path, rows: list[Row]) -> str:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    done = [row for row in rows if row.state in (DONE, INCOMPLETE)]
    return templates.get_template("summary.html.j2").render(
        rows=rows,
        done=done,
        incomplete=sum(row.state == INCOMPLETE for row in done),
        output=output,
        pictures={row.name: _picture(output / row.name / PREVIEW) for row in done},
        frames=sum(row.frames or 0 for row in done),
        seconds=sum(row.seconds or 0 for row in done),
    )


def _picture(file: Path) -> str:
    """As a data URI; empty if it is not there any more."""
    try:
        return f"data:image/jpeg;base64,{base64.b64encode(file.read_bytes()).decode()}"
    except OSError:
        return ""
