"""The comparison as one HTML page that asks nobody for anything: styles and charts are inside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ensuite.evaluate.compare import Comparison, Row
from ensuite.evaluate.entries import Entry
from ensuite.evaluate.report import tables
from ensuite.evaluate.report.style import STYLE
from ensuite.evaluate.report.svg import (
    N_COLOURS,
    Series,
    bar_chart,
    forest_chart,
    line_chart,
    paint,
    scatter_chart,
)

PRETTY = {"ndcg": "NDCG", "hr": "HR", "mrr": "MRR", "map": "MAP", "arp": "ARP"}


def render_page(comparison: Comparison) -> str:
    """Return the whole page."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(tables.title(comparison))}</title>",
            f"<style>\n{STYLE}</style></head><body><main>",
            f"<h1>{escape(tables.title(comparison))}</h1>",
            render_body(comparison),
            "<footer>Made by <code>ensuite compare</code>.</footer>",
            "</main></body></html>",
            "",
        ]
    )


def render_body(comparison: Comparison) -> str:
    """Return what stands under the page's heading, for a page that has the report's style sheet."""
    entries = [row.entry for row in comparison.rows]
    charts = [
        _quality(comparison),
        learning_panel(entries, comparison.metrics[0]),
        *_cutoffs(comparison),
        *_slices(comparison),
        *_speed(comparison),
    ]
    return "\n".join(
        [
            _lead(comparison),
            _leaderboard(comparison),
            '<div class="grid">',
            *[chart for chart in charts if chart],
            "</div>",
            _meaning(comparison),
            cards_panel(entries),
        ]
    )


def pretty(name: str) -> str:
    """Write a metric's name as papers do.

    >>> pretty("ndcg@10"), pretty("popularity-lift@5")
    ('NDCG@10', 'Popularity lift@5')
    """
    base, at, rest = name.partition("@")
    return PRETTY.get(base, base.replace("-", " ").capitalize()) + at + rest


def _lead(c: Comparison) -> str:
    best, metric = c.rows[0], c.metrics[0]
    value = best.metrics[metric]
    told = (
        f"<strong>{escape(best.name)}</strong> leads with {pretty(metric)} "
        f"<strong>{tables.score(value.mean)}</strong>"
    )
    level = [r.name for r in c.rows if r is not best and tables.verdict(c, r, metric) == "level"]
    if c.reference == best.name and len(c.rows) > 1:
        if level:
            told += f"; {escape(', '.join(level))} cannot be told from it"
        else:
            told += "; every other system is significantly behind"
    p = c.protocol
    about = f"{p['cases']:,} users' next items ranked among all {p['items']:,}"
    return f'<p class="lead">{told}. {about}, {c.phase} part of the split.</p>'


def _leaderboard(c: Comparison) -> str:
    heads = ["run", *map(pretty, c.metrics), f"against {c.reference}", *map(pretty, c.beyond)]
    heads += ["training", "scoring", "parameters", "memory"]
    lines = [f"<tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr>"]
    for i, row in enumerate(c.rows):
        model = str(row.entry.card.get("model", ""))
        under = [model] if model and model != row.name else []
        under += [f"seed {row.entry.card['seed']}"] if row.entry.card.get("seed") is not None else []
        under += ["reads request time"] if row.request_time else []
        cells = [
            f'{_chip(i)}<span class="run">{escape(row.name)}</span><small>{escape(", ".join(under))}</small>'
        ]
        for name, value in row.metrics.items():
            tag = "b" if tables.verdict(c, row, name) in ("reference", "level") else "span"
            cells.append(f"<{tag}>{tables.score(value.mean)}</{tag}><small>{tables.interval(value)}</small>")
        cells.append(_against(c, row))
        cells += [tables.score(value) for value in row.beyond.values()]
        cells += [tables.seconds(row.train_seconds), tables.seconds(row.seconds)]
        cells += [tables.count(row.parameters), tables.memory(row.memory)]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<section class="card"><div class="scroll"><table>{"".join(lines)}</table></div></section>'


def _against(c: Comparison, row: Row) -> str:
    test = row.tests.get(c.metrics[0])
    if test is None:
        return '<span style="color:var(--muted)">reference</span>'
    kind = {"worse": "bad", "better": "good", "level": ""}[tables.verdict(c, row, c.metrics[0])]
    value = tables.score(test.difference.mean).replace("-", "−")
    sign = "+" if test.difference.mean > 0 else ""
    return f'<span class="{kind}">{sign}{value}</span><small>p {escape(tables.p_value(test.p_holm))}</small>'


