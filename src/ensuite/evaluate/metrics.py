"""Accuracy metrics, computed from ranks in float64.

For a case whose targets have the ranks r, sorted, n of them:

    hr@k         1 when any r <= k
    recall@k     share of the targets with r <= k
    precision@k  number of targets with r <= k, over k
    ndcg@k       sum of 1 / log2(1 + r) over r <= k, divided by its value for the ranks 1..min(n, k)
    mrr, mrr@k   1 / smallest r, 0 beyond k
    map@k        sum over r <= k of i / max(r, i), for the i-th smallest r, divided by min(n, k)

With one target per case, hr and recall are the same. Metrics on sampled candidates carry the sampler's name:
``ndcg@10/uniform-100``. ``ndcg-rep@k`` and the like look at part of the targets: `ensuite.evaluate.repeats`.
The mean is over users: a user's cases (sessions, say) are averaged first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ensuite.errors import EnsuiteError, did_you_mean
from ensuite.evaluate.ranks import ALL_ITEMS, Ranks
from ensuite.evaluate.repeats import BALANCE, PARTED, part_of
from ensuite.evaluate.statistics import mean_of, user_means

ACCURACY = ("hr", "map", "mrr", "ndcg", "precision", "recall")
BEYOND = ("arp", "coverage", "diversity", "gini", "novelty", "popularity-lift", *BALANCE)
SAMPLERS = ("popularity", "uniform")
DEFAULT_METRICS = ("ndcg@10", "hr@10", "mrr")
SESSION_METRICS = ("ndcg@10", "recall@10", *(f"{name}@10" for name in PARTED))
SESSION_BEYOND = ("rep-ratio@10", "rep-bias@10", "arp@10")
"""What is reported of a dataset whose sessions are asked for; arp@k is the papers' POP."""

_NAME = re.compile(r"(?P<base>[a-z-]+)(@(?P<k>\d+))?(/(?P<sampler>[a-z]+)-(?P<n>\d+))?")


@dataclass(frozen=True)
class Metric:
    """A metric's name, taken apart. ``k`` is None for plain ``mrr``; ``candidates`` names what is ranked."""

    name: str
    base: str
    k: int | None
    candidates: str = ALL_ITEMS

    @property
    def beyond(self) -> bool:
        """Whether it looks at the recommended lists, not at the targets."""
        return self.base in BEYOND


def parse_metric(name: str) -> Metric:
    """Take a metric's name apart.

    >>> parse_metric("ndcg@10/uniform-100")
    Metric(name='ndcg@10/uniform-100', base='ndcg', k=10, candidates='uniform-100')
    """
    known = [base if base == "mrr" else f"{base}@10" for base in (*ACCURACY, *PARTED, *BEYOND)]
    match = _NAME.fullmatch(name)
    if match is None or match["base"] not in (*ACCURACY, *PARTED, *BEYOND):
        raise EnsuiteError(f"unknown metric '{name}'; {did_you_mean(name, known)}")
    base, k = match["base"], None if match["k"] is None else int(match["k"])
    if k is None and base != "mrr":
        raise EnsuiteError(f"metric '{name}' needs a cut-off: '{base}@10'")
    if k == 0:
        raise EnsuiteError(f"metric '{name}': the cut-off must be 1 or more")
    if match["sampler"] is None:
        return Metric(name, base, k)
    if match["sampler"] not in SAMPLERS or base not in ACCURACY or int(match["n"]) == 0:
        hint = did_you_mean(match["sampler"], SAMPLERS)
        raise EnsuiteError(
            f"unknown metric '{name}': sampled metrics are named like 'ndcg@10/uniform-100'; {hint}"
        )
    return Metric(name, base, k, f"{match['sampler']}-{match['n']}")


def compute_metrics(ranks: Ranks, names: Sequence[str] = DEFAULT_METRICS) -> dict[str, float]:
    """Return the mean over users of each metric, NaN for one that no case has a value of.

    >>> n = np.zeros(1, int)
    >>> one = Ranks(n, n, n, n, np.array([0, 1]), np.array([7]), np.array([2.0]), n, 20)
    >>> compute_metrics(one, ["hr@1", "hr@2", "mrr"])
    {'hr@1': 0.0, 'hr@2': 1.0, 'mrr': 0.5}
    """
    if not len(ranks):
        raise EnsuiteError(
            "there are no cases to evaluate: no user has a history and a target in this phase of the split"
        )
    return {name: mean_of(user_means(per_case(ranks, name), ranks.user)) for name in names}


def per_case(ranks: Ranks, name: str) -> np.ndarray:
    """Return a metric's value for every case, NaN where it has none: [C] float64."""
    metric = parse_metric(name)
    if metric.beyond:
        raise EnsuiteError(f"metric '{name}' describes lists, not ranks: see `ensuite.evaluate.beyond`")
    if metric.candidates != ranks.candidates:
        raise EnsuiteError(
            f"metric '{name}' is over {metric.candidates}, these ranks are over {ranks.candidates}"
        )
    check_cutoff(metric, ranks)
    if metric.base in PARTED:
        part, there = part_of(ranks, metric.base)
        values = np.full(len(ranks), np.nan)
        values[there] = per_case(part, f"{metric.base.split('-')[0]}@{metric.k}")
        return values
    k = np.inf if metric.k is None else metric.k
    rank, owner, n_cases = ranks.rank, ranks.owner, len(ranks)
    hit = rank <= k  # [T]
    n_targets = ranks.n_targets
    if metric.base == "hr":
        return (np.bincount(owner[hit], minlength=n_cases) > 0).astype(np.float64)
    if metric.base == "recall":
        return np.bincount(owner[hit], minlength=n_cases) / n_targets
    if metric.base == "precision":
        return np.bincount(owner[hit], minlength=n_cases) / k
    if metric.base == "mrr":
        best = np.minimum.reduceat(rank, ranks.offsets[:-1]) if n_cases else np.zeros(0)
        return np.where(best <= k, 1.0 / best, 0.0)
    most = np.minimum(n_targets, k).astype(np.int64)  # [C], hits of a perfect list
    if metric.base == "ndcg":
        gain = np.bincount(owner[hit], weights=1.0 / np.log2(1.0 + rank[hit]), minlength=n_cases)
        ideal = np.cumsum(1.0 / np.log2(1.0 + np.arange(1, most.max(initial=1) + 1)))
        return gain / ideal[most - 1]
    order = np.lexsort((rank, owner))  # within each case, by rank
    sorted_rank = rank[order]
    nth = np.arange(len(rank)) - np.repeat(ranks.offsets[:-1], n_targets) + 1
    precision = np.where(sorted_rank <= k, nth / np.maximum(sorted_rank, nth), 0.0)
    return np.bincount(owner, weights=precision, minlength=n_cases) / most


def check_cutoff(metric: Metric, ranks: Ranks) -> None:
    """Refuse a cut-off beyond what is ranked: such a metric would be 1 for anything."""
    most = ranks.n_items if ranks.candidates == ALL_ITEMS else int(ranks.n_candidates.max(initial=0))
    if metric.k is not None and len(ranks) and metric.k > most:
        raise EnsuiteError(
            f"metric '{metric.name}': the cut-off {metric.k} is larger than the {most} items ranked"
        )
