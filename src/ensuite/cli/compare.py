"""``ensuite compare``: runs on one dataset beside each other, with intervals, tests and a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensuite.cli.evaluate import Bar, pick_device

if TYPE_CHECKING:
    from ensuite.evaluate.compare import Comparison, Row

COLUMNS = 3  # metrics that stand beside each other on a narrow terminal


@dataclass(frozen=True)
class Arguments:
    """Compare runs on one dataset: 95 % intervals, paired tests, time, memory; CSV, Markdown and an HTML
    report.

    ensuite compare runs/* --out report/
    ensuite compare runs/sasrec runs/popularity --against popularity
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Run folders, made by `ensuite train` on one dataset."""
    out: Path | None = None
    """Folder for table.csv, slices.csv, table.md and report.html."""
    data: Path | None = None
    """Dataset folder, when it has moved since the training."""
    phase: Literal["valid", "test"] = "test"
    """Which part of the split is asked for."""
    metrics: tuple[str, ...] = ()
    """The first decides the order; see `ensuite evaluate --help`. Default: those of evaluate, coverage@10 and
    novelty@10."""
    against: str | None = None
    """Name of the run that the others are tested against; default: the best."""
    exclude: Literal["seen", "none"] | None = None
    """Leave items of the history out of the ranking, or not; default: as the runs' cards say."""
    request_time: bool = True
    """Tell models that read it when the target was asked for."""
    category_column: str | None = None
    """Column of the item table that diversity looks at; default: genres, genre, categories, category or
    tags.
    """
    resamples: int = 1000
    """Bootstrap resamples of the users."""
    seed: int = 0
    """Of the bootstrap."""
    device: str | None = None
    """cpu, cuda, ...; default: a GPU when there is one."""


def main(argv: list[str]) -> None:
    """Compare runs, print the table and write the report."""
    args = tyro.cli(Arguments, args=argv, prog="ensuite compare")
    from ensuite.evaluate.compare import compare
    from ensuite.evaluate.entries import check_cards

    console = Console()
    runs = load_runs(args.runs)
    entries = named_entries(runs)
    check_cards(entries)  # before any dataset is opened: the reason is then the cards, not a missing folder
    device = pick_device(args.device)
    for entry in entries:
        entry.model.to(device)
    with Bar() as bar:
        result = compare(
            entries,
            dataset=runs[0].dataset(args.data),
            metrics=args.metrics,
            phase=args.phase,
            against=args.against,
            exclude=args.exclude,
            request_time=args.request_time,
            resamples=args.resamples,
            seed=args.seed,
            category_column=args.category_column,
            device=device,
            progress=bar.update,
        )
    print_table(console, result)
    if args.out is not None:
        files = result.write(args.out)
        console.print(f"Written: {', '.join(str(f) for f in files)}", highlight=False, soft_wrap=True)
    best = next(run for run, entry in zip(runs, entries) if entry.name == result.rows[0].name)
    if args.out is None:
        console.print(
            "Next: the same with --out report/ writes CSV, Markdown and an HTML page with plots",
            highlight=False,
        )
    else:
        console.print(
            f"Next: open {args.out / 'report.html'}, or ensuite recommend {best.path} --history ID ...",
            highlight=False,
            soft_wrap=True,
        )


def load_runs(paths: tuple[Path, ...]) -> list[Any]:
    """Load every run; folders that are none are named, all at once."""
    from ensuite.errors import EnsuiteError
    from ensuite.training.run import load_run

    if not paths:
        raise EnsuiteError("no run given: ensuite compare RUN... --out report/")
    wrong = [
        path for path in paths if not (path / "config.yaml").exists() or not (path / "card.json").exists()
    ]
    if wrong:
        raise EnsuiteError(
            f"not a run folder (config.yaml and card.json are needed): {', '.join(map(str, wrong))}; "
            "leave it out, or train one with `ensuite train MODEL --data DATA --out RUN`"
        )
    return [load_run(path) for path in paths]


def named_entries(runs: list[Any]) -> list[Any]:
    """Return the entries, named by their folders, or by their whole paths when two folders have one name."""
    from ensuite.evaluate.entries import as_entry

    names = [run.path.resolve().name for run in runs]
    names = [str(run.path) if names.count(name) > 1 else name for run, name in zip(runs, names)]
    return [as_entry(run, name) for run, name in zip(runs, names)]


def print_table(console: Console, result: Comparison) -> None:
    """Print quality, then cost; what cannot be told from the reference is bold."""
    from ensuite.evaluate.report import tables

    for at in range(0, len(result.metrics), COLUMNS):
        console.print(_quality(result, result.metrics[at : at + COLUMNS], first=at == 0))
    beyond = result.beyond if len(result.beyond) <= COLUMNS else ()  # else in a table of their own
    if not beyond and result.beyond:
        lists = Table("run", title="Of the lists", title_justify="left")
        for name in result.beyond:
            lists.add_column(name, justify="right")
        for row in result.rows:
            lists.add_row(escape(row.name), *(tables.score(value) for value in row.beyond.values()))
        console.print(lists)
    costs = Table("run", title="What it takes", title_justify="left")
    for name in (*beyond, "training", "scoring", "params", "memory"):
        costs.add_column(name, justify="right")
    for row in result.rows:
        costs.add_row(
            escape(row.name),
            *(tables.score(row.beyond[name]) for name in beyond),
            tables.seconds(row.train_seconds),
            tables.seconds(row.seconds),
            tables.count(row.parameters),
            tables.memory(row.memory),
        )
    console.print(costs)
    for note in tables.notes(result)[1:-1]:
        console.print(f"[dim]{escape(note.replace('**', ''))}[/]", highlight=False)


def _quality(result: Comparison, metrics: Sequence[str], first: bool) -> Table:
    """Make the table of some of the metrics; the first also holds the test against the reference."""
    from ensuite.evaluate.report import tables

    quality = Table("run", title=escape(tables.title(result)) if first else None, title_justify="left")
    for name in metrics:
        quality.add_column(name, justify="right", no_wrap=True)
    if first:
        quality.add_column(f"against {escape(result.reference)}", justify="right")
    for row in result.rows:
        cells = [escape(row.name) + ("\n[dim]reads request time[/]" if row.request_time else "")]
        for name in metrics:
            value = row.metrics[name]
            level = tables.verdict(result, row, name) in ("reference", "level")
            shown = f"[bold]{tables.score(value.mean)}[/]" if level else tables.score(value.mean)
            cells.append(f"{shown}\n[dim]{tables.interval(value)}[/]")
        quality.add_row(*cells, *([_against(result, row)] if first else []))
    return quality


def _against(result: Comparison, row: Row) -> str:
    from ensuite.evaluate.report import tables

    metric = result.metrics[0]
    test = row.tests.get(metric)
    if test is None:
        return "[dim]reference[/]"
    colour = {"worse": "red", "better": "green", "level": "default"}[tables.verdict(result, row, metric)]
    sign = "+" if test.difference.mean > 0 else ""
    return f"[{colour}]{sign}{tables.score(test.difference.mean)}[/]\n[dim]p {tables.p_value(test.p_holm)}[/]"
