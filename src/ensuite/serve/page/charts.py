"""The report's charts and tables for runs that are not compared yet: curves, validation, cards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.table import Table

from ensuite.evaluate.report import tables
from ensuite.evaluate.report.page import learning_panel, panel, pretty
from ensuite.evaluate.report.svg import Series, line_chart
from ensuite.serve.page.shelf import Shelved

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
    columns = [list(column.cells) for column in table.columns]
    head = ""
    if table.show_header:
        head = (
            "<tr>" + "".join(f"<th>{escape(str(column.header))}</th>" for column in table.columns) + "</tr>"
        )
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in zip(*columns)
    )
    kind = "" if table.show_header else ' class="pairs"'
    title = f"<h2>{escape(str(table.title))}</h2>" if table.title else ""
    return (
        f'<section class="card">{title}<div class="scroll"><table{kind}>{head}{body}</table></div></section>'
    )


def pairs(values: Sequence[tuple[str, Any]], heading: str = "") -> str:
    """Return names and values as a table of two columns."""
    body = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(_say(value))}</td></tr>" for name, value in values
    )
    title = f"<h2>{escape(heading)}</h2>" if heading else ""
    return f'<section class="card">{title}<div class="scroll"><table class="pairs">{body}</table></div></section>'


def _say(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def cost(run: Shelved) -> tuple[str, str]:
    """Return training time and parameters of a run, as the report writes them."""
    return tables.seconds(run.card.get("train_seconds")), tables.count(run.card.get("parameters"))


__all__ = ["VALIDATED", "best_validation", "cost", "curves", "pairs", "pretty", "printed"]