def _quality(c: Comparison) -> str:
    metric = c.metrics[0]
    series = [
        Series(
            r.name,
            i,
            [v.mean],
            [0.0],
            [v.low],
            [v.high],
            [f"{r.name}: {tables.score(v.mean)} ({tables.interval(v)})"],
        )
        for i, r in enumerate(c.rows)
        for v in [r.metrics[metric]]
    ]
    chart = forest_chart(series, title=f"{pretty(metric)} with intervals", x_label=pretty(metric))
    return panel(f"{pretty(metric)}", "Mean over users and its 95 % bootstrap interval.", chart)


def learning_panel(entries: Sequence[Entry], wanted: str) -> str:
    """Return the learning curves of runs by the metric ``wanted`` on validation (or NDCG@10, which is always
    logged), or nothing when none was validated twice."""
    series = []
    for i, entry in enumerate(entries):
        points = [line for line in entry.history if line.get("kind") == "valid"]
        metric = next((m for m in (wanted, "ndcg@10") if points and m in points[0]["metrics"]), None)
        if metric is None or len(points) < 2:
            continue
        x = [float(line["epoch"]) for line in points]
        y = [float(line["metrics"][metric]) for line in points]
        spent = [f", {tables.seconds(line['elapsed'])}" if "elapsed" in line else "" for line in points]
        notes = [f"{entry.name}, epoch {int(a)}{t}: {tables.score(b)}" for a, b, t in zip(x, y, spent)]
        series.append((metric, Series(entry.name, i, x, y, notes=notes)))
    if not series:
        return ""
    metric = series[0][0]
    drawn = [s for name, s in series if name == metric]
    chart = line_chart(
        drawn, title="Learning curves", x_label="epoch", y_label=f"{pretty(metric)}, validation"
    )
    return panel(
        "Learning curves", f"{pretty(metric)} on validation after each epoch.", chart, _legend(drawn)
    )


def _cutoffs(c: Comparison) -> list[str]:
    out = []
    for base in c.rows[0].cutoffs:
        series = []
        for i, row in enumerate(c.rows):
            ks, values = zip(*row.cutoffs[base])
            notes = [f"{row.name}, {PRETTY[base]}@{k}: {tables.score(v)}" for k, v in zip(ks, values)]
            series.append(Series(row.name, i, ks, values, notes=notes))
        marks = list(series[0].x)
        if len(marks) < 2:
            continue
        chart = line_chart(
            series,
            title=f"{PRETTY[base]} against the cut-off",
            x_label="cut-off k",
            y_label=f"{PRETTY[base]}@k",
            x_log=True,
            x_ticks=marks,
            x_text=lambda k: f"{k:g}",
        )
        out.append(
            panel(f"{PRETTY[base]} against the cut-off", "How deep one has to look.", chart, _legend(series))
        )
    return out


def _slices(c: Comparison) -> list[str]:
    metric = pretty(c.metrics[0])
    groups: dict[str, tuple[list[str], str]] = {
        "Popular and rare targets": (
            [
                name
                for name in ("head items", "tail items", "cold items", "cold users")
                if name in c.slice_sizes
            ],
            "Head: the 20 % of items with most training events; cold: without one.",
        ),
        "Repeated and new targets": (
            [name for name in ("repeated items", "new items") if name in c.slice_sizes],
            "Targets that the user's history holds, and that it does not.",
        ),
        "Targets by popularity": (
            [name for name in c.slice_sizes if name.startswith("popularity ")],
            "Targets by the number of their item's training events.",
        ),
        "Short and long histories": (
            [name for name in c.slice_sizes if name.startswith("history ")],
            "Users by the number of events before the target.",
        ),
        "Known and new transitions": (
            [name for name in c.slice_sizes if name.startswith("transition ")],
            "Targets by how often they came right after the last item in training.",
        ),
    }
    out = []
    for heading, (names, hint) in groups.items():
        names = [name for name in names if all(name in row.slices for row in c.rows)]
        if len(names) < 2:
            continue
        series = [
            Series(
                row.name,
                i,
                [],
                [row.slices[name].mean for name in names],
                [row.slices[name].low for name in names],
                [row.slices[name].high for name in names],
                [
                    f"{row.name}, {name} ({c.slice_sizes[name]:,} cases): {tables.score(v.mean)} "
                    f"({tables.interval(v)})"
                    for name in names
                    for v in [row.slices[name]]
                ],
            )
            for i, row in enumerate(c.rows)
        ]
        kinds = ("popularity ", "history ", "transition ")
        labels = [
            next((name.removeprefix(kind) for kind in kinds if name.startswith(kind)), name).replace(
                " items", ""
            )
            for name in names
        ]
        chart = bar_chart(labels, series, title=heading, y_label=metric)
        out.append(panel(heading, f"{metric}. {hint}", chart, _legend(series)))
    return out


