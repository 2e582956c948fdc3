"""What `ensuite codes` shows: progress, tables, a plot."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensuite.codes.health import Health
    from ensuite.codes.table import SemanticIdTable


class Working:
    """A progress bar on standard error, one task at a time."""

    def __init__(self, shown: bool):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
            transient=True,
            refresh_per_second=4,
        )
        self.task: Any = None
        self.name = ""

    def __enter__(self) -> Working:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, name: str, done: int, total: int | None, loss: float | None = None) -> None:
        """Take news of the task ``name``; a new name replaces the task before."""
        if name != self.name:
            if self.task is not None:
                self.progress.remove_task(self.task)
            self.task, self.name = self.progress.add_task(name, total=total, news=""), name
        news = "" if loss is None else f"loss {loss:.4g}"
        self.progress.update(self.task, completed=done, total=total, news=news)

    def fit(self, kind: str) -> Any:
        """Return the function that takes news of a tokeniser's fit."""
        return lambda stage, done, total, loss: self.update(f"{kind}: {stage}", done, total, loss)

    def busy(self, what: str) -> None:
        """Show that something without known steps goes on, until the next news."""
        self.update(what, 0, None)


def show(health: Health, table: SemanticIdTable) -> None:
    """Print the health of a table of codes."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    made = table.provenance.get("tokeniser", {}).get("kind", "codes")
    by_level = Table(title=f"{made}, {health.items:,} items", title_justify="left")
    for name in ("level", "codes", "used", "usage", "entropy", "perplexity", "error"):
        by_level.add_column(name, justify="right")
    for level in health.levels:
        by_level.add_row(
            str(level.level),
            f"{level.size:,}",
            f"{level.used:,}",
            f"{level.usage:.1%}",
            f"{level.entropy:.2f} bits",
            f"{level.perplexity:,.0f}",
            "-" if level.error is None else f"{level.error:.3f}",
        )
    console.print(by_level, highlight=False)
    shared = Table(title=f"Equal codes (policy: {table.policy})", title_justify="left")
    for name in ("", "items that share", "largest group"):
        shared.add_column(name, justify="right")
    for when, items, largest in (
        ("before", health.shared_before, health.largest_before),
        ("after", health.shared_after, health.largest_after),
    ):
        if items is None or largest is None:
            shared.add_row(when, "known with --data", "")
        else:
            shared.add_row(when, f"{items:,} ({items / max(1, health.items):.1%})", f"{largest:,}")
    console.print(shared, highlight=False)
    if health.neighbours is not None:
        console.print(
            f"Neighbours kept: {health.neighbours:.1%} of the 10 nearest by content are among the 10 nearest "
            f"by codes ({health.neighbours_by_chance:.2%} by chance).",
            highlight=False,
        )


def to_svg(health: Health, title: str) -> str:
    """Return bars for each level: usage, perplexity and error as shares."""
    from ensuite.evaluate.report.svg import Series, bar_chart, standalone, with_legend

    levels = health.levels
    possible = [min(level.size, health.items) for level in levels]
    rows: list[tuple[str, list[float]]] = [
        ("codes used", [level.usage for level in levels]),
        ("perplexity", [level.perplexity / most for level, most in zip(levels, possible)]),
    ]
    if levels and levels[0].error is not None:
        rows.append(("variance not explained", [float(level.error or 0) for level in levels]))
    series = [Series(name, i, list(range(len(levels))), values) for i, (name, values) in enumerate(rows)]
    groups = [f"level {level.level}" for level in levels]
    return standalone(with_legend(bar_chart(groups, series, title=title, y_label="share"), series))


def say_counts(counts: dict[str, int]) -> None:
    """Say what was encoded and what was not."""
    for kind, end in (("text", ""), ("image", "_images")):
        if f"different_{kind}s" in counts:
            sys.stdout.write(
                f"{counts['items']:,} items: {counts[f'different_{kind}s']:,} different {kind}s, "
                f"{counts[f'repeated{end}']:,} items with the {kind} of another, "
                f"{counts[f'without_{kind}']:,} without {kind}; {counts[f'encoded{end}']:,} {kind}s encoded "
                "now, the others read from the cache.\n"
            )


def say_next(done: str, command: str) -> None:
    """Say what was done and what can be done now."""
    sys.stdout.write(f"{done}\nNext: {command}\n")
