# SPDX-License-Identifier: Apache-2.0
"""The demo's report: one HTML file that needs no other, drawn from what was recorded."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.config import NodeConfig
from xsvggt_ros.demo import figures, pictures
from xsvggt_ros.demo.errors import relative_error
from xsvggt_ros.demo.recording import Answer, Check, Recording
from xsvggt_ros.model.loading import RANDOM
from xsvggt_ros.settings import values

COLUMNS = 5  # frames shown
SHOWN_ERROR = 0.5  # relative depth error at the end of its colour scale
MIB = 2**20
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
    return [*numbers, ("ATE", f"{r.comparison.aligned.ate:.2f} m; Sim(3) aligned, over a path of {path:.1f} m")]


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


def html(recording: Recording, checks: list[Check]) -> str:
    """The page; its pictures are inside."""
    sections = [_header(recording, checks), _banner(recording), _cards(recording)]
    if recording.answers:
        sections += [_film(recording), _map(recording), _pictures(recording), _timeline(recording)]
    sections += [_checks(checks), _settings(recording)]
    return PAGE.format(style=STYLE, body="\n".join(sections))


def _milliseconds(seconds: Sequence[float]) -> str:
    median, high = np.percentile(seconds, (50, 95)) * 1000
    return f"{median:.0f} ms; 95 % within {high:.0f} ms"


# --- sections -------------------------------------------------------------------------------------


def _header(r: Recording, checks: list[Check]) -> str:
    failed = sum(bool(c.problem) for c in checks)
    verdict = f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks hold"
    return (
        f"<header><div><h1>xsvggt_ros demo</h1><p>{escape(r.source)}, played to the stream node over ROS 2</p></div>"
        f'<a class="{"bad" if failed else "good"}" href="#checks">{verdict}</a></header>'
    )


def _banner(r: Recording) -> str:
    """What a reader must know before the first picture."""
    notes = []
    if r.start.stream.weights == RANDOM:
        notes.append(
            "<b>Random weights:</b> poses, depth and confidence say nothing about the scene; messages, cache, memory "
            "and times are what they would be."
        )
    if not r.truth:
        notes.append("<b>No truth:</b> these images came without true depth and poses, so no error can be told.")
        if r.start.stream.model == "demo":
            notes.append("The demo model has only seen synthetic rooms: do not rely on what it says of real images.")
    return f'<p class="banner">{" ".join(notes)}</p>' if notes else ""


def _cards(r: Recording) -> str:
    cards = []
    for label, value in headline(r):
        figure, _, rest = value.partition("; ")
        cards.append(f"<div><dt>{escape(label)}</dt><dd>{escape(figure)}<small>{escape(rest)}</small></dd></div>")
    return f'<dl class="cards">{"".join(cards)}</dl>'


def _film(r: Recording) -> str:
    titles = ["image", *(["true depth"] if r.truth else []), "depth by the node"]
    heads = "".join(f"<span>{title}</span>" for title in titles)
    film = f'<img alt="" src="{_inline(pictures.film_webp(r), "webp")}">'
    return _section("The stream", f'<div class="film"><div>{heads}</div>{film}</div>')


def _map(r: Recording) -> str:
    note = "Seen from above, from the first camera on; what is high above the camera is left out. "
    if r.truth:
        note += (
            f"The node knows no metres: its unit is the mean distance of what the first image shows, {r.unit:.2f} m "
            "here. Nothing else is fitted. This is one room; <code>xsvggt eval rooms</code> has the mean of many."
        )
    return _section("Map and path", f"<p>{note}</p>{_figure(figures.map_png, r, 'the room and the path from above')}")


def _pictures(r: Recording) -> str:
    chosen = np.linspace(0, len(r.answers) - 1, COLUMNS).round().astype(int)
    shown = [r.answers[i] for i in chosen]
    depth = [r.unit * a.depth for a in shown]
    ends = pictures.depth_range(r)
    unit = "metres" if r.truth else "model units"
    rows = [
        _row("", "", map(_caption, shown)),
        _row("Image", "as sent", (_image(pictures.rgb_png(r.images[a.image].image)) for a in shown)),
    ]
    if r.truth:
        true = [r.true_answers[i].depth for i in chosen]
        rows.append(_false_colour_row("True depth", unit, true, pictures.DEPTH_COLOURS, *ends))
    rows.append(_false_colour_row("Depth", f"by the node, {unit}", depth, pictures.DEPTH_COLOURS, *ends))
    if r.truth:
        off = [relative_error(a.depth, r.true_answers[i], r.unit) for a, i in zip(shown, chosen, strict=True)]
        rows += [_false_colour_row("Error", "share of the depth", off, "magma", 0, SHOWN_ERROR), _errors_row(r, chosen)]
    confidence = [a.confidence for a in shown]
    ends = np.percentile(confidence, pictures.SHOWN_PERCENTILES)
    rows.append(_false_colour_row("Confidence", "at least 1", confidence, "viridis", *ends))
    return _section("Depth", f'<div class="pictures">{"".join(rows)}</div>')


def _caption(a: Answer) -> str:
    cache = f"{a.status.tokens} tokens, {a.status.key_bits} bits"
    return f'<div class="caption">image {a.image}<small>{cache}</small></div>'


def _errors_row(r: Recording, chosen: NDArray[np.int64]) -> str:
    assert r.comparison is not None
    errors = [r.comparison.node.depth[i] for i in chosen]
    texts = (f"AbsRel {e.abs_rel:.3f}<small>{100 * e.delta_125:.0f} % within 25 %</small>" for e in errors)
    return _row("", "", (f'<div class="caption">{text}</div>' for text in texts))


def _row(title: str, unit: str, cells: Iterable[str], scale: str = "") -> str:
    label = f"<div><b>{escape(title)}</b><small>{escape(unit)}</small></div>"
    return f'{label}{"".join(cells)}<div class="scale">{scale}</div>'


def _false_colour_row(
    title: str, unit: str, images: list[NDArray[np.floating]], colours: str, low: float, high: float
) -> str:
    """Images [H, W] with one scale for all of them."""
    cells = (_image(pictures.false_colour_png(image, low, high, colours)) for image in images)
    gradient = ", ".join(pictures.colour_stops(colours))
    bar = f'<i style="background: linear-gradient(to top, {gradient})"></i>'
    return _row(title, unit, cells, f"<span>{high:.3g}</span>{bar}<span>{low:.3g}</span>")


def _timeline(r: Recording) -> str:
    note = f"After {r.played.change_after} images the parameter service is asked for less memory; dashed: the effect."
    if r.comparison:
        note += (
            " Had nothing changed: the same stream on the same images without the change. Trivial: a camera that never "
            "moves, and one depth for all pixels, the first image's true mean."
        )
    figure = _figure(figures.timeline_png, r, "errors, cache and step time over images")
    return _section("Less memory, half way", f"<p>{note}</p>{_change_table(r)}{figure}")


def _change_table(r: Recording) -> str:
    """Means before and after the change, beside what the same stream says without it and what trivial answers get."""
    if not (r.comparison and r.change):
        return ""
    before, after = slice(r.change), slice(r.change, None)
    c = r.comparison
    columns = [c.node.mean(before), c.trivial.mean(before)]
    columns += [e.mean(after) for e in (c.node, c.unchanged, c.trivial)]
    rows = [(label, [written(column[name]) for column in columns]) for name, (label, written) in QUANTITIES.items()]
    held, time = ([f(r.answers[part]) for part in (before, after)] for f in (_cache_mib, _step_ms))
    rows += [("cache", [held[0], "", held[1], "", ""]), ("step", [time[0], "", time[1], "", ""])]
    body = "".join(f"<tr><td>{label}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for label, cells in rows)
    head = "<tr><th></th><th colspan=2>before the change</th><th colspan=3>after it</th></tr>"
    names = ("", "the node", "trivial", "the node", "had nothing changed", "trivial")
    return f"<table>{head}<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{body}</table>"


def _cache_mib(answers: list[Answer]) -> str:
    return f"{answers[-1].status.cache_bytes / MIB:.2f} MiB"


def _step_ms(answers: list[Answer]) -> str:
    return f"{np.median([a.status.seconds['step'] for a in answers]) * 1000:.0f} ms"


def _settings(r: Recording) -> str:
    default, start, later = values(NodeConfig()), values(r.start), values(r.later)
    rows = []
    for name, value in start.items():
        if value != default[name] or later[name] != value:
            change = f"<b>{escape(str(later[name]))}</b>" if later[name] != value else ""
            rows.append(f"<tr><td><code>{name}</code></td><td>{escape(str(value))}</td><td>{change}</td></tr>")
    head = f"<tr><th>parameter</th><th>at the start</th><th>set after {r.played.change_after} images</th></tr>"
    return _section("What was set", f"<table>{head}{''.join(rows)}</table><p>All else is at its default.</p>")


def _checks(checks: list[Check]) -> str:
    items = []
    for c in checks:
        mark, kind = ("✗", "bad") if c.problem else ("✓", "good")
        items.append(f'<li class="{kind}"><b>{mark}</b> {escape(c.claim)}<small>{escape(c.problem)}</small></li>')
    return _section("Checks", f'<ul id="checks">{"".join(items)}</ul>')


# --- HTML -----------------------------------------------------------------------------------------


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _image(png: bytes) -> str:
    return f'<img alt="" src="{_inline(png)}">'


def _figure(draw: Callable[[Recording, str], bytes], recording: Recording, alt: str) -> str:
    """One picture for light pages and one for dark ones."""
    light, dark = (_inline(draw(recording, scheme)) for scheme in ("light", "dark"))
    dark_source = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return f'<picture>{dark_source}<img alt="{alt}" src="{light}"></picture>'


def _inline(picture: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>xsvggt_ros demo</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #fff; --ink: #1d2430; --faint: #667085; --line: #e1e5eb;
  --good: #23855a; --bad: #c0392b; --warn: #fff4d6; --warn-line: #e5b93c; }
@media (prefers-color-scheme: dark) { :root { --page: #14181f; --card: #1c222b; --ink: #e4e8ee; --faint: #98a2b3;
  --line: #333b47; --good: #5cc893; --bad: #ff7a6b; --warn: #3a3015; --warn-line: #a98424; } }
* { box-sizing: border-box; }
body { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.7rem; letter-spacing: -0.02em; }
h2 { margin: 0 0 .75rem; font-size: 1.1rem; }
p { margin: 0 0 .75rem; color: var(--faint); }
small { display: block; color: var(--faint); font-size: .8rem; font-weight: 400; }
header { display: flex; justify-content: space-between; align-items: center; gap: 1rem; margin-bottom: 1.25rem; }
header p { margin: .15rem 0 0; }
header a { padding: .35rem .9rem; border: 1px solid; border-radius: 99px; font-weight: 600; text-decoration: none;
  white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); }
.banner { padding: .8rem 1.1rem; border: 1px solid var(--warn-line); border-radius: 10px; background: var(--warn);
  color: var(--ink); }
section, .cards div { padding: 1.1rem 1.25rem; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); }
section { margin-top: 1rem; overflow-x: auto; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(185px, 1fr)); gap: .75rem; margin: 1rem 0 0; }
.cards div { padding: .8rem 1rem; }
dt { color: var(--faint); font-size: .85rem; }
dd { margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
img { display: block; width: 100%; border-radius: 4px; }
.pictures { display: grid; grid-template-columns: 6rem repeat(5, minmax(110px, 1fr)) 3.2rem; gap: .5rem;
  align-items: center; }
.pictures img { image-rendering: pixelated; }
.film > div { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; color: var(--faint); font-size: .85rem;
  text-align: center; }
.caption { font-size: .85rem; text-align: center; }
.scale { display: flex; flex-direction: column; align-self: stretch; font-size: .75rem; color: var(--faint);
  line-height: 1.1; }
.scale i { flex: 1; width: .9rem; margin: .2rem 0; border-radius: 3px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: left; }
th { color: var(--faint); font-size: .85rem; font-weight: 500; }
tr:last-child td { border-bottom: 0; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
ul { margin: 0; padding: 0; list-style: none; }
li { padding: .2rem 0; }
li b { display: inline-block; width: 1.4em; }
li.good { color: var(--ink); } li.good b { color: var(--good); } li.bad small { color: var(--bad); }
table + p { margin: .75rem 0 0; }
"""
