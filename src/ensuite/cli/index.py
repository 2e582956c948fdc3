"""``ensuite index``: build and measure ways to search a run's items, and keep the best beside the run."""

from __future__ import annotations

import importlib.util
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ensuite.serve.search.index import KINDS, IndexConfig, Kind

if TYPE_CHECKING:
    from torch import Tensor

    from ensuite.models.base import Retriever
    from ensuite.serve.search.measure import Asked, Measured
    from ensuite.training.run import Run


DESCRIPTION = """\
Build an index of a run's items, so that answers from a large catalogue are fast; `ensuite recommend` uses it.

  ensuite index runs/sasrec
  ensuite index runs/sasrec --kind pq-pruned --pq.splits 16
  ensuite index runs/sasrec --recall 0.95 --hnsw.ef-search 256

Four kinds. exact scores every item with the model. pq scores every quantised item, by looking up sums, and
finds the best of the quantised table. pq-pruned finds the same and leaves most items unread. hnsw walks a
graph of the items, then scores what it found exactly (extra `ann`).

All are measured against the model's exact scores. auto keeps the fastest for a single user among those whose
recall is at least --recall: exact, unless another is 1.1 times faster than it.
"""


@dataclass(frozen=True)
class Arguments:
    """The flags of `ensuite index`."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run folder, made by `ensuite train`."""
    kind: Literal["auto", "exact", "pq", "pq-pruned", "hnsw"] = "auto"
    """Measure all kinds and keep the best, or keep this one."""
    recall: float = 0.99
    """Smallest share of the model's own best k that auto lets a kind find."""
    k: int = 10
    """How many items a request asks for."""
    users: int = 256
    """Users that are asked for."""
    batch: int = 64
    """Users of a batch."""
    data: Path | None = None
    """Dataset folder, when it has moved since the training; its test histories are asked for."""
    index: Annotated[IndexConfig, tyro.conf.arg(name="")] = field(default_factory=IndexConfig)


def main(argv: list[str]) -> None:
    """Build, measure, print the table and write the index into the run folder."""
    args = tyro.cli(Arguments, args=argv, prog="ensuite index", description=DESCRIPTION)
    from ensuite.errors import EnsuiteError
    from ensuite.serve.search.engine import check_dot_product, item_table
    from ensuite.serve.search.index import write_index
    from ensuite.serve.search.measure import pick
    from ensuite.training.run import load_run

    for name in ("k", "users", "batch"):
        if getattr(args, name) < 1:
            raise EnsuiteError(f"--{name} {getattr(args, name)}: at least 1 is needed")
    if not 0 <= args.recall <= 1:
        raise EnsuiteError(f"--recall {args.recall}: a share between 0 and 1")
    run = load_run(args.run)
    model = check_dot_product(run.model)
    vectors = item_table(model)
    asked, whose = _ask(run, model, vectors, args)
    kinds = _kinds(args.kind)
    measured = _measure(kinds, vectors, asked, args)
    chosen = pick(measured, args.recall) if args.kind == "auto" else args.kind
    _show(measured, chosen, f"{run.name}: {len(vectors) - 1:,} items, {whose}", args)
    path = write_index(run, next(one.index for one in measured if one.index.kind == chosen))
    sys.stdout.write(
        f"Written: {path} ({chosen})\n"
        f"Next: ensuite recommend {args.run} --history ID ...    (--engine torch leaves the index aside)\n"
    )


def _ask(run: Run, model: Retriever, vectors: Tensor, args: Arguments) -> tuple[Asked, str]:
    """Return the users to measure with, and who they are: of the dataset, or else made of items."""
    from ensuite.errors import EnsuiteError
    from ensuite.serve.search.measure import users_of_dataset, users_of_items

    exclude = run.card.get("protocol", {}).get("exclude", "seen")
    try:
        dataset = run.dataset(args.data)
        asked = users_of_dataset(model, dataset, args.users, exclude)
    except EnsuiteError as error:
        if args.data is not None:
            raise
        sys.stderr.write(f"warning: item vectors stand for users, since the data are not at hand: {error}\n")
        asked = users_of_items(vectors, args.users)
        return asked, f"{len(asked.users):,} item vectors in place of users"
    return asked, f"{len(asked.users):,} test histories of {dataset.path}"


def _kinds(asked: str) -> list[Kind]:
    """Return the kinds to measure: exact always, hnsw in auto only where faiss is installed."""
    if asked != "auto":
        return [kind for kind in KINDS if kind in ("exact", asked)]
    if importlib.util.find_spec("faiss") is None:
        sys.stderr.write("hnsw is left out: faiss is not installed; pip install 'ensuite[ann]'\n")
        return [kind for kind in KINDS if kind != "hnsw"]
    return list(KINDS)


def _measure(kinds: list[Kind], vectors: Tensor, asked: Asked, args: Arguments) -> list[Measured]:
    from ensuite.cli.evaluate import Bar
    from ensuite.errors import EnsuiteError
    from ensuite.serve.search.index import Index, build_index
    from ensuite.serve.search.measure import best_rows, measure_index

    room = len(vectors) - 1 - max(map(len, asked.excluded))
    if args.k > room:
        raise EnsuiteError(f"--k {args.k}: a user has only {room} items left to choose from")
    best = best_rows(vectors, asked, args.k, args.batch)
    measured: list[Measured] = []
    codes: Index | None = None  # of pq and pq-pruned alike
    with Bar(unit="steps") as bar:
        for number, kind in enumerate(kinds):
            began = time.perf_counter()
            if codes is not None and kind == "pq-pruned":
                index, seconds = Index(kind, codes.settings, codes.tensors), measured[-1].build_seconds
            else:
                index = build_index(kind, vectors, args.index, bar.of(f"building {kind}"))
                seconds = time.perf_counter() - began
            codes = index if kind == "pq" else codes
            measured.append(measure_index(index, vectors, asked, best, args.batch, seconds))
            bar.update("measuring", number + 1, len(kinds))
    return measured


def _show(measured: list[Measured], chosen: Any, title: str, args: Arguments) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("kind", title=escape(title), title_justify="left")
    for name in (
        f"recall@{args.k}",
        "one user, ms",
        "p99",
        f"of {args.batch}, ms a user",
        "built, s",
        "file, MB",
    ):
        table.add_column(name, justify="right")
    for one in measured:
        name = one.index.kind
        table.add_row(
            f"[bold]{name}[/]" if name == chosen else name,
            f"{one.recall:.4f}",
            f"{one.median_ms:.3f}",
            f"{one.p99_ms:.3f}",
            f"{one.batch_ms:.3f}",
            f"{one.build_seconds:.1f}",
            f"{one.index.megabytes:.1f}",
        )
    console = Console()
    console.print(table)
    if args.kind == "auto":
        why = f"recall of at least {args.recall:g}, fastest for one user"
        console.print(f"Picked: {chosen} ({why}; exact unless 1.1 times faster)", highlight=False)
