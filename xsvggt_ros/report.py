# SPDX-License-Identifier: Apache-2.0
"""The demo's report: one HTML file that needs no other, drawn from what was recorded."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros import figures
from xsvggt_ros.config import NodeConfig, values
from xsvggt_ros.recording import Answer, Check, Recording

COLUMNS = 5  # frames shown
SHOWN_PERCENTILES = (2, 98)  # of the values, from one end of a colour scale to the other
MIB = 2**20


def headline(recording: Recording) -> list[tuple[str, str]]:
    """(label, value) of the numbers that matter most."""
    r = recording
    lost = len(r.images) - r.played.counts.frames_received
    weights = r.start.stream.weights or "random weights"
    numbers = [
        ("model", f"{r.start.stream.model}; {weights}"),
        ("images sent", f"{len(r.images)} at {r.played.sent_rate:.1f} Hz"),
        ("answered", f"{len(r.answers)}; {r.played.counts.frames_dropped} dropped, {lost} lost on the way"),
    ]
    if r.answers:
        numbers += [
            ("time of a step", _milliseconds([a.status.seconds["step"] for a in r.answers])),
            ("image to last output", _milliseconds([a.latency for a in r.answers])),
        ]
    if r.change:
        before, after = r.answers[r.change - 1].status, r.answers[r.change].status
        numbers += [
            ("cache memory", f"{before.cache_bytes / MIB:.2f} → {after.cache_bytes / MIB:.2f} MiB"),
            ("budget of each layer", f"{before.budget_tokens} → {after.budget_tokens} tokens"),
            ("bits per value", f"{before.key_bits} → {after.key_bits}"),
        ]
    return numbers


def html(recording: Recording, checks: list[Check]) -> str:
    """The page; its pictures are inside."""
    sections = [_header(recording, checks), _weights_banner(recording), _cards(recording)]
    if recording.answers:
        sections += [_pictures(recording), _path(recording), _memory(recording)]
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


def _weights_banner(r: Recording) -> str:
    if r.start.stream.weights:
        return ""
    return (
        '<p class="banner"><b>No trained weights yet:</b> the geometry below is meaningless, the pipeline is real. '
        "The network has random weights, so poses, depth and confidence say nothing about the scene; "
        "messages, cache, budget, memory and times are what they would be.</p>"
    )


def _cards(r: Recording) -> str:
    cards = []
    for label, value in headline(r):
        figure, _, rest = value.partition("; ")
        cards.append(f"<div><dt>{escape(label)}</dt><dd>{escape(figure)}<small>{escape(rest)}</small></dd></div>")
    return f'<dl class="cards">{"".join(cards)}</dl>'


def _pictures(r: Recording) -> str:
    shown = [r.answers[i] for i in np.linspace(0, len(r.answers) - 1, COLUMNS).round().astype(int)]
    rows = [
        _row("", "", map(_caption, shown)),
        _row("Image", "as sent", (_image(figures.rgb_png(r.images[a.image].image)) for a in shown)),
        _false_colour_row("Depth", "model units", [a.depth for a in shown], "turbo"),
        _false_colour_row("Confidence", "at least 1", [a.confidence for a in shown], "viridis"),
    ]
    if r.truth:
        rows.append(_false_colour_row("True depth", "metres", [r.truth[a.image].depth for a in shown], "turbo"))
    return _section("What the node saw and said", f'<div class="pictures">{"".join(rows)}</div>')


def _caption(a: Answer) -> str:
    cache = f"{a.status.tokens} tokens, {a.status.key_bits} bits"
    return f'<div class="caption">image {a.image}<small>{cache}</small></div>'


def _row(title: str, unit: str, cells: Iterable[str], scale: str = "") -> str:
    label = f"<div><b>{escape(title)}</b><small>{escape(unit)}</small></div>"
    return f'{label}{"".join(cells)}<div class="scale">{scale}</div>'


def _false_colour_row(title: str, unit: str, images: list[NDArray[np.floating]], colours: str) -> str:
    """Images [H, W] with one scale for all of them."""
    seen = np.concatenate([image[np.isfinite(image)] for image in images])
    low, high = np.percentile(seen, SHOWN_PERCENTILES) if seen.size else (0.0, 1.0)
    cells = (_image(figures.false_colour_png(image, low, high, colours)) for image in images)
    gradient = ", ".join(figures.colour_stops(colours))
    bar = f'<i style="background: linear-gradient(to top, {gradient})"></i>'
    return _row(title, unit, cells, f"<span>{high:.3g}</span>{bar}<span>{low:.3g}</span>")


def _path(r: Recording) -> str:
    note = "Seen from above, in the axes of the world frame (x forward, y left), from the first camera on."
    if not r.start.stream.weights:
        note += " With random weights the node's path means nothing."
    return _section("Camera path", f"<p>{note}</p>{_figure(figures.path_png, r, 'camera path from above')}")


def _memory(r: Recording) -> str:
    note = f"After {r.played.change_after} images the parameter service is asked for less memory; dashed: the effect."
    figure = _figure(figures.memory_png, r, "cache and step time over images")
    return _section("Memory and time", f"<p>{note}</p>{figure}")


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


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


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
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: .75rem; margin: 1rem 0 0; }
.cards div { padding: .8rem 1rem; }
dt { color: var(--faint); font-size: .85rem; }
dd { margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
img { display: block; width: 100%; border-radius: 4px; }
.pictures { display: grid; grid-template-columns: 6rem repeat(5, minmax(110px, 1fr)) 3.2rem; gap: .5rem;
  align-items: center; }
.pictures img { image-rendering: pixelated; }
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
