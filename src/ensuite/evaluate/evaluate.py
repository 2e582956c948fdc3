"""One call from a model and a dataset to numbers: ranks, metrics of all three kinds, slices."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.evaluate.beyond import category_vectors, compute_beyond, count_items
from ensuite.evaluate.counting import NaNScores
from ensuite.evaluate.metrics import (
    DEFAULT_METRICS,
    SESSION_BEYOND,
    SESSION_METRICS,
    Metric,
    compute_metrics,
    parse_metric,
    per_case,
)
from ensuite.evaluate.ranks import ALL_ITEMS, Exclude, Ranks, compute_ranks, gather
from ensuite.evaluate.repeats import BALANCE, PARTED, balance, mark_repeats
from ensuite.evaluate.sampled import compute_sampled_ranks, draw_negatives, sampler_of
from ensuite.evaluate.scoring import Progress
from ensuite.evaluate.slices import slice_ranks
from ensuite.evaluate.statistics import mean_of, user_means

COHORT_SEEDS = (1013, 2791, 4357, 6199, 7907)


@dataclass(frozen=True)
class Evaluation:
    """What was measured. ``ranks`` are over all items; ``sampled`` holds those over sampled candidates, by
    name.
    """

    phase: str
    metrics: dict[str, float]
    ranks: Ranks
    sampled: dict[str, Ranks] = field(default_factory=dict)
    seconds: float = 0.0
    """Seconds of the full ranking: reading histories, scoring and counting; this process's share."""

    def per_case(self, name: str) -> np.ndarray:
        """Return an accuracy metric's value for every case: [C] float64."""
        return per_case(self.sampled.get(parse_metric(name).candidates, self.ranks), name)

    def slices(self, dataset: Dataset, names: Sequence[str] = DEFAULT_METRICS) -> dict[str, dict[str, float]]:
        """Return the metrics of every slice, see `ensuite.evaluate.slices`; ``cases`` counts its cases."""
        asked = [metric for metric in map(parse_metric, names) if metric.base not in PARTED]
        out: dict[str, dict[str, float]] = {}
        for candidates in dict.fromkeys(metric.candidates for metric in asked):
            own = [metric.name for metric in asked if metric.candidates == candidates]
            ranks = self.sampled.get(candidates, self.ranks)
            for name, part in slice_ranks(ranks, dataset.events("train")).items():
                out.setdefault(name, {"cases": len(part)}).update(compute_metrics(part, own))
        return out

    def cohorts(self, users: int, seeds: Sequence[int] = COHORT_SEEDS) -> dict[str, tuple[float, float]]:
        """Return each metric's mean over random cohorts of ``users`` users, one for each seed, and its
        standard deviation between them (the papers' protocol on logs too large to rank whole)."""
        everybody = np.unique(self.ranks.user)
        if not 1 <= users <= len(everybody):
            raise EnsuiteError(
                f"cohorts of {users:,} users: {len(everybody):,} users have cases; ask for fewer"
            )
        wanted = [metric for metric in map(parse_metric, self.metrics) if metric.candidates == ALL_ITEMS]
        drawn = [np.random.default_rng(seed).choice(everybody, users, replace=False) for seed in seeds]
        parts = [self.ranks.take(np.isin(self.ranks.user, some)) for some in drawn]
        out = {}
        for metric in wanted:
            if metric.base in BALANCE and metric.k is not None:
                values = [mean_of(user_means(balance(p, metric.base, metric.k), p.user)) for p in parts]
            elif not metric.beyond:
                values = [compute_metrics(part, [metric.name])[metric.name] for part in parts]
            else:
                continue
            out[metric.name] = float(np.mean(values)), float(np.std(values))
        return out


def default_metrics(dataset: Dataset) -> tuple[str, ...]:
    """Return what is measured when nothing is asked for: of a sessions split, repeats and discoveries too."""
    if dataset.card["split"]["kind"] == "sessions":
        return (*SESSION_METRICS, *SESSION_BEYOND)
    return DEFAULT_METRICS


