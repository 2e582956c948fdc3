"""``ensuite join``: several prepared datasets as one."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Arguments:
    """Make one dataset of several, for systems that learn from many domains (recgpt).

    Each keeps its own split. Ids become NAME:ID, by the name of the folder, which is also the column
    `domain` of the item table.

    ensuite join data/beauty data/games --out data/both
    """

    datasets: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA...")]
    """Dataset folders, made by `ensuite prepare` with one kind of split."""
    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace the dataset that is at --out."""


def main(argv: list[str]) -> None:
    """Run `ensuite join` with the arguments after its name."""
    args = tyro.cli(Arguments, args=argv, prog="ensuite join", config=(tyro.conf.FlagCreatePairsOff,))
    from rich.console import Console
    from rich.markup import escape

    from ensuite.data.join import join
    from ensuite.data.report import tables

    dataset = join(args.datasets, args.out, overwrite=args.overwrite)
    console = Console()
    for table in tables(dataset.card):
        console.print(table)
    for note in dataset.card["report"]["notes"]:
        console.print(f"- {escape(note)}", highlight=False)
    folder = shlex.quote(str(args.out))
    console.print(f"\n[bold]{escape(str(args.out))}[/bold]: {dataset.n_events:,} events, ready. Next:")
    console.print(
        escape(f"  ensuite train recgpt --data {folder} --out runs/recgpt"), highlight=False, soft_wrap=True
    )
