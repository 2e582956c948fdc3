"""What an engine costs: time for a request, and accuracy on the cases of a run's validation."""

from __future__ import annotations

import time

import numpy as np
import torch

from ensuite.data.batches import History, case_batches
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.evaluate.metrics import compute_metrics
from ensuite.evaluate.ranks import Ranks, seen_pairs, truth
from ensuite.models.base import Model
from ensuite.serve.engine import Engine

BEST = 10
METRICS = (f"ndcg@{BEST}", f"hr@{BEST}")
MOST_CASES = 5_000
"""Cases that are asked for, spread evenly over all."""
BATCH = 64
REQUESTS, WARM_UP = 30, 5


def measure_latency(engine: Engine, model: Model) -> float:
    """Return the median time for the best ten after one history as long as the model reads, in
    milliseconds."""
    generator = torch.Generator().manual_seed(0)
    items = torch.randint(1, model.n_items + 1, (1, model.max_length), generator=generator)
    times = 1_600_000_000 + 3_600 * torch.arange(model.max_length)[None]
    history = History(items, times, times + 3_600)
    nothing, k, taken = [np.zeros(0, np.int64)], min(BEST, model.n_items), []
    for _ in range(WARM_UP + REQUESTS):
        began = time.perf_counter()
        engine.top_k(history, k, None, nothing)
        taken.append(time.perf_counter() - began)
    return 1e3 * float(np.median(taken[WARM_UP:]))


def measure_accuracy(
    engine: Engine, dataset: Dataset, max_length: int, *, exclude: str
) -> tuple[dict[str, float], int]:
    """Return `METRICS` on validation, and the number of cases: a target's rank is its place in the best ten.

    That is what is served. `ensuite evaluate` counts ranks instead, and ties as half.
    """
    events, cases = dataset.events("all"), dataset.cases("valid")
    if not len(cases):
        raise EnsuiteError(f"{dataset.path}: its split has no validation cases to measure int8 on")
    cases = cases.take(np.unique(np.linspace(0, len(cases) - 1, MOST_CASES).astype(np.int64)))
    offsets, target = truth(events, cases)
    rank = np.full(len(target), np.inf)
    for which, history in case_batches(events, cases, max_length=max_length, batch_size=BATCH):
        row, item = seen_pairs(events, cases.take(which))
        seen = [np.unique(item[row == number]) for number in range(len(which))]
        excluded = seen if exclude == "seen" else [np.zeros(0, np.int64)] * len(which)
        k = min(BEST, dataset.n_items - max(map(len, excluded)))
        _, best = engine.top_k(history, k, None, excluded)
        for case, listed in zip(which, best.numpy()):
            mine = slice(offsets[case], offsets[case + 1])
            found, place = (target[mine, None] == listed).nonzero()
            rank[mine][found] = place + 1
    ranks = Ranks(
        case=np.arange(len(cases)),
        user=cases.user,
        history_length=cases.history_end - cases.history_start,
        n_candidates=np.full(len(cases), dataset.n_items),
        offsets=offsets,
        target=target,
        rank=rank,
        ties=np.zeros(len(target), np.int64),
        n_items=dataset.n_items,
    )
    return compute_metrics(ranks, METRICS), len(cases)
