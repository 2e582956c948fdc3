"""The report's charts and tables for runs that are not compared yet: curves, validation, cards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.table import Table

from ensuite.evaluate.report import tables
from ensuite.evaluate.report.page import learning_panel, panel
from ensuite.evaluate.report.svg import Series, line_chart
from ensuite.serve.page.shelf import Shelved

PAIRS = ' class="pairs"'
VALIDATED = ("ndcg@10", "hr@10", "mrr")


def best_validation(run: Shelved) -> Mapping[str, float]:
    """Return the metrics of the validation whose weights were kept; none before the first."""
    lines = [line for line in run.history if line.get("kind") == "valid"]
    best = run.card.get("training", {}).get("best_epoch")
    kept = [line for line in lines if line.get("epoch") == best] or lines
    return max(kept, key=lambda line: line["metrics"].get(VALIDATED[0], -math.inf))["metrics"] if kept else {}


def curves(run: Shelved) -> list[str]:
    """Return the validation curve and the loss of one run, as far as it has any."""
    lines = [line for line in run.history if line.get("kind") == "train"]
    out = [learning_panel([run.entry()], VALIDATED[0])]
    if len(lines) > 1:
        x, y = [float(line["epoch"]) for line in lines], [float(line["loss"]) for line in lines]
        notes = [f"epoch {int(a)}: loss {b:.4f}" for a, b in zip(x, y)]
        chart = line_chart(
            [Series(run.name, 0, x, y, notes=notes)], title="Loss", x_label="epoch", y_label="training loss"
        )
        out.append(panel("Loss", "Mean of each epoch.", chart))
    return [chart for chart in out if chart]


def printed(table: Table) -> str:
    """Return a table that was made for the terminal as HTML: one wording for both."""
    cells = [list(column.cells) for column in table.columns]
    rows = [[escape(str(cell)) for cell in row] for row in zip(*cells)]
    heads = [escape(str(column.header)) for column in table.columns] if table.show_header else []
    return _table(str(table.title or ""), rows, heads)


def pairs(values: Sequence[tuple[str, Any]], heading: str) -> str:
    """Return names and values as a table of two columns."""
    return _table(heading, [[escape(name), escape(_say(value))] for name, value in values])


def _table(title: str, rows: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Return a table; columns of numbers stand at the right, others at the left."""
    texts = [any(cell and not cell[0].isdigit() for cell in column) for column in zip(*rows)]
    kinds = [' class="text"' if text else "" for text in texts]
    head = "<tr>" + "".join(f"<th{k}>{text}</th>" for k, text in zip(kinds, heads)) + "</tr>" if heads else ""
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{text}</td>" for k, text in zip(kinds, row)) + "</tr>" for row in rows
    )
    above = f"<h2>{escape(title)}</h2>" if title else ""
    table = f"<table{'' if heads else PAIRS}>{head}{body}</table>"
    return f'<section class="card">{above}<div class="scroll">{table}</div></section>'


def _say(value: Any) -> str:
    """Write a value of a card for a reader: no brackets, no quotes.

    >>> _say({"user": {"column": "uid", "how": "known"}}), _say([1, 2]), _say(None), _say(12345)
    ('user: column uid, how known', '1, 2', '–', '12,345')
    """
    if isinstance(value, Mapping):
        return "; ".join(
            f"{key}: " + ", ".join(f"{inner} {_say(of)}" for inner, of in one.items())
            if isinstance(one, Mapping)
            else f"{key} {_say(one)}"
            for key, one in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(_say, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def cost(run: Shelved) -> tuple[str, str]:
    """Return training time and parameters of a run, as the report writes them."""
    spent = tables.seconds(run.card["train_seconds"]) if "train_seconds" in run.card else "–"
    return spent, tables.count(run.card.get("parameters"))
