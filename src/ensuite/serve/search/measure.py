"""What each kind of index is worth: how many of the model's best items it finds, and how fast."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ensuite.data.batches import case_batches
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.evaluate.scoring import model_device
from ensuite.models.base import Retriever
from ensuite.serve.search.index import Index, Kind
from ensuite.serve.search.searcher import ExactSearch, Searcher

GAIN = 1.1
"""How many times faster than exact search another kind has to be to be picked."""
SINGLE_SECONDS = 3.0
"""Users are asked for one at a time until all are, or so many seconds are over."""


@dataclass(frozen=True)
class Asked:
    """For whom the kinds are measured."""

    users: Tensor  # [N, D] float32 on the CPU
    excluded: list[np.ndarray]  # [N] arrays of item rows, ascending


@dataclass(frozen=True)
class Measured:
    """One kind of index, measured."""

    index: Index
    recall: float
    """Share of the model's own best k that it finds, mean over users."""
    median_ms: float
    """Of one user alone, without the encoder."""
    p99_ms: float
    batch_ms: float
    """Of one user in a batch, without the encoder."""
    build_seconds: float


def users_of_dataset(model: Retriever, dataset: Dataset, count: int, exclude: str) -> Asked:
    """Read the histories of ``count`` test cases, evenly chosen (of all, if there are fewer).

    Raises
    ------
    EnsuiteError
        When the dataset has no test case.
    """
    cases, events = dataset.cases("test"), dataset.events("all")
    if not len(cases):
        raise EnsuiteError(f"{dataset.path}: no user has a history to test with")
    cases = cases.take(np.unique(np.linspace(0, len(cases) - 1, min(count, len(cases))).astype(np.int64)))
    users, excluded = [], []
    with torch.inference_mode():
        for which, history in case_batches(events, cases, max_length=model.max_length, batch_size=64):
            users.append(model.encode(history.to(model_device(model))).float().cpu())
            for case in which:
                seen = slice(cases.history_start[case], cases.history_end[case])
                rows = np.unique(events.item_idx[seen]).astype(np.int64)
                excluded.append(rows if exclude == "seen" else rows[:0])
    return Asked(torch.cat(users), excluded)


def users_of_items(vectors: Tensor, count: int, seed: int = 0) -> Asked:
    """Let ``count`` item vectors, drawn at random, stand for users; nothing is excluded."""
    rows = 1 + np.random.default_rng(seed).permutation(len(vectors) - 1)[:count]
    return Asked(vectors[rows], [np.zeros(0, np.int64)] * len(rows))


def best_rows(vectors: Tensor, asked: Asked, k: int, batch: int) -> Tensor:
    """Return the best k by the model's own scores: [N, k]."""
    return _in_batches(ExactSearch(vectors), asked, k, batch)


def measure_index(
    index: Index, vectors: Tensor, asked: Asked, best: Tensor, batch: int, build_seconds: float
) -> Measured:
    """Compare an index with the ``best`` [N, k] of `best_rows`, and time it."""
    searcher, k = index.searcher(vectors), best.shape[1]
    single = _time_single(searcher, asked, k)
    began = time.perf_counter()
    found = _in_batches(searcher, asked, k, batch)
    seconds = time.perf_counter() - began
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found.numpy(), best.numpy())]
    return Measured(
        index=index,
        recall=float(np.mean(hits)) / k,
        median_ms=1e3 * float(np.median(single)),
        p99_ms=1e3 * float(np.quantile(single, 0.99)),
        batch_ms=1e3 * seconds / len(found),
        build_seconds=build_seconds,
    )


def pick(measured: Sequence[Measured], recall: float) -> Kind:
    """Return the kind with the fastest median answer to one user among those that find ``recall``; exact,
    unless another is `GAIN` times faster than it."""
    exact = next(one for one in measured if one.index.kind == "exact")
    enough = [one for one in measured if one.recall >= recall and one.median_ms * GAIN <= exact.median_ms]
    return min(enough, key=lambda one: one.median_ms, default=exact).index.kind


def _time_single(searcher: Searcher, asked: Asked, k: int) -> list[float]:
    """Return seconds of single requests; the first few warm up and are not counted."""

    def ask(number: int) -> float:
        began = time.perf_counter()
        searcher.search(asked.users[number : number + 1], k, None, asked.excluded[number : number + 1])
        return time.perf_counter() - began

    for number in range(min(3, len(asked.users))):
        ask(number)
    seconds: list[float] = []
    while len(seconds) < len(asked.users) and sum(seconds) < SINGLE_SECONDS:
        seconds.append(ask(len(seconds)))
    return seconds


def _in_batches(searcher: Searcher, asked: Asked, k: int, batch: int) -> Tensor:
    rows = [
        searcher.search(asked.users[at : at + batch], k, None, asked.excluded[at : at + batch])[1]
        for at in range(0, len(asked.users), batch)
    ]
    return torch.cat(rows)
