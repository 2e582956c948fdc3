"""Items that no training saw: hidden, described by their text, recommended.

    python benchmarks/cold_start.py hide data/ml --share 0.1 --out data/ml-warm
    ensuite train tiger --data data/ml-warm --out runs/warm/tiger ...          # likewise the others
    python benchmarks/cold_start.py measure data/ml data/ml-warm --runs runs/warm/*

`hide` draws items and takes all of their events out of the log. `measure` gives each run the hidden items by
their text, as `ensuite recommend --new-items` does, and asks it for ten of *all* items: after the last known
events of each user whose held-out item is a hidden one (cold), and after those of the other users (warm). A
system that knows items one by one cannot be given any: its cold share is 0, and its warm lists are unchanged.
`old items only` is the warm share before the new ones were added: what they cost the others.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ensuite.data.dataset import Dataset
from ensuite.data.prepare import PrepareConfig, prepare
from ensuite.errors import EnsuiteError
from ensuite.serve.recommender import Recommender
from ensuite.training.run import load_run

K = 10
SHOWN = ("run", "cold hr@10", "cold ndcg@10", "warm hr@10", "warm ndcg@10", "old items only hr@10")
BATCH = 128


@dataclass
class Hide:
    """Take items out of a dataset."""

    data: Annotated[Path, tyro.conf.Positional]
    """A prepared dataset whose items have texts."""
    out: Path
    """The dataset without them."""
    share: float = 0.1
    """Share of the items that is hidden."""
    seed: int = 0
    """Of the draw."""


@dataclass
class Measure:
    """Recommend them."""

    data: Annotated[Path, tyro.conf.Positional]
    """The whole dataset."""
    warm: Annotated[Path, tyro.conf.Positional]
    """The one without the hidden items, that the runs were trained on."""
    runs: tuple[Path, ...]
    """Runs of it."""
    users: int = 2000
    """Most users asked for of each kind; drawn."""
    out: Path = Path(__file__).parents[1] / "results" / "cold_start.csv"
    """The table; rows of the same data are replaced."""


def log_of(dataset: Dataset) -> pl.DataFrame:
    """Return the events of a dataset in order: user, item, position."""
    events = dataset.events("all")
    n, rows = events.lengths, events.rows()
    users = dataset.users["user_id"].to_list()
    ids = dataset.items["item_id"].to_list()
    return pl.DataFrame(
        {
            "user": [users[user] for user in np.repeat(np.arange(len(n)), n)],
            "item": [ids[item - 1] for item in events.item_idx[rows].tolist()],
            "position": np.arange(len(rows)),
        }
    )


def hide(options: Hide) -> None:
    dataset = Dataset.open(options.data)
    rng = np.random.default_rng(options.seed)
    ids = dataset.items["item_id"]
    hidden = ids.gather(rng.permutation(len(ids))[: round(options.share * len(ids))])
    log = log_of(dataset).filter(~pl.col("item").is_in(hidden.implode()))
    folder = options.out.with_name(options.out.name + "-source")
    folder.mkdir(parents=True, exist_ok=True)
    log.write_parquet(folder / "log.parquet")
    dataset.items.filter(~pl.col("item_id").is_in(hidden.implode())).write_parquet(folder / "items.parquet")
    config = PrepareConfig(order="position", items=str(folder / "items.parquet"))
    made = prepare(folder / "log.parquet", out=options.out, config=config, overwrite=True)
    Console().print(f"{options.out}: {made.n_items:,} of {len(ids):,} items", highlight=False)


def cases(whole: Dataset, warm: Dataset, most: int) -> tuple[list[Any], list[Any]]:
    """Return (history, target) of users whose last item is hidden, and of users whose last one is not."""
    known = set(warm.items["item_id"].to_list())
    cold, other = [], []
    for _, group in log_of(whole).group_by("user", maintain_order=True):
        *history, target = group["item"].to_list()
        history = [item for item in history if item in known]
        if history:
            (other if target in known else cold).append((history, target))
    rng = np.random.default_rng(0)
    return tuple(  # type: ignore[return-value]
        [found[i] for i in sorted(rng.permutation(len(found))[:most])] for found in (cold, other)
    )


def ranks(recommender: Recommender, asked: list[Any], what: str) -> np.ndarray:
    """Return the place of each target among the first ten, from 0; ten where it is not."""
    places = np.full(len(asked), K)
    for start in track(range(0, len(asked), BATCH), what):
        part = asked[start : start + BATCH]
        lists = recommender.recommend([history for history, _ in part], k=K).ids
        for number, (found, (_, target)) in enumerate(zip(lists, part)):
            if target in found:
                places[start + number] = found.index(target)
    return places


def shares(places: np.ndarray) -> tuple[float, float]:
    """Return HR@10 and NDCG@10."""
    hit = places < K
    return float(hit.mean()), float((hit / np.log2(places + 2)).mean())


def measure(options: Measure) -> None:
    whole, warm = Dataset.open(options.data), Dataset.open(options.warm)
    known = warm.items["item_id"].to_list()
    new = whole.items.filter(~pl.col("item_id").is_in(pl.Series(known).implode()))
    cold, other = cases(whole, warm, options.users)
    rows = []
    for path in options.runs:
        run = load_run(path)
        base = Recommender.of(run)
        before = shares(ranks(base, other, f"{run.name}: old items only"))
        row: dict[str, Any] = {"run": run.name, "system": run.config.name, "data": whole.path.name}
        row |= {"cold cases": len(cold), "warm cases": len(other), "new items": len(new)}
        try:
            grown = base.with_described(new, str(whole.path))
        except EnsuiteError as error:
            Console().print(f"{run.name}: {error}", highlight=False)
            row |= {"can": False, "cold hr@10": 0.0, "cold ndcg@10": 0.0}
            row |= {"warm hr@10": before[0], "warm ndcg@10": before[1]}
        else:
            row |= {"can": True}
            for kind, asked in (("cold", cold), ("warm", other)):
                found = shares(ranks(grown, asked, f"{run.name}: {kind}"))
                row |= dict(zip((f"{kind} hr@10", f"{kind} ndcg@10"), found))
        row |= {"old items only hr@10": before[0], "old items only ndcg@10": before[1]}
        rows.append(row)
    write(rows, options.out)


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """Put the rows into the table, and show them."""
    kept = []
    if out.exists():
        with out.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["data"] != rows[0]["data"]]
    shown = [{k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept + shown)
    table = Table(*SHOWN)
    for row in shown:
        table.add_row(*(str(row[name]) for name in SHOWN))
    Console().print(table)


def main() -> None:
    options = tyro.extras.subcommand_cli_from_dict({"hide": Hide, "measure": Measure}, description=__doc__)
    hide(options) if isinstance(options, Hide) else measure(options)


if __name__ == "__main__":
    main()
