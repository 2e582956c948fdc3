"""`ensuite prepare`: from a log to a dataset folder, and a report of what happened."""

from __future__ import annotations

import shlex
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pydantic
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ensuite.config import explain
from ensuite.data.options import PrepareConfig
from ensuite.data.prepare import Progress, prepare
from ensuite.data.report import tables
from ensuite.errors import EnsuiteError

PATIENCE = 2.0  # seconds until progress is shown


@dataclass(frozen=True)
class Arguments:
    """Make a dataset folder of a log of who did what and when.

    ensuite prepare ml-small --out data/ml

    ensuite prepare ml-1m --from ml-1m.zip --min-user 5 --min-item 5 --out data/ml-1m

    ensuite prepare log.csv --user uid --item sku --time ts --out data/own --split global-time
    """

    log: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LOG...")]
    """Files (CSV, TSV, NDJSON, Parquet, benchmark text; globs, .gz, .zst), or the name of a public dataset:
    ml-small, ml-1m, ..."""
    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace the dataset that is at --out."""
    config: Annotated[PrepareConfig, tyro.conf.arg(name="")] = field(default_factory=PrepareConfig)


def main(argv: list[str]) -> None:
    """Run `ensuite prepare` with the arguments after its name."""
    try:
        given = tyro.cli(tyro.conf.OmitArgPrefixes[Arguments], args=argv, prog="ensuite prepare")
    except pydantic.ValidationError as error:
        raise EnsuiteError(explain(error, PrepareConfig, "ensuite prepare")) from None
    console = Console()
    with Shown(console) as shown:
        dataset = prepare(
            list(given.log),
            out=given.out,
            config=given.config,
            overwrite=given.overwrite,
            progress=shown.update,
        )
    for table in tables(dataset.card):
        console.print(table)
    for note in dataset.card["report"]["notes"]:
        console.print(f"- {escape(note)}", highlight=False)
    console.print(f"\n[bold]{escape(str(given.out))}[/bold]: {dataset.n_events:,} events, ready. Next:")
    folder = shlex.quote(str(given.out))
    console.print(
        escape(f"  ensuite train sasrec --data {folder} --out runs/sasrec"), highlight=False, soft_wrap=True
    )


class Shown:
    """Prints the columns found, and a spinner with the stage when the work takes longer than `PATIENCE`."""

    def __init__(self, console: Console):
        self.console = console
        self.status = console.status("reading ...")
        self.timer = threading.Timer(PATIENCE, self.status.start)
        self.timer.daemon = True

    def __enter__(self) -> Shown:
        self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        self.status.stop()

    def update(self, progress: Progress) -> None:
        """Take news from `prepare`."""
        self.status.update(f"{progress.stage} ...")
        if progress.sample is None:
            return
        table = Table("taken for", "column", "how", "first values", title="Columns", title_justify="left")
        for role in progress.roles:
            first = ", ".join(str(v) for v in progress.sample[role.column].to_list())
            table.add_row(role.role, escape(role.column), role.how, escape(first[:60]))
        self.console.print(table)