def _speed(c: Comparison) -> list[str]:
    metric = c.metrics[0]
    out = []
    axes: Sequence[tuple[str, str, Any]] = (
        (
            "Scoring speed against quality",
            "time to rank all items for 1,000 users",
            lambda r: r.seconds / r.n_cases * 1000,
        ),
        ("Training time against quality", "training time", lambda r: r.train_seconds),
    )
    for heading, label, cost in axes:
        series = []
        for i, row in enumerate(c.rows):
            spent, value = cost(row), row.metrics[metric]
            if not spent:
                continue
            note = (
                f"{row.name}: {tables.seconds(spent)}, {pretty(metric)} {tables.score(value.mean)} "
                f"({tables.interval(value)})"
            )
            series.append(Series(row.name, i, [spent], [value.mean], [value.low], [value.high], [note]))
        if series:
            chart = scatter_chart(
                series, title=heading, x_label=label, y_label=pretty(metric), x_text=_duration
            )
            out.append(panel(heading, "Up and to the left is better.", chart))
    return out


def _duration(value: float) -> str:
    if value < 1:
        return f"{value * 1000:g} ms"
    return f"{value:g} s" if value < 10_000 else f"{value / 3600:.3g} h"


def _meaning(c: Comparison) -> str:
    items = "".join(f"<li>{_plain(note.removeprefix('- '))}</li>" for note in tables.notes(c))
    return (
        f'<section class="card" style="margin-top:18px"><h2>What the numbers '
        f"mean</h2><ul>{items}</ul></section>"
    )


def _plain(text: str) -> str:
    """Turn the two marks that the notes use, `code` and **bold**, into HTML."""
    out = escape(text)
    for mark, tag in (("**", "b"), ("`", "code")):
        parts = out.split(mark)
        out = parts[0] + "".join(
            f"{f'<{tag}>' if i % 2 else f'</{tag}>'}{part}" for i, part in enumerate(parts[1:], 1)
        )
    return out


def cards_panel(entries: Sequence[Entry]) -> str:
    """Return the cards of runs beside each other, folded; nothing when there are none."""
    rows = [(entry.name, dict(_flat(entry.card))) for entry in entries if entry.card]
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for _, card in rows for key in card))
    head = "<tr><th>card</th>" + "".join(f"<th>{escape(name)}</th>" for name, _ in rows) + "</tr>"
    body = "".join(
        f"<tr><td><code>{escape(key)}</code></td>"
        + "".join(f"<td>{escape(str(card.get(key, '')))}</td>" for _, card in rows)
        + "</tr>"
        for key in keys
    )
    return (
        '<details class="card"><summary>Cards: data, protocol and environment of each run</summary>'
        f'<div class="scroll"><table>{head}{body}</table></div></details>'
    )


def _flat(card: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in card.items():
        out += _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else [(before + str(key), value)]
    return out


def panel(heading: str, hint: str, chart: str, legend: str = "") -> str:
    """Return a card with a heading, a line under it and a chart; ``chart`` and ``legend`` are HTML."""
    return (
        f'<section class="card"><h2>{escape(heading)}</h2><p '
        f'class="hint">{escape(hint)}</p>{chart}{legend}</section>'
    )


def _legend(series: Sequence[Series]) -> str:
    return (
        '<div class="legend">'
        + "".join(f"<span>{_chip(s.colour)}{escape(s.name)}</span>" for s in series)
        + "</div>"
    )


def _chip(colour: int) -> str:
    fill = paint(colour)
    if colour >= N_COLOURS:
        fill = f"repeating-linear-gradient(90deg, {fill} 0 3px, transparent 3px 5px)"
    return f'<i class="chip" style="background:{fill}"></i>'
