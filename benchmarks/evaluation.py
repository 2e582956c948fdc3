"""Time and memory of evaluation.

    python benchmarks/evaluation.py ml-1m                     # full ranking of 6,040 users, metrics included
    python benchmarks/evaluation.py ml-1m --data data/ml-1m   # the same on the real log
    python benchmarks/evaluation.py large                     # 100,000 users x 1,000,000 items: peak memory
    python benchmarks/evaluation.py large --users 5000        # fewer users, the same memory per batch

``ml-1m`` times SASRec (d 50, 2 blocks, 1 head, length 200) with random weights: histories read, forward,
scores of all 3,416 items, seen items left out, ranks, and five metrics. Each repetition does everything
anew. ``large`` runs in a process of its own, whose peak resident memory is printed beside what Python, torch
and the item table take before the evaluation begins.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ensuite.data.batches import History
from ensuite.data.dataset import Cases, Dataset, Events
from ensuite.evaluate.metrics import compute_metrics
from ensuite.evaluate.ranks import compute_ranks

METRICS = ("ndcg@10", "hr@10", "mrr", "map@10", "ndcg@50")


def ml1m(data: Path | None, repeats: int, batch_size: int) -> None:
    """Print the seconds of a full evaluation: best, median and worst of ``repeats``."""
    from ensuite.models.sasrec import SASRec, SASRecConfig

    if data is None:
        events, cases = synthetic_log(np.random.default_rng(0), n_users=6040, n_items=3416, mean_length=165)
    else:
        dataset = Dataset.open(data)
        events, cases = dataset.events("all"), dataset.cases("test")
    model = SASRec(
        SASRecConfig(dim=50, blocks=2, heads=1, max_length=200, dropout=0.0), events.n_items
    ).eval()
    seconds, forward = [], []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        compute_metrics(compute_ranks(model, events, cases, batch_size=batch_size), METRICS)
        seconds.append(time.perf_counter() - began)
        forward.append(forward_only(model, events, cases, batch_size))
    what = "synthetic ML-1M shape" if data is None else str(data)
    print(
        f"{what}: {len(cases):,} cases x {events.n_items:,} items, {torch.get_num_threads()} threads, "
        f"batch {batch_size}: "
        f"best {min(seconds[1:]):.3f} s, median {np.median(seconds[1:]):.3f} s, worst "
        f"{max(seconds[1:]):.3f} s "
        f"of {repeats}; of that the encoder's forward alone: best {min(forward[1:]):.3f} s"
    )


@torch.inference_mode()
def forward_only(model: torch.nn.Module, events: Events, cases: Cases, batch_size: int) -> float:
    """Return the seconds that reading histories and the encoder take, without scores and ranks."""
    from ensuite.data.batches import case_batches

    began = time.perf_counter()
    for _, history in case_batches(events, cases, max_length=200, batch_size=batch_size):
        model.encode(history)  # type: ignore[operator]
    return time.perf_counter() - began


class MeanOfHistory:
    """A retriever with a bare item table: what evaluation itself needs, and nothing else."""

    max_length = 50

    def __init__(self, n_items: int, dim: int):
        self.table = torch.randn(n_items + 1, dim, generator=torch.Generator().manual_seed(0))

    def catalogue(self) -> Tensor:
        return self.table

    def scorer(self, history: History, catalogue: Tensor) -> Callable[[int, int], Tensor]:
        user = torch.nn.functional.normalize(catalogue[history.items].sum(1))  # [B, D]
        return lambda first, last: user @ catalogue[first:last].T


def large(users: int, items: int, dim: int) -> None:
    """Print time and peak memory of ranking ``users`` among ``items``; call it in a fresh process."""
    events, cases = synthetic_log(np.random.default_rng(0), n_users=users, n_items=items, mean_length=20)
    model = MeanOfHistory(items, dim)
    before = peak_megabytes()
    began = time.perf_counter()
    metrics = compute_metrics(compute_ranks(model, events, cases), METRICS)
    spent = time.perf_counter() - began
    print(
        f"{users:,} users x {items:,} items, d {dim}: {spent:,.1f} s ({spent / users * 1e3:.2f} ms a user), "
        f"peak memory {peak_megabytes():,.0f} MB, of which {before:,.0f} MB before it began; mrr "
        f"{metrics['mrr']:.6f}"
    )


def synthetic_log(
    rng: np.random.Generator, *, n_users: int, n_items: int, mean_length: int
) -> tuple[Events, Cases]:
    """Return histories of log-normal lengths over Zipf-like items, the last event the target."""
    sigma = 1.0
    lengths = np.clip(
        rng.lognormal(np.log(mean_length) - sigma**2 / 2, sigma, n_users), 5, n_items // 2
    ).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = (1 + n_items * rng.random(offsets[-1]) ** 2).astype(np.int32).clip(1, n_items)
    time_ = np.arange(len(items), dtype=np.int64)
    events = Events(offsets[:-1], offsets[1:], items, time_, 1.0, n_items)
    return events, Cases(np.arange(n_users), offsets[:-1], offsets[1:] - 1, offsets[1:])


def peak_megabytes() -> float:
    """Return this process's largest resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["ml-1m", "large", "large-here"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "ml-1m":
        ml1m(args.data, args.repeats, args.batch_size)
    elif args.what == "large-here":
        large(args.users, args.items, args.dim)
    else:
        command = [
            sys.executable,
            __file__,
            "large-here",
            "--users",
            str(args.users),
            "--items",
            str(args.items),
        ]
        subprocess.run([*command, "--dim", str(args.dim), "--threads", str(args.threads)], check=True)


if __name__ == "__main__":
    main()
