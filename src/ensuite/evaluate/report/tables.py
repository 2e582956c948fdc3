"""The comparison's numbers as text: how each is written, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from ensuite.evaluate.compare import Comparison, Row
from ensuite.evaluate.statistics import Interval

ALPHA = 0.05


def score(value: float) -> str:
    """Write a metric: four decimals, and no zero before the point when it is below 1; NaN, no value, as "-".

    >>> score(0.18213), score(1.0), score(-0.02), score(11.336)
    ('.1821', '1.0000', '-.0200', '11.34')
    """
    if value != value:
        return "-"
    if abs(value) >= 10:
        return f"{value:.2f}"
    text = f"{value:.4f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.99995 else text


def interval(value: Interval) -> str:
    """Write an interval's ends; nothing where there is none.

    >>> interval(Interval(0.18, 0.17, 0.19))
    '.1700–.1900'
    """
    if math.isnan(value.low):
        return ""
    return f"{score(value.low)}{' to ' if value.low < 0 else '–'}{score(value.high)}"


def p_value(p: float) -> str:
    """Write a p-value.

    >>> p_value(0.0312), p_value(1e-9), p_value(1.0)
    ('.031', '< .001', '1')
    """
    return "< .001" if p < 0.001 else "1" if p > 0.9995 else f"{p:.3f}".lstrip("0")


def seconds(value: float | None) -> str:
    """Write a duration.

    >>> seconds(0.00042), seconds(3.21), seconds(4000), seconds(None)
    ('0.4 ms', '3.2 s', '1 h 7 min', '-')
    """
    if value is None:
        return "-"
    if value < 0.1:
        return f"{value * 1000:.1f} ms"
    if value < 100:
        return f"{value:.1f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(value: float | None) -> str:
    """Write a large number short.

    >>> count(950), count(214300), count(3.1e6)
    ('950', '214 k', '3.1 M')
    """
    if value is None:
        return "-"
    if value < 10_000:
        return f"{value:,.0f}"
    return f"{value / 1e3:.0f} k" if value < 999_500 else f"{value / 1e6:.1f} M"


def memory(value: int | None) -> str:
    """Write bytes.

    >>> memory(734003200)
    '700 MB'
    """
    if value is None:
        return "-"
    return f"{value / 2**20:.0f} MB" if value < 2**30 else f"{value / 2**30:.1f} GB"


def verdict(comparison: Comparison, row: Row, name: str) -> str:
    """Say how a row stands to the reference in one metric: "reference", "worse", "better" or "level"."""
    if row.name == comparison.reference:
        return "reference"
    test = row.tests[name]
    if test.p_holm >= ALPHA:
        return "level"
    return "worse" if test.difference.mean < 0 else "better"


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return one flat record per row, full precision."""
    out = []
    for row in comparison.rows:
        record: dict[str, Any] = {
            "name": row.name,
            "model": row.entry.card.get("model", ""),
            "seed": row.entry.card.get("seed"),
        }
        for name, value in row.metrics.items():
            record |= {name: value.mean, f"{name} low": value.low, f"{name} high": value.high}
        for name in comparison.metrics:
            test = row.tests.get(name)
            record |= {
                f"{name} difference": test.difference.mean if test else None,
                f"{name} difference low": test.difference.low if test else None,
                f"{name} difference high": test.difference.high if test else None,
                f"{name} p": test.p if test else None,
                f"{name} p holm": test.p_holm if test else None,
            }
        record |= row.beyond
        record |= {
            "train seconds": row.train_seconds,
            "scoring seconds": row.seconds,
            "parameters": row.parameters,
            "peak memory bytes": row.memory,
            "reads request time": row.request_time,
            "tie rate": row.tie_rate,
            "cases": row.n_cases,
            "reference": comparison.reference,
            "phase": comparison.phase,
            "data": comparison.protocol["data"],
            "fingerprint": comparison.protocol["fingerprint"],
        }
        out.append(record)
    return out


def table_csv(comparison: Comparison) -> str:
    """Return the table, one line per row."""
    return _csv(records(comparison))


def slices_csv(comparison: Comparison) -> str:
    """Return the first metric by slice, one line per row and slice."""
    metric = comparison.metrics[0]
    return _csv(
        [
            {
                "name": row.name,
                "slice": name,
                "cases": comparison.slice_sizes[name],
                "metric": metric,
                "mean": value.mean,
                "low": value.low,
                "high": value.high,
            }
            for row in comparison.rows
            for name, value in row.slices.items()
        ]
    )


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def markdown(comparison: Comparison) -> str:
    """Return the table with intervals and p-values, and what it means, as GitHub-flavoured Markdown."""
    c = comparison
    head = [
        "run",
        *c.metrics,
        f"{c.metrics[0]} against {c.reference}",
        *c.beyond,
        "training",
        "scoring",
        "parameters",
        "memory",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in c.rows:
        cells = [row.name + (" (reads request time)" if row.request_time else "")]
        for name, value in row.metrics.items():
            same = "" if verdict(c, row, name) in ("worse", "better") else "**"
            cells.append(f"{same}{score(value.mean)}{same} ({interval(value)})")
        test = row.tests.get(c.metrics[0])
        cells.append(
            "reference" if test is None else f"{score(test.difference.mean)}, p {p_value(test.p_holm)}"
        )
        cells += [score(value) for value in row.beyond.values()]
        cells += [seconds(row.train_seconds), seconds(row.seconds), count(row.parameters), memory(row.memory)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([f"# {title(c)}", "", *lines, "", *notes(c), ""])


def title(comparison: Comparison) -> str:
    """Return the heading of a comparison."""
    n = len(comparison.rows)
    return f"{n} {'system' if n == 1 else 'systems'} on {comparison.protocol['data']}, {comparison.phase}"


def notes(comparison: Comparison) -> list[str]:
    """Return what the numbers mean, one sentence a paragraph."""
    p = comparison.protocol
    split = p["split"]
    seen = (
        "items of the user's history left out" if p["exclude"] == "seen" else "items of the history kept in"
    )
    share = p["tie_share"]
    out = [
        f"Data: {p['users']:,} users, {p['items']:,} items, {p['events']:,} events; split "
        f"{split.get('kind')}, "
        f"targets {split.get('targets')}; fingerprint `{p['fingerprint']}`.",
        f"Rule: {p['cases']:,} cases, ranked among all items, {seen}; rank = 1 + items scored higher + "
        f"half of those tied. "
        f"The time of the request is {p['request_time']}.",
        f"Intervals: 95 %, {p['resamples']:,} bootstrap resamples of users, the same for all rows (seed "
        f"{p['seed']}).",
        f"Tests: paired t-tests against {comparison.reference}, Holm-corrected over all rows and accuracy "
        f"metrics; "
        f"**bold** is not significantly different from it at {ALPHA:g}.",
        "Training time and memory are those of each run's own training; scoring is the time to rank all "
        "cases here.",
    ]
    if share is not None:
        out.insert(
            1,
            f"Ties in time: {share:.1%} of the events share their time with another event of the user; "
            f"order: {p['order']}.",
        )
    return [f"- {text}" for text in out]
