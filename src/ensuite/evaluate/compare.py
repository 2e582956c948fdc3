"""Models beside each other on one dataset: the same cases, the same rule, intervals, paired tests.

Results whose cards differ are not put in one table: a number means something only together with the data,
the split and the rule it was measured by.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError, did_you_mean
from ensuite.evaluate.entries import Entry, as_entry, check_cards, check_dataset, dataset_of, named_runs
from ensuite.evaluate.evaluate import Evaluation, default_metrics, evaluate
from ensuite.evaluate.metrics import DEFAULT_METRICS, parse_metric, per_case
from ensuite.evaluate.ranks import Exclude, compute_ranks
from ensuite.evaluate.slices import slice_ranks
from ensuite.evaluate.statistics import (
    RESAMPLES,
    Interval,
    bootstrap_means,
    holm,
    mean_of,
    paired_p,
    user_means,
)

COMPARED_BEYOND = ("coverage@10", "novelty@10")
CUTOFFS = (1, 2, 3, 5, 10, 20, 50, 100)
CURVES = ("ndcg", "hr")

Progress = Callable[[str, int, int], None]
"""Called with (name, cases done, cases in all)."""


@dataclass(frozen=True)
class Test:
    """A row's mean minus the reference's, paired by user, with its 95 % interval and p-values before and
    after Holm.
    """

    __test__ = False  # not for pytest

    difference: Interval
    p: float
    p_holm: float


@dataclass(frozen=True)
class Row:
    """What was measured of one entry."""

    entry: Entry
    metrics: dict[str, Interval]
    beyond: dict[str, float]
    tests: dict[str, Test]
    """By metric; empty for the reference."""
    slices: dict[str, Interval]
    """The first metric in each slice."""
    cutoffs: dict[str, list[tuple[int, float]]]
    """"ndcg" and "hr": (cut-off, mean) pairs."""
    seconds: float
    """Scoring and ranking all cases."""
    tie_rate: float
    n_cases: int

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def parameters(self) -> int:
        """Number of trained values; counted from the model when its card does not say."""
        known = self.entry.card.get("parameters")
        parameters = getattr(self.entry.model, "parameters", lambda: ())
        return int(known) if known is not None else sum(p.numel() for p in parameters())

    @property
    def train_seconds(self) -> float | None:
        return self.entry.card.get("train_seconds")

    @property
    def memory(self) -> int | None:
        """Peak memory of its training, in bytes."""
        return self.entry.card.get("peak_memory_bytes")

    @property
    def request_time(self) -> bool:
        """Whether the scores depend on when the target was asked for."""
        said = self.entry.card.get("protocol", {}).get("request_time")
        return bool(
            said if said is not None else getattr(self.entry.model, "reads_request_time", lambda: False)()
        )


@dataclass(frozen=True)
class Comparison:
    """A table of rows, best first by the first metric, and what it means."""

    rows: list[Row]
    metrics: tuple[str, ...]
    """Accuracy metrics, the first decides the order."""
    beyond: tuple[str, ...]
    reference: str
    """The row that the others are tested against."""
    phase: str
    protocol: dict[str, Any]
    slice_sizes: dict[str, int]

    def row(self, name: str) -> Row:
        """Return the row of that name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise EnsuiteError(f"no row '{name}'; {did_you_mean(name, [r.name for r in self.rows])}")

    def write(self, out: str | os.PathLike[str]) -> list[Path]:
        """Write table.csv, slices.csv, table.md and report.html into the folder ``out``; return the files."""
        from ensuite.evaluate.report import write_report

        return write_report(self, Path(out))


