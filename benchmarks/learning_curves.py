"""Quality against compute: what validation said after so many minutes of training, run by run.

    python benchmarks/learning_curves.py RUN RUN ... --name tiger_compute

Minutes are those of forward, backward, optimiser and batches, without validation and pauses; they mean
something where each run had a core of its own. Learning rates fall to the end of each run's own plan: compare
runs that end after like times.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from ensuite.evaluate.report.svg import Series, line_chart, standalone, with_legend

FIELDS = ("run", "epoch", "minutes", "metric", "value")


@dataclass
class Options:
    """Runs to compare."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders."""
    metric: str = "ndcg@10"
    """Of validation."""
    name: str = "learning_curves"
    """Name of the CSV and the plot."""
    out: Path = Path("results")
    """Their folder."""


def main(options: Options) -> None:
    """Print the table, write CSV and plot."""
    rows = [row for run in options.runs for row in curve(run, options.metric)]
    table = Table(*FIELDS)
    for row in rows:
        table.add_row(
            row["run"], str(row["epoch"]), f"{row['minutes']:.1f}", row["metric"], f"{row['value']:.4f}"
        )
    Console().print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / f"{options.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (options.out / f"{options.name}.svg").write_text(plot(rows, options))


def curve(run: Path, metric: str) -> list[dict]:
    """Read a run's validations, with the minutes of training before each."""
    if not (run / "metrics.jsonl").exists():
        raise SystemExit(f"{run}: not a run, it has no metrics.jsonl")
    rows, seconds = [], 0.0
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if line["kind"] == "train":
            seconds += sum(line["seconds"].values())
        elif metric in line["metrics"]:
            value = line["metrics"][metric]
            rows.append(
                {
                    "run": run.name,
                    "epoch": line["epoch"],
                    "minutes": seconds / 60,
                    "metric": metric,
                    "value": value,
                }
            )
    if not rows:
        raise SystemExit(f"{run}: no validation with {metric}")
    return rows


def plot(rows: list[dict], options: Options) -> str:
    """Draw each run's metric over its minutes."""
    series = []
    for i, run in enumerate(dict.fromkeys(row["run"] for row in rows)):
        points = [row for row in rows if row["run"] == run]
        series.append(Series(run, i, [p["minutes"] for p in points], [p["value"] for p in points]))
    title = f"{options.metric} on validation against minutes of training"
    return standalone(
        with_legend(line_chart(series, title=title, x_label="minutes", y_label=options.metric), series)
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
