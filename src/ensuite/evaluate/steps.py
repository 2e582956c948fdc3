"""What each reasoning step is worth (ReaRec): the metric after every step, and the oracle.

The oracle picks, for each user, the step that serves them best: what a perfect choice of the depth would
bring, and so how much there is to win beyond the ranking that the system gives (Tang et al. 2025, section
4.6). It looks at the targets: a ceiling, no result.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.evaluate.metrics import parse_metric, per_case
from ensuite.evaluate.ranks import ALL_ITEMS, Exclude, compute_ranks
from ensuite.evaluate.report.svg import Series, bar_chart, standalone, with_legend
from ensuite.evaluate.scoring import Progress
from ensuite.evaluate.slices import slice_ranks

EVERYONE = "all"


@dataclass(frozen=True)
class StepRow:
    """A metric of one slice of the cases: after 0 to K thoughts, as the system ranks, and of the oracle."""

    part: str
    cases: int
    metric: str
    steps: tuple[float, ...]
    final: float
    oracle: float

    @property
    def headroom(self) -> float:
        """How far the oracle is above the system, in per cent of it; NaN where the system scores 0."""
        return 100 * (self.oracle / self.final - 1) if self.final else float("nan")


def compute_steps(
    model: Any,
    dataset: Dataset,
    phase: Literal["valid", "test"] = "test",
    metrics: Sequence[str] = ("ndcg@10", "hr@10"),
    *,
    exclude: Exclude = "seen",
    request_time: bool = True,
    batch_size: int = 256,
    device: Any = None,
    progress: Callable[[int], Progress | None] = lambda reading: None,
) -> list[StepRow]:
    """Rank all cases K + 2 times: after every step, and as the system does.

    Parameters
    ----------
    model
        A `ReaRec`: its `step` is moved and put back.
    metrics
        Accuracy metrics over all items, see `ensuite.evaluate.metrics`.
    progress
        Gives the function that takes news of reading 0 .. K + 1.

    Returns
    -------
    list[StepRow]
        For each metric a row of everyone and one of each slice (`ensuite.evaluate.slices`).

    Raises
    ------
    EnsuiteError
        For an unknown metric, one that looks at lists, a cut-off beyond the catalogue, or a phase without
        cases.
    """
    events, cases = dataset.events("all"), dataset.cases(phase)
    if not len(cases):
        raise EnsuiteError(f"{dataset.path}: no case in '{phase}': no user has a history and a target there")
    _check(metrics, dataset.n_items)
    readings: list[int | None] = [*range(model.config.steps + 1), None]
    before, ranks = model.step, []
    try:
        for number, model.step in enumerate(readings):
            ranks.append(
                compute_ranks(
                    model, events, cases, exclude=exclude, request_time=request_time, batch_size=batch_size,
                    device=device, progress=progress(number),
                )
            )  # fmt: skip
    finally:
        model.step = before
    first = ranks[0]
    # Which targets a slice holds does not depend on the ranks: sliced once, with the target's number as rank.
    numbered = replace(first, rank=np.arange(len(first.rank), dtype=np.float64))
    rows = []
    for metric in metrics:
        for part, some in {EVERYONE: numbered, **slice_ranks(numbered, dataset.events("train"))}.items():
            at = some.rank.astype(np.int64)
            values = np.stack(
                [per_case(replace(some, rank=r.rank[at], ties=r.ties[at]), metric) for r in ranks]
            )
            *steps, final = values.mean(1).tolist()
            oracle = float(values[:-1].max(0).mean())
            rows.append(StepRow(part, len(some), metric, tuple(steps), final, oracle))
    return rows


def _check(metrics: Sequence[str], n_items: int) -> None:
    """Refuse what cannot be computed from ranks, before anything is ranked."""
    for metric in map(parse_metric, metrics):
        if metric.beyond or metric.candidates != ALL_ITEMS:
            raise EnsuiteError(f"metric '{metric.name}': steps are compared by accuracy among all items")
        if metric.k is not None and metric.k > n_items:
            raise EnsuiteError(f"metric '{metric.name}': the cut-off is larger than the {n_items} items")


def to_csv(rows: Sequence[StepRow]) -> str:
    """Return one line per metric and slice, full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    steps = [f"step {k}" for k in range(len(rows[0].steps))]
    writer.writerow(["metric", "slice", "cases", *steps, "final", "oracle", "headroom %"])
    for row in rows:
        writer.writerow([row.metric, row.part, row.cases, *row.steps, row.final, row.oracle, row.headroom])
    return text.getvalue()


def to_svg(rows: Sequence[StepRow], title: str) -> str:
    """Draw the first metric of each step, the system and the oracle: of everyone, by popularity of the
    target and by length of the history."""
    shown = (EVERYONE, "head", "tail", "history")
    drawn = [row for row in rows if row.metric == rows[0].metric and row.part.startswith(shown)]
    names = [*(f"step {k}" for k in range(len(drawn[0].steps))), "final", "oracle"]
    series = []
    for i, name in enumerate(names):
        values = [(*row.steps, row.final, row.oracle)[i] for row in drawn]
        notes = [f"{row.part}, {name}: {value:.4f}" for row, value in zip(drawn, values)]
        series.append(Series(name, i, (), values, notes=notes))
    labels = [row.part.removesuffix(" items").removeprefix("history ") for row in drawn]
    chart = bar_chart(labels, series, title=title, y_label=drawn[0].metric)
    return standalone(with_legend(chart, series))
