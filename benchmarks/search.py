"""Search over a million items on one core: the dense product, PQTopK, PQTopK with pruning, HNSW.

    OMP_NUM_THREADS=1 python benchmarks/search.py --out results/
    OMP_NUM_THREADS=1 python benchmarks/search.py --items 100000 --hnsw --append --out results/

Three kinds of made-up vectors, since no trained catalogue of this size comes with the package:

- clustered-32: as trained tables look: Gaussian clusters of unequal sizes with a falling spectrum, most of
  the variance in the first dimensions of a rotated basis, lengths spread as by popularity; users lie near an
  item. Inside a cluster the items have 32 dimensions of their own.
- clustered-8: the same, 8 dimensions inside a cluster.
- gaussian: independent, for items and users: the hardest case for pruning, since nothing stands out.

The codes are trained on the vectors themselves by `ensuite.codes.product.quantise` (M = 8 splits of 256
sub-items). Every method answers the same users one at a time, in turn, so that whatever else the machine
does meets all of them; then all users as one batch. The time of a user is the median of `--rounds`; medians
and 95th percentiles over users are written. `speedup` is against `dense` (matrix product and `torch.topk`, as
plain PyTorch does it), `speedup_exact` against the package's own exact search. `agreement` is the share of
answers (scores and items, in order) equal to those of PQTopK without pruning, `recall_dense` the share of the
dense top k that is found.
"""

from __future__ import annotations

import csv
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

from ensuite.codes.product import ProductConfig, quantise
from ensuite.serve.search.hnsw import HNSWConfig, HNSWSearch, build_graph
from ensuite.serve.search.pq import PQTopK
from ensuite.serve.search.pruned import PrunedPQTopK
from ensuite.serve.search.searcher import ExactSearch

FIELDS = (
    "vectors", "items", "dim", "splits", "k", "threads", "method", "median_ms", "p95_ms", "speedup",
    "speedup_exact", "batch_ms_per_user", "agreement", "recall_dense", "build_seconds",
)  # fmt: skip


@dataclass
class Options:
    """How large, how often, and where to."""

    vectors: tuple[str, ...] = ("clustered-32", "clustered-8", "gaussian")
    """Kinds of vectors."""
    items: int = 1_000_000
    """Items."""
    dim: int = 64
    """Dimensions."""
    splits: int = 8
    """Splits of the quantised table."""
    k: int = 10
    """How many items are asked for."""
    users: int = 40
    """Users."""
    rounds: int = 3
    """Times that each user is answered; the median is kept."""
    threads: int = 1
    """Threads of torch (set OMP_NUM_THREADS too)."""
    hnsw: bool = False
    """Build and time the graph as well (of a million items it takes long on one core)."""
    append: bool = False
    """Add rows to search.csv instead of replacing it."""
    seed: int = 0
    """Seed of the vectors."""
    out: Path = Path("results")
    """Folder for search.csv."""