def evaluate(
    model: Any,
    dataset: Dataset,
    phase: Literal["valid", "test"] = "test",
    metrics: Sequence[str] | None = None,
    *,
    exclude: Exclude | None = None,
    request_time: bool = True,
    batch_size: int = 256,
    seed: int = 0,
    category_column: str | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on a phase of a dataset's split; under torch.distributed the processes share the work.

    Parameters
    ----------
    metrics
        Any of `ensuite.evaluate.metrics` and `ensuite.evaluate.beyond`, for example "ndcg@10", "coverage@10",
        "hr@10/uniform-100". By default those of `default_metrics`.
    exclude
        By default what the dataset's split asks for: "seen", or "none" for sessions.
    seed
        Of sampled negatives.
    category_column
        Column of the item table for ``diversity``; by default the first of genres, genre, categories,
        category, tags.

    Raises
    ------
    EnsuiteError
        For an unknown metric or one that cannot be computed, a phase without cases, or NaN scores (the user
        is named).
    """
    wanted = [parse_metric(name) for name in dict.fromkeys(metrics or default_metrics(dataset))]
    exclude = exclude or dataset.exclude
    events, cases = dataset.events("all"), dataset.cases(phase)
    if not len(cases):
        raise EnsuiteError(
            f"{dataset.path}: no case to evaluate in '{phase}': no user has both a history and a target there"
        )
    for metric in wanted:
        if metric.k is not None and metric.candidates == ALL_ITEMS and metric.k > dataset.n_items:
            raise EnsuiteError(
                f"metric '{metric.name}': the cut-off {metric.k} is larger than the catalogue of "
                f"{dataset.n_items} items"
            )
    beyond = [m for m in wanted if m.beyond]
    vectors = None
    if any(m.base == "diversity" for m in beyond):
        vectors = category_vectors(dataset.items, category_column)
    common: dict[str, Any] = {
        "batch_size": batch_size,
        "request_time": request_time,
        "device": device,
        "part": share(),
    }
    try:
        began = time.perf_counter()
        top = max((m.k or 0 for m in beyond), default=0)
        mine = compute_ranks(model, events, cases, exclude=exclude, top=top, progress=progress, **common)
        seconds = time.perf_counter() - began
        ranks = gather(mine)
        if any(m.base in (*PARTED, *BALANCE) for m in wanted):
            ranks = mark_repeats(ranks, dataset.events("train"))
        sampled = {}
        for name in dict.fromkeys(m.candidates for m in wanted if m.candidates != ALL_ITEMS):
            kind, n = sampler_of(next(m for m in wanted if m.candidates == name))
            weights = count_items(dataset.events("train")) if kind == "popularity" else None
            negatives = draw_negatives(events, cases, n, weights, exclude=exclude, seed=seed)
            sampled[name] = gather(compute_sampled_ranks(model, events, cases, negatives, name, **common))
    except NaNScores as error:
        raise NaNScores(error.user, dataset.users["user_id"][error.user]) from None
    values = _accuracy(wanted, ranks, sampled)
    if beyond:
        popularity = count_items(dataset.events("train"))
        values |= compute_beyond(
            ranks,
            [m.name for m in beyond],
            popularity=popularity,
            events=events,
            cases=cases,
            vectors=vectors,
        )
    return Evaluation(phase, {m.name: values[m.name] for m in wanted}, ranks, sampled, seconds)


def _accuracy(wanted: Sequence[Metric], ranks: Ranks, sampled: dict[str, Ranks]) -> dict[str, float]:
    out: dict[str, float] = {}
    for metric in wanted:
        if not metric.beyond:
            out |= compute_metrics(sampled.get(metric.candidates, ranks), [metric.name])
    return out


def share() -> tuple[int, int]:
    """Return (rank, world) of this process in the default group; (0, 1) without one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
