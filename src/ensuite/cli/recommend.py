"""``ensuite recommend``: ask a run what comes next."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from ensuite.serve.recommendations import Recommendations
    from ensuite.serve.recommender import Recommender

SHOWN = 5
"""How many events of the history are shown above the answer."""


DESCRIPTION = """\
Recommend items after a history: one given by hand, or that of a user in the data.

  ensuite recommend runs/sasrec --history 4311 587 --k 10
  ensuite recommend runs/sasrec --user 42
  ensuite recommend runs/sasrec --history 4311 587 --exclude none --candidates 1 2 3 --k 2 --json
  ensuite recommend runs/mender --history 4311 587 --preference "Find comedies"
  ensuite recommend runs/hstu --history 4311 587 --times 2024-05-01 2024-05-03T20:15 --at 2024-05-04
"""


@dataclass(frozen=True)
class Arguments:
    """The flags of `ensuite recommend`."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder, made by `ensuite train`."""
    history: tuple[str, ...] = ()
    """Item ids as they stand in the log, oldest first."""
    user: str | None = None
    """Instead of --history: a user of the dataset, with all their events."""
    times: tuple[str, ...] = ()
    """When each item of --history happened: ISO text, or a number in the dataset's unit."""
    sessions: tuple[str, ...] = ()
    """Session of each item of --history, with --times; default: models of sessions cut by pauses."""
    k: int = 10
    """How many items."""
    exclude: tuple[str, ...] = ()
    """seen (the history's own items), none, or the ids of items not to recommend; default: as the run was
    measured, seen but for a sessions split."""
    candidates: tuple[str, ...] = ()
    """Choose among these item ids only."""
    at: str | None = None
    """When the items are asked for; default: the time of the last event. With --user, events from then on
    are left out."""
    preference: str | None = None
    """What is wanted, in words, for a system that reads it (mender)."""
    new_items: Path | None = None
    """A table of items that came after the training (item_id and what describes an item): a system that knows
    items by their codes recommends them at once."""
    data: Path | None = None
    """The dataset of --user; default: the one the run was trained on."""
    engine: Literal["auto", "torch", "index", "onnx"] = "auto"
    """How the best items are found: torch by the model's scores, index by the index beside the run (`ensuite
    index`), onnx by its graph (`ensuite export RUN --onnx`); auto: by the index if there is one, else by the
    model."""
    json: bool = False
    """Print JSON, and nothing else, on standard output."""


def main(argv: list[str]) -> None:
    """Run `ensuite recommend` with the arguments after its name."""
    arguments = tyro.cli(
        Arguments,
        args=argv,
        prog="ensuite recommend",
        description=DESCRIPTION,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from ensuite.errors import EnsuiteError
    from ensuite.serve.recommender import Recommender
    from ensuite.training.new_items import read_new_items
    from ensuite.training.run import load_run

    if bool(arguments.history) == (arguments.user is not None):
        raise EnsuiteError("give either --history ID ... or --user ID")
    if arguments.times and len(arguments.times) != len(arguments.history):
        raise EnsuiteError(
            f"{len(arguments.times)} --times for {len(arguments.history)} items of --history: one for each"
        )
    if arguments.sessions and not len(arguments.sessions) == len(arguments.times) == len(arguments.history):
        raise EnsuiteError(
            f"{len(arguments.sessions)} --sessions for {len(arguments.history)} items of --history with "
            f"{len(arguments.times)} --times: one of each for each item"
        )
    run = load_run(arguments.run)
    recommender = Recommender.of(run, engine=arguments.engine)
    if arguments.new_items is not None:
        items = read_new_items(arguments.new_items, recommender.item_ids)
        recommender = recommender.with_described(items, str(arguments.new_items))
    history = _history(arguments, run)
    exclude: Any = arguments.exclude or None
    if exclude in {("seen",), ("none",)}:
        exclude = exclude[0]
    answer = recommender.recommend(
        history,
        arguments.k,
        exclude=exclude,
        candidates=arguments.candidates or None,
        at=arguments.at,
        preference=arguments.preference,
    )
    _warn(answer, len(history))
    if arguments.json:
        sys.stdout.write(
            json.dumps({"run": str(arguments.run), **answer.to_dict()}, indent=2, default=str) + "\n"
        )
    else:
        _show(recommender, history, answer, str(arguments.run))


def _history(arguments: Arguments, run: Any) -> list[Any]:
    from ensuite.data.dataset import Dataset
    from ensuite.serve.recommender import user_history

    if arguments.user is None:
        if arguments.sessions:
            return list(zip(arguments.history, arguments.times, arguments.sessions))
        return list(zip(arguments.history, arguments.times) if arguments.times else arguments.history)
    dataset = run.dataset() if arguments.data is None else Dataset.open(arguments.data)
    return user_history(dataset, arguments.user, before=arguments.at)


def _warn(answer: Recommendations, length: int) -> None:
    for unknown, what in (
        (answer.unknown, f"of the {length} items of the history"),
        (answer.unknown_candidates, "of the candidates"),
    ):
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            sys.stderr.write(f"warning: {len(unknown)} {what} unknown to the model, left out: {shown}\n")


def _show(recommender: Recommender, history: list[Any], answer: Recommendations, run: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    before, after = Table(), Table()
    titled = recommender.titles is not None
    for table, last in ((before, []), (after, ["score"])):
        table.add_column("", justify="right")
        for name in ["item", *(["title"] if titled else []), *last]:
            table.add_column(name, justify="right" if name == "score" else "left")
    for number, event in enumerate(history[-SHOWN:], max(1, len(history) - SHOWN + 1)):
        item = event[0] if isinstance(event, tuple) else event
        title = recommender.title(item)
        before.add_row(str(number), escape(str(item)), *([escape(title or "(unknown)")] if titled else []))
    for rank, row in enumerate(answer.to_dict()["items"], 1):
        cells = [str(row["item_id"]), *([row["title"]] if titled else [])]
        after.add_row(str(rank), *map(escape, cells), f"{row['score']:.4g}")
    shown = f"the last {SHOWN} of {len(history)} events" if len(history) > SHOWN else "the history"
    console.print(f"{shown}:", before, f"\nwhat {escape(run)} puts next:", after, highlight=False)