@torch.inference_mode()
def main(options: Options) -> None:
    """Time every method on every kind of vectors; print the table and write the CSV."""
    torch.set_num_threads(options.threads)
    rows = [row for kind in options.vectors for row in measure(kind, options)]
    show(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "search.csv").open("a" if options.append else "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)


def measure(kind: str, options: Options) -> list[dict[str, Any]]:
    """Return one row of the CSV for each method."""
    table, users = make(kind, options)
    k, nothing = options.k, [np.zeros(0, np.int64)]
    catalogue = table[1:]
    began = time.perf_counter()
    codes = quantise(catalogue, ProductConfig(splits=options.splits))
    quantising = time.perf_counter() - began
    searchers: dict[str, Any] = {"exact": ExactSearch(table), "pq": PQTopK(codes)}
    built = {"dense": 0.0, "exact": 0.0, "pq": quantising}
    began = time.perf_counter()
    searchers["pq-pruned"] = PrunedPQTopK(codes)
    built["pq-pruned"] = quantising + time.perf_counter() - began
    if options.hnsw:
        began = time.perf_counter()
        searchers["hnsw"] = HNSWSearch(table, build_graph(table, HNSWConfig()), HNSWConfig())
        built["hnsw"] = time.perf_counter() - began

    def dense(asked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, places = (asked @ catalogue.T).topk(k)
        return scores, places + 1

    methods: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {"dense": dense}
    for name, searcher in searchers.items():
        methods[name] = lambda asked, s=searcher: s.search(asked, k, None, nothing * len(asked))
    single = time_in_turn(methods, users, options.rounds)  # method -> [users] seconds
    found = {name: method(users) for name, method in methods.items()}
    batch = {}
    for name, method in methods.items():
        began = time.perf_counter()
        method(users)
        batch[name] = (time.perf_counter() - began) / len(users)
    medians = {name: float(np.median(seconds)) for name, seconds in single.items()}
    return [
        {
            "vectors": kind,
            "items": options.items,
            "dim": options.dim,
            "splits": options.splits if name.startswith("pq") else "",
            "k": k,
            "threads": options.threads,
            "method": name,
            "median_ms": f"{1e3 * medians[name]:.3f}",
            "p95_ms": f"{1e3 * float(np.quantile(single[name], 0.95)):.3f}",
            "speedup": f"{medians['dense'] / medians[name]:.2f}",
            "speedup_exact": f"{medians['exact'] / medians[name]:.2f}",
            "batch_ms_per_user": f"{1e3 * batch[name]:.3f}",
            "agreement": f"{agreement(found[name], found['pq']):.4f}" if name.startswith("pq") else "",
            "recall_dense": f"{recall(found[name][1], found['dense'][1]):.4f}",
            "build_seconds": f"{built[name]:.1f}",
        }
        for name in methods
    ]


def time_in_turn(
    methods: dict[str, Callable[[torch.Tensor], Any]], users: torch.Tensor, rounds: int
) -> dict[str, np.ndarray]:
    """Answer each user alone with every method in turn; the median of the rounds, method -> [users]."""
    seconds = {name: np.zeros((rounds, len(users))) for name in methods}
    for method in methods.values():
        method(users[:1])  # warm up
    for again in range(rounds):
        for number in range(len(users)):
            for name, method in methods.items():
                began = time.perf_counter()
                method(users[number : number + 1])
                seconds[name][again, number] = time.perf_counter() - began
    return {name: np.median(each, axis=0) for name, each in seconds.items()}


def make(kind: str, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    """Make up item vectors [V + 1, D], row 0 for padding, and users [U, D]."""
    n_items, dim, draw = options.items, options.dim, torch.Generator().manual_seed(options.seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    if kind == "gaussian":
        return normal(n_items + 1, dim), normal(options.users, dim)
    if not kind.startswith("clustered-"):
        raise SystemExit(f"{kind}: clustered-32, clustered-8 and gaussian are known")
    inner, clusters = min(dim, int(kind.removeprefix("clustered-"))), 1000
    spectrum = torch.arange(1, dim + 1).pow(-0.5)
    centres = normal(clusters, dim) * spectrum
    sizes = torch.arange(1, clusters + 1).pow(-0.7)  # few large clusters, many small ones
    which = torch.multinomial(sizes, n_items + 1, replacement=True, generator=draw)
    bases = normal(clusters, inner, dim) * spectrum / inner**0.5  # where a cluster's items spread
    table = centres[which]
    for cluster in range(clusters):
        members = (which == cluster).nonzero()[:, 0]
        table[members] += 0.6 * normal(len(members), inner) @ bases[cluster]
    table = table @ torch.linalg.qr(normal(dim, dim))[0]  # no dimension is special
    popularity = torch.rand(n_items + 1, 1, generator=draw).clamp(min=1e-6).pow(-0.1)  # Pareto: 1 to 4
    table *= popularity
    near = table[torch.randint(1, n_items + 1, (options.users,), generator=draw)]
    noise = normal(options.users, dim) * near.norm(dim=1, keepdim=True) * 0.3 / dim**0.5
    return table, near + noise


def agreement(found: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the share of users with the same scores and items in the same order, to the bit."""
    return float(((found[0] == other[0]) & (found[1] == other[1])).all(1).float().mean())


def recall(found: torch.Tensor, best: torch.Tensor) -> float:
    """Return the share of ``best`` [U, k] that is in ``found`` [U, k]."""
    return float((found[:, :, None] == best[:, None, :]).any(1).float().mean())


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    names = [name for name in FIELDS if name not in ("items", "dim", "splits", "k", "threads")]
    first = rows[0]
    title = f"{first['items']:,} items, d {first['dim']}, top {first['k']}, {first['threads']} thread(s)"
    table = Table(*names, title=title)
    for row in rows:
        table.add_row(*(str(row[name]) for name in names))
    Console(width=140).print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
