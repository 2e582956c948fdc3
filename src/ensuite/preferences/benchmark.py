"""The benchmark of preference discerning: any model answers the questions of `axes`.

A model that reads no preference is asked with the history alone; of the axis sentiment, which has none, it
scores 0 by definition, since its two lists are one. Ranks are among all items, those of the history too, as
in the paper; ties count half. What is averaged are questions, never batches, and questions are what intervals
and tests draw from.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ensuite.data.batches import History, read_history
from ensuite.data.dataset import Dataset
from ensuite.data.stated import Stated
from ensuite.errors import EnsuiteError
from ensuite.evaluate.metrics import per_case
from ensuite.evaluate.ranks import Ranks
from ensuite.evaluate.scoring import model_device
from ensuite.evaluate.statistics import Interval, holm, intervals, paired_p
from ensuite.preferences.axes import Questions
from ensuite.preferences.schema import Preferences

METRICS = ("recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr")
COMBINED = ("combined@5", "combined@10")
"""Of sentiment: the target among the first k for the positive form, and not for the negative."""
BATCH = 128


@dataclass(frozen=True)
class Result:
    """What one model reached on one axis."""

    name: str
    axis: str
    questions: int
    metrics: dict[str, Interval]
    """With 95 % intervals; NaN where there was no question."""
    p: float | None
    """Of the paired t-test of the axis's `headline` metric against the best model's, Holm-corrected over the
    axis; None of the best one, and where there was no question."""


def run_benchmark(
    entries: Sequence[tuple[str, Any]],
    dataset: Dataset,
    preferences: Preferences,
    axes: Sequence[Questions],
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Result]:
    """Ask every model of ``entries`` (name, model) every question.

    ``progress`` is called with (name of the model, axes done, axes in all).
    """
    values: dict[str, list[dict[str, np.ndarray]]] = {}  # of each model, axis and metric
    for name, model in entries:
        asker, values[name] = Asker(model, dataset, preferences, axes), []
        for done, questions in enumerate(axes, 1):
            values[name].append(asker.measure(questions))
            if progress is not None:
                progress(name, done, len(axes))
    by_axis = [
        _results(questions, {name: values[name][i] for name, _ in entries})
        for i, questions in enumerate(axes)
    ]
    return [one for name, _ in entries for axis in by_axis for one in axis if one.name == name]


def _results(questions: Questions, values: dict[str, dict[str, np.ndarray]]) -> list[Result]:
    """Sum up one axis: ``values`` [Q] of each model and metric."""
    nothing, found = Interval(float("nan"), float("nan"), float("nan")), {}
    for name, by_metric in values.items():
        known = (
            intervals(np.stack(list(by_metric.values()), 1)) if len(questions) else [nothing] * len(by_metric)
        )
        found[name] = dict(zip(by_metric, known))
    p: dict[str, float] = {}
    if len(questions):
        metric = headline(questions.axis)
        best = max(found, key=lambda name: found[name][metric].mean)
        others = [name for name in found if name != best]
        tested = [paired_p(values[best][metric], values[name][metric]) for name in others]
        p = dict(zip(others, holm(np.array(tested)).tolist()))
    axis, n = questions.axis, len(questions)
    return [Result(name, axis, n, metrics, p.get(name)) for name, metrics in found.items()]


class Asker:
    """Asks one model."""

    def __init__(self, model: Any, dataset: Dataset, preferences: Preferences, axes: Sequence[Questions]):
        self.model, self.events = model, dataset.events("all")
        self.reads, self.device = model.reads_preferences(), model_device(model)
        self.catalogue: Any = None
        if self.reads:  # every text is encoded once
            parts = [q.numbers for q in axes] + [q.against for q in axes if q.against is not None]
            used = np.unique(np.concatenate([part.ravel() for part in parts]))
            used = used[used > 0]
            self.anew = np.zeros(len(preferences.texts) + 1, np.int64)
            self.anew[used] = np.arange(1, len(used) + 1)
            texts = [preferences.text(n) for n in used.tolist()]
            values = model.encode_preferences(texts).cpu() if texts else torch.zeros(0, 1)
            nothing = values.new_zeros(1, values.shape[1])
            self.stated = Stated(np.zeros((0, 1), np.int64), torch.cat([nothing, values]))

    def measure(self, questions: Questions) -> dict[str, np.ndarray]:
        """Return the metrics of one axis, question by question: [Q] each."""
        nothing = np.zeros(len(questions))
        if questions.against is None:
            if not len(questions):
                return dict.fromkeys(METRICS, nothing)
            ranks = self.ranks(questions, questions.numbers)
            return {name: per_case(ranks, name) for name in METRICS}
        if not self.reads or not len(questions):
            return dict.fromkeys(COMBINED, nothing)
        positive = self.ranks(questions, questions.numbers).rank
        negative = self.ranks(questions, questions.against).rank
        return combined(positive, negative)

    @torch.inference_mode()
    def ranks(self, questions: Questions, numbers: np.ndarray) -> Ranks:
        """Rank the targets, with the preferences ``numbers`` [Q, P] stated."""
        model, target = self.model, torch.from_numpy(questions.target)
        start = np.maximum(questions.start, questions.end - model.max_length)
        rank, ties = np.zeros(len(questions)), np.zeros(len(questions), np.int64)
        self.catalogue = model.catalogue() if self.catalogue is None else self.catalogue
        order = np.argsort(questions.end - start, kind="stable")
        for at in range(0, len(order), BATCH):
            which = order[at : at + BATCH]
            history = read_history(self.events, start[which], questions.end[which])
            if self.reads:
                history = replace(history, preferences=self.stated.look_up(self.anew[numbers[which]]))
            scores = self._scores(history)  # [b, V], item row i at i - 1
            own = scores.gather(1, target[which][:, None] - 1)
            level = ((scores == own).sum(1) - 1).numpy()
            rank[which] = 1 + (scores > own).sum(1).numpy() + level / 2
            ties[which] = level
        n, q = self.events.n_items, np.arange(len(questions))
        length = questions.end - questions.start
        every, ends = np.full(len(q), n), np.arange(len(q) + 1)
        return Ranks(q, q, length, every, ends, questions.target, rank, ties, n)

    def _scores(self, history: History) -> torch.Tensor:
        score = self.model.scorer(history.to(self.device), self.catalogue)
        scores = score(1, self.events.n_items + 1).float().cpu()
        if bool(scores.isnan().any()):
            raise EnsuiteError(f"{type(self.model).__name__}: its scores are not numbers (NaN)")
        return scores


def combined(positive: np.ndarray, negative: np.ndarray) -> dict[str, np.ndarray]:
    """Return combined@k of the target's ranks for the positive and the negative form: [Q] each.

    >>> combined(np.array([1.0, 1.0]), np.array([50.0, 2.0]))["combined@10"].tolist()
    [1.0, 0.0]
    """
    found = {k: (positive <= k) & ~(negative <= k) for k in (5, 10)}
    return {f"combined@{k}": hit.astype(np.float64) for k, hit in found.items()}


def to_csv(results: Sequence[Result]) -> str:
    """Return the results, a line for each model, axis and metric."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["run", "axis", "questions", "metric", "value", "low", "high", "p against best"])
    for one in results:
        for metric, v in one.metrics.items():
            p = "" if one.p is None or metric != headline(one.axis) else f"{one.p:.3g}"
            numbers = [f"{x:.6f}" for x in (v.mean, v.low, v.high)]
            lines.writerow([one.name, one.axis, one.questions, metric, *numbers, p])
    return out.getvalue()


def to_svg(results: Sequence[Result], title: str) -> str:
    """Return bars: Recall@10 (of sentiment combined@10) of every model on every axis."""
    from ensuite.evaluate.report.svg import Series, bar_chart, standalone, with_legend

    axes = list(dict.fromkeys(one.axis for one in results if one.questions))
    names = list(dict.fromkeys(one.name for one in results))
    value = {(one.name, one.axis): one.metrics[headline(one.axis)].mean for one in results}
    series = [
        Series(name, i, list(range(len(axes))), [value[name, axis] for axis in axes])
        for i, name in enumerate(names)
    ]
    shown = [axis.removesuffix(" steering").removesuffix(" preference") for axis in axes]
    return standalone(with_legend(bar_chart(shown, series, title=title, y_label="Recall@10"), series))


def headline(axis: str) -> str:
    """Return the metric that stands for an axis."""
    return "combined@10" if axis == "sentiment" else "recall@10"
