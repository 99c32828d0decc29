# SPDX-License-Identifier: Apache-2.0
"""The demo's report: one HTML file that needs no other, drawn from what was recorded."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.demo import figures, pictures
from xsvggt_ros.demo.errors import relative_error
from xsvggt_ros.demo.recording import Answer, Check, Recording
from xsvggt_ros.memory import MIB
from xsvggt_ros.model.loading import RANDOM
from xsvggt_ros.pictures import CONFIDENCE_COLOURS, DEPTH_COLOURS, false_colour, png, shown_range
from xsvggt_ros.settings import values

COLUMNS = 5  # frames shown
SHOWN_ERROR = 0.5  # relative depth error at the end of its colour scale
QUANTITIES = {  # of Errors.mean: what it is called, how it is written
    "abs_rel": ("depth off by (AbsRel)", lambda x: f"{100 * x:.1f} %"),
    "delta_125": ("depth within 25 %", lambda x: f"{100 * x:.1f} %"),
    "rotation": ("rotation off by", lambda x: f"{x:.1f}°"),
    "centre": ("position off by", lambda x: f"{x:.2f} m"),
}


def headline(recording: Recording) -> list[tuple[str, str]]:
    """(label, value) of the numbers that matter most."""
    r = recording
    return [("model", f"{r.start.stream.model}; {_weights(r)}"), *_accuracy(r), *_service(r), *_change(r)]


def _weights(r: Recording) -> str:
    return {"": "the weights that come with it", RANDOM: "random weights"}.get(w := r.start.stream.weights, w)


def _accuracy(r: Recording) -> list[tuple[str, str]]:
    if not r.comparison:
        return []
    node, trivial = r.comparison.node.mean(), r.comparison.trivial.mean()
    names = {"abs_rel": "a constant", "delta_125": "a constant", "rotation": "not turning", "centre": "standing still"}
    numbers = [
        (label, f"{written(node[name])}; {names[name]}: {written(trivial[name])}")
        for name, (label, written) in QUANTITIES.items()
    ]
    path = np.linalg.norm(np.diff(r.true_poses()[:, :3, 3], axis=0), axis=1).sum()
    ate = r.comparison.aligned.ate
    written_ate = "undefined of 2 answers" if np.isnan(ate) else f"{ate:.2f} m"
    return [*numbers, ("ATE", f"{written_ate}; Sim(3) aligned, over a path of {path:.1f} m")]


def _service(r: Recording) -> list[tuple[str, str]]:
    counts = r.played.counts
    lost = len(r.images) - counts.frames_received
    answered = f"{len(r.answers)} of {len(r.images)}; sent at {r.played.sent_rate:.1f} Hz"
    numbers = [
        ("images answered", f"{answered}, {counts.frames_replaced} replaced by newer ones, {lost} lost on the way")
    ]
    if r.answers:
        numbers += [
            ("time of a step", _milliseconds([a.status.seconds["step"] for a in r.answers])),
            ("image to last output", _milliseconds([a.latency for a in r.answers])),
        ]
    return numbers


def _change(r: Recording) -> list[tuple[str, str]]:
    if not r.change:
        return []
    before, after = r.answers[r.change - 1].status, r.answers[r.change].status
    memory = f"{before.cache_bytes / MIB:.2f} → {after.cache_bytes / MIB:.2f} MiB"
    contents = (f"{s.budget_tokens} tokens at {s.key_bits} bits" for s in (before, after))
    return [("cache memory", f"{memory}; {' → '.join(contents)}")]


@dataclass(frozen=True)
class Cell:
    """A picture, or words, in the table of pictures."""

    image: str = ""  # data URI
    text: str = ""
    small: str = ""


@dataclass(frozen=True)
class Row:
    """Of the table of pictures: cells, and the colours of their scale with its two ends where they have one."""

    title: str
    unit: str
    cells: list[Cell]
    colours: str = ""
    low: str = ""
    high: str = ""


def html(recording: Recording, checks: list[Check]) -> str:
    """The page; its pictures are inside."""
    folder = Path(__file__).parent
    templates = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    r = recording
    shown = _shown(r) if r.answers else {}
    return templates.get_template("report.html.j2").render(
        recording=r,
        checks=checks,
        failed=sum(bool(c.problem) for c in checks),
        random_weights=r.start.stream.weights == RANDOM,
        cards=[(label, *value.partition("; ")[::2]) for label, value in headline(r)],
        settings=_settings(r),
        **shown,
    )


def _milliseconds(seconds: Sequence[float]) -> str:
    median, high = np.percentile(seconds, (50, 95)) * 1000
    return f"{median:.0f} ms; 95 % within {high:.0f} ms"


def _shown(r: Recording) -> dict[str, Any]:
    """What there is to show where images were answered."""
    return {
        "film": _inline(pictures.film_webp(r), "webp"),
        "map": _figure(figures.map_png, r),
        "pictures": _pictures(r),
        "change": _change_table(r),
        "timeline": _figure(figures.timeline_png, r),
    }


def _pictures(r: Recording) -> list[Row]:
    chosen = np.linspace(0, len(r.answers) - 1, COLUMNS).round().astype(int)
    shown = [r.answers[i] for i in chosen]
    depth = [r.unit * a.depth for a in shown]
    ends = pictures.depth_range(r)
    unit = "metres" if r.truth else "model units"
    words = "as sent, with the points followed" if r.start.stream.track_groups else "as sent"
    rows = [
        Row("", "", [_caption(a) for a in shown]),
        Row("Image", words, [Cell(_inline(png(pictures.followed(r, i)))) for i in chosen]),
    ]
    if r.truth:
        true = [r.true_answers[i].depth for i in chosen]
        rows.append(_false_colour_row("True depth", unit, true, DEPTH_COLOURS, *ends))
    rows.append(_false_colour_row("Depth", f"by the node, {unit}", depth, DEPTH_COLOURS, *ends))
    if r.truth:
        off = [relative_error(a.depth, r.true_answers[i], r.unit) for a, i in zip(shown, chosen, strict=True)]
        rows += [_false_colour_row("Error", "share of the depth", off, "magma", 0, SHOWN_ERROR), _errors_row(r, chosen)]
    confidence = [a.confidence for a in shown]
    ends = shown_range(np.array(confidence))
    return [*rows, _false_colour_row("Confidence", "at least 1", confidence, CONFIDENCE_COLOURS, *ends)]


def _caption(a: Answer) -> Cell:
    return Cell(text=f"image {a.image}", small=f"{a.status.tokens} tokens, {a.status.key_bits} bits")


def _errors_row(r: Recording, chosen: NDArray[np.int64]) -> Row:
    assert r.comparison is not None
    errors = [r.comparison.node.depth[i] for i in chosen]
    cells = [Cell(text=f"AbsRel {e.abs_rel:.3f}", small=f"{100 * e.delta_125:.0f} % within 25 %") for e in errors]
    return Row("", "", cells)


def _false_colour_row(
    title: str, unit: str, images: Iterable[NDArray[np.floating]], colours: str, low: float, high: float
) -> Row:
    """Images [H, W] with one scale for all of them."""
    cells = [Cell(_inline(png(false_colour(image, low, high, colours)))) for image in images]
    return Row(title, unit, cells, ", ".join(pictures.colour_stops(colours)), f"{low:.3g}", f"{high:.3g}")


def _change_table(r: Recording) -> list[tuple[str, list[str]]]:
    """Means before and after the change, beside what the same stream says without it and what trivial answers get."""
    if not (r.comparison and r.change):
        return []
    before, after = slice(r.change), slice(r.change, None)
    c = r.comparison
    columns = [c.node.mean(before), c.trivial.mean(before)]
    columns += [e.mean(after) for e in (c.node, c.unchanged, c.trivial)]
    rows = [(label, [written(column[name]) for column in columns]) for name, (label, written) in QUANTITIES.items()]
    held, time = ([f(r.answers[part]) for part in (before, after)] for f in (_cache_mib, _step_ms))
    return [*rows, ("cache", [held[0], "", held[1], "", ""]), ("step", [time[0], "", time[1], "", ""])]


def _cache_mib(answers: list[Answer]) -> str:
    return f"{answers[-1].status.cache_bytes / MIB:.2f} MiB"


def _step_ms(answers: list[Answer]) -> str:
    return f"{np.median([a.status.seconds['step'] for a in answers]) * 1000:.0f} ms"


def _settings(r: Recording) -> list[tuple[str, Any, Any]]:
    """(name, value at the start, value set later or "") of what is not at its default."""
    default, start, later = values(NodeConfig()), values(r.start), values(r.later)
    return [
        (name, value, later[name] if later[name] != value else "")
        for name, value in start.items()
        if value != default[name] or later[name] != value
    ]


def _figure(draw: Callable[[Recording, str], bytes], recording: Recording) -> dict[str, str]:
    """One picture for light pages and one for dark ones."""
    return {scheme: _inline(draw(recording, scheme)) for scheme in ("light", "dark")}


def _inline(picture: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