def compare(
    runs: Sequence[Any] | Mapping[str, Any],
    *,
    dataset: Dataset | None = None,
    metrics: Sequence[str] | None = None,
    phase: Literal["valid", "test"] = "test",
    against: str | None = None,
    exclude: Exclude | None = None,
    out: str | os.PathLike[str] | None = None,
    request_time: bool = True,
    resamples: int = RESAMPLES,
    seed: int = 0,
    batch_size: int = 256,
    category_column: str | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure models on one dataset and test the differences between them.

    Parameters
    ----------
    runs
        Runs (`ensuite.load_run`), recommenders, models, or `Entry` objects; a mapping gives them names.
    dataset
        By default the one that the first run was trained on.
    metrics
        The first decides the order; by default those of `default_metrics`, coverage and novelty.
    against
        Name of the row that the others are tested against; by default the best by the first metric.
    exclude
        "seen" leaves the history's items out of the ranking, "none" does not; by default as the cards say.
    out
        A folder for table.csv, slices.csv, table.md and report.html.

    Raises
    ------
    EnsuiteError
        When the cards differ: the message says in what.
    """
    entries = [as_entry(run, name) for run, name in named_runs(runs)]
    names = [entry.name for entry in entries]
    if not entries:
        raise EnsuiteError("nothing to compare: give at least one run")
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise EnsuiteError(f"two rows are called '{double}'; pass a mapping of names to runs")
    if against is not None and against not in names:
        raise EnsuiteError(f"no row '{against}' to compare against; {did_you_mean(against, names)}")
    check_cards(entries)
    dataset = dataset or dataset_of(runs)
    check_dataset(entries, dataset)
    said = (e.card["protocol"]["exclude"] for e in entries if "protocol" in e.card)
    exclude = exclude or next(said, dataset.exclude)
    metrics = metrics or (*default_metrics(dataset), *COMPARED_BEYOND)
    asked = [parse_metric(name) for name in dict.fromkeys(metrics)]
    accuracy = tuple(m.name for m in asked if not m.beyond)
    beyond = tuple(m.name for m in asked if m.beyond)
    if not accuracy:
        raise EnsuiteError(
            f"at least one accuracy metric is needed to rank models by; {', '.join(DEFAULT_METRICS)}, say"
        )
    done: list[Evaluation] = []
    for entry in entries:
        _warm_up(entry.model, dataset, phase, device)
        done.append(
            evaluate(
                entry.model,
                dataset,
                phase,
                [*accuracy, *beyond],
                exclude=exclude,
                request_time=request_time,
                batch_size=batch_size,
                seed=seed,
                category_column=category_column,
                device=device,
                progress=None if progress is None else _under(progress, entry.name),
            )
        )
    best = max(range(len(done)), key=lambda i: done[i].metrics[accuracy[0]])
    reference = names.index(against) if against is not None else best
    rows = _rows(entries, done, accuracy, beyond, reference, dataset, resamples, seed)
    sizes = {name: len(part) for name, part in slice_ranks(done[0].ranks, dataset.events("train")).items()}
    protocol = {
        "data": dataset.card.get("name") or dataset.card.get("source", {}).get("name") or dataset.path.name,
        "fingerprint": dataset.fingerprint,
        "split": dataset.card["split"],
        "order": dataset.card.get("order"),
        "tie_share": dataset.card.get("tie_share"),
        "users": dataset.n_users,
        "items": dataset.n_items,
        "events": dataset.n_events,
        "cases": len(done[0].ranks),
        "candidates": "all items",
        "exclude": exclude,
        "request_time": "given to models that read it" if request_time else "withheld",
        "resamples": resamples,
        "seed": seed,
    }
    rows.sort(key=lambda row: -row.metrics[accuracy[0]].mean)
    result = Comparison(rows, accuracy, beyond, names[reference], phase, protocol, sizes)
    if out is not None:
        result.write(out)
    return result


def _rows(
    entries: Sequence[Entry],
    done: Sequence[Evaluation],
    accuracy: Sequence[str],
    beyond: Sequence[str],
    reference: int,
    dataset: Dataset,
    resamples: int,
    seed: int,
) -> list[Row]:
    """Compute intervals, paired tests and slices. All models are resampled with the same draws of users."""
    user = done[0].ranks.user
    values = np.stack(  # [R, U, M]
        [user_means(np.stack([e.per_case(name) for name in accuracy], 1), user) for e in done]
    )
    n_rows, n_users, n_metrics = values.shape
    flat = values.transpose(1, 0, 2).reshape(n_users, -1)
    means = bootstrap_means(flat, resamples, seed).reshape(-1, n_rows, n_metrics)  # [resamples, R, M]
    others = [i for i in range(n_rows) if i != reference]
    p = np.array(
        [[paired_p(values[i, :, m], values[reference, :, m]) for m in range(n_metrics)] for i in others]
    )
    corrected = holm(p.ravel()).reshape(p.shape) if others else p
    first = accuracy[0]
    rows = []
    for i, (entry, result) in enumerate(zip(entries, done)):
        tests = {}
        if i != reference:
            for m, name in enumerate(accuracy):
                difference = _interval(
                    values[i, :, m] - values[reference, :, m], means[:, i, m] - means[:, reference, m]
                )
                at = others.index(i), m
                tests[name] = Test(difference, float(p[at]), float(corrected[at]))
        slices = {}
        if parse_metric(first).candidates == result.ranks.candidates:  # not over sampled candidates
            for name, part in slice_ranks(result.ranks, dataset.events("train")).items():
                of_user = user_means(per_case(part, first), part.user)
                slices[name] = _interval(of_user, bootstrap_means(of_user[:, None], resamples, seed)[:, 0])
        rows.append(
            Row(
                entry=entry,
                metrics={name: _interval(values[i, :, m], means[:, i, m]) for m, name in enumerate(accuracy)},
                beyond={name: result.metrics[name] for name in beyond},
                tests=tests,
                slices=slices,
                cutoffs={
                    base: [
                        (k, float(per_case(result.ranks, f"{base}@{k}").mean()))
                        for k in CUTOFFS
                        if k <= dataset.n_items
                    ]
                    for base in CURVES
                },
                seconds=result.seconds,
                tie_rate=result.ranks.tie_rate,
                n_cases=len(result.ranks),
            )
        )
    return rows


def _interval(values: np.ndarray, resampled: np.ndarray) -> Interval:
    return Interval(mean_of(values), *(float(q) for q in np.quantile(resampled, [0.025, 0.975])))


def _warm_up(
    model: Any, dataset: Dataset, phase: Literal["valid", "test"], device: torch.device | str | None
) -> None:
    """Score a few cases before the clock starts: the first call pays for thread pools and kernels' plans."""
    cases = dataset.cases(phase)
    compute_ranks(model, dataset.events("all"), cases.take(np.arange(min(32, len(cases)))), device=device)


def _under(progress: Progress, name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(name, done, total)
