"""What micro-batching is worth: requests that meet are scored in one call, against one after another.

    python benchmarks/serve_batching.py --out results/

An untrained SASRec of ML-1M's size (time does not depend on the weights): 3,417 items, two blocks, width 64,
a window of 200. Sixty-four histories are answered in three ways:

- plain: PyTorch as one writes it, for each history the encoder, the scores of all items, `torch.topk`;
- single: `Recommender.recommend` for each;
- batch: `Recommender.recommend_each` for all of them, as the service calls it.

The ways take turns, round after round, so that whatever else runs on the machine meets all of them; the
median of the rounds is kept. A ratio is against plain, with the same threads.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from ensuite.data.batches import History
from ensuite.models.sasrec import SASRec
from ensuite.serve.recommender import Recommender
from ensuite.serve.requests import Ask

FIELDS = ("length", "threads", "way", "requests", "milliseconds_per_request", "requests_per_second", "ratio")


@dataclass
class Options:
    """The shape of the model, and how often it is timed."""

    items: int = 3_417
    """Items of the catalogue."""
    dim: int = 64
    """Width."""
    blocks: int = 2
    """Layers."""
    window: int = 200
    """Longest history that the model reads."""
    lengths: tuple[int, ...] = (10, 50, 200)
    """Events of each history."""
    requests: int = 64
    """Histories that meet."""
    rounds: int = 9
    """Rounds; their median is kept."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of PyTorch."""
    out: Path = Path("results")
    """Folder for serve_batching.csv."""


def main(options: Options) -> None:
    """Time every way, print the table, write the CSV."""
    rows, rng = [], np.random.default_rng(0)
    torch.manual_seed(0)
    config = SASRec.Config(dim=options.dim, blocks=options.blocks, max_length=options.window)
    recommender = Recommender(SASRec(config, options.items), list(range(1, options.items + 1)))
    for threads in options.threads:
        torch.set_num_threads(threads)
        for length in options.lengths:
            histories = [
                (rng.permutation(options.items)[:length] + 1).tolist() for _ in range(options.requests)
            ]
            seconds = time_ways(ways(recommender, histories), options.rounds)
            rows += [describe(options, length, threads, way, seconds) for way in seconds]
    show(rows)
    with (options.out / "serve_batching.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def ways(recommender: Recommender, histories: list[list[int]]) -> dict[str, Callable[[], object]]:
    """Return what is timed."""
    model: Any = recommender.model

    @torch.inference_mode()
    def plain() -> None:
        for history in histories:
            output = model(History(torch.tensor([history])))[:, -1]  # [1, D]
            scores = output @ model.item_vectors().T
            scores[0, [0, *history]] = -torch.inf
            scores.topk(10)

    asks = [Ask(history, 10) for history in histories]
    return {
        "plain": plain,
        "single": lambda: [recommender.recommend(history) for history in histories],
        "batch": lambda: recommender.recommend_each(asks),
    }


def time_ways(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each way."""
    seconds: dict[str, list[float]] = {way: [] for way in calls}
    for round_ in range(rounds + 1):
        for way, call in calls.items():
            begun = time.perf_counter()
            call()
            if round_:  # the first one warms up
                seconds[way].append(time.perf_counter() - begun)
    return {way: statistics.median(times) for way, times in seconds.items()}


def describe(
    options: Options, length: int, threads: int, way: str, seconds: dict[str, float]
) -> dict[str, object]:
    """Return a row of the CSV."""
    one = seconds[way] / options.requests
    return {
        "length": length,
        "threads": threads,
        "way": way,
        "requests": options.requests,
        "milliseconds_per_request": round(1_000 * one, 4),
        "requests_per_second": round(1 / one, 1),
        "ratio": round(seconds["plain"] / seconds[way], 3),
    }


def show(rows: list[dict[str, object]]) -> None:
    """Print the rows."""
    table = Table(*FIELDS)
    for row in rows:
        table.add_row(*(str(row[name]) for name in FIELDS))
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
