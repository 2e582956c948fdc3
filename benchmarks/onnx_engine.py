"""What an exported graph saves: the same requests answered by the model (eager), its ONNX graph, and in int8.

    python benchmarks/onnx_engine.py --out results/
    python benchmarks/onnx_engine.py --threads 2 --out results/

An untrained SASRec of ML-1M's size (time does not depend on the weights), once with its defaults and once as
recipes/sasrec/ml-1m.yaml; histories of 200 events. Two times: the engine alone (`Engine.top_k`), and
`Recommender.recommend` from item ids to items. The engines take turns, request by request, so that whatever
else runs on the machine meets all of them; the least time is kept. Rows of other numbers of threads stay in
the file.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from ensuite.data.batches import History
from ensuite.serve.engine import Engine, ModelEngine
from ensuite.serve.export.engine import OnnxEngine
from ensuite.serve.export.export import export_onnx
from ensuite.serve.recommender import Recommender
from ensuite.training.config import read_recipe, resolve
from ensuite.training.run import Run

FIELDS = ("dim", "threads", "batch", "what", "engine", "megabytes", "milliseconds", "times_eager")
K = 10


@dataclass
class Options:
    """The catalogue, and how often each request is made."""

    items: int = 3_416
    """Items of the catalogue: ML-1M's."""
    length: int = 200
    """Events of a history."""
    batches: tuple[int, ...] = (1, 64)
    """Histories of a request."""
    rounds: int = 200
    """Single requests of each engine; of larger ones as many as take that time, at least 20."""
    threads: int = 1
    """Threads of PyTorch and of ONNX Runtime."""
    recipe: Path = Path("recipes/sasrec/ml-1m.yaml")
    """The second model's settings."""
    out: Path | None = None
    """Folder for onnx.csv."""


def main() -> None:
    """Time both models; print a table, write a CSV."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    rows = []
    for values in ({"model": {"max_length": options.length}}, read_recipe(str(options.recipe))[0]):
        rows += measure(values, options)
    table = Table(*FIELDS)
    for row in rows:
        table.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()))
    Console().print(table)
    if options.out is not None:
        path = options.out / "onnx.csv"
        before = path.read_text().splitlines() if path.exists() else []
        kept = [row for row in csv.DictReader(before) if row["threads"] != str(options.threads)]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted([*kept, *rows], key=lambda row: int(row["threads"])))


def measure(values: dict[str, Any], options: Options) -> list[dict[str, Any]]:
    """Export one model twice and time its three engines: the rows of the table."""
    cls, config = resolve("sasrec", values)
    torch.manual_seed(0)
    model = cls(config.model, options.items).eval()
    ids = list(range(1, options.items + 1))
    with TemporaryDirectory() as folder:
        run = Run(Path(folder), model, config, card={})
        engines: dict[str, Engine] = {"eager": ModelEngine(model)}
        sizes: dict[str, float | str] = {"eager": ""}
        for name, int8 in (("onnx", False), ("onnx int8", True)):
            export = export_onnx(run, Path(folder, f"{name}.onnx"), int8=int8, threads=options.threads)
            engines[name] = OnnxEngine(export.path, threads=options.threads)
            sizes[name] = round(export.costs[-1].megabytes or 0, 2)
    rng, rows = np.random.default_rng(0), []
    for batch in options.batches:
        items = rng.integers(1, options.items + 1, (batch, options.length))
        history, seen = History(torch.from_numpy(items)), [np.unique(row) for row in items]
        requests = [row.tolist() for row in items] if batch > 1 else items[0].tolist()
        recommenders = {name: Recommender(model, ids, engine=engine) for name, engine in engines.items()}
        calls: dict[str, dict[str, Callable[[], object]]] = {
            "engine": {n: partial(e.top_k, history, K, None, seen) for n, e in engines.items()},
            "recommend": {n: partial(r.recommend, requests, K) for n, r in recommenders.items()},
        }
        for what, by_engine in calls.items():
            taken = take_turns(by_engine, max(20, options.rounds // batch))
            for name, seconds in taken.items():
                rows.append(
                    {
                        "dim": config.model.dim, "threads": options.threads, "batch": batch, "what": what,
                        "engine": name, "megabytes": sizes[name], "milliseconds": round(1e3 * seconds, 3),
                        "times_eager": round(taken["eager"] / seconds, 2),
                    }
                )  # fmt: skip
    return rows


def take_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the least seconds of each call."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - began)
    return {name: min(times) for name, times in taken.items()}


if __name__ == "__main__":
    main()
