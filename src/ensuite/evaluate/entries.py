"""What is compared: models with their cards; and the refusal to compare what was not measured alike."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError

# What must be equal for two results to stand in one table; `request_time` may differ, and is a column.
MUST_AGREE = (
    "data.fingerprint",
    "data.split",
    "data.order",
    "data.ties",
    "data.filters",
    "n_items",
    "protocol.candidates",
    "protocol.exclude",
    "protocol.ranks",
)


@dataclass(frozen=True)
class Entry:
    """One row of a comparison: a model, and what is known of how it came about."""

    name: str
    model: Any
    card: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    """The lines of its metrics.jsonl: the learning curve."""


def as_entry(run: Any, name: str | None = None) -> Entry:
    """Turn a run, a recommender, a model or an entry into an `Entry`."""
    if isinstance(run, Entry):
        return run if name is None else replace(run, name=name)
    if isinstance(run, (str, os.PathLike)):
        raise EnsuiteError(
            f"{run}: a path; open the run first: compare([ensuite.load_run({str(run)!r}), ...])"
        )
    model = run if hasattr(run, "scorer") else getattr(run, "model", None)
    if model is None:
        raise EnsuiteError(
            f"a {type(run).__name__} cannot be compared: a run, a recommender or a model is needed"
        )
    own = name or getattr(run, "name", None) or type(model).__name__
    card, history = getattr(run, "card", None), getattr(run, "history", None)
    return Entry(
        str(own),
        model,
        card if isinstance(card, Mapping) else {},
        history if isinstance(history, list) else (),
    )


def check_cards(entries: Sequence[Entry]) -> None:
    """Refuse entries whose cards say that their numbers mean different things."""
    problems = []
    for key in MUST_AGREE:
        by_value: dict[str, list[str]] = {}
        for entry in entries:
            value = _lookup(entry.card, key)
            if value is not None:
                by_value.setdefault(json.dumps(value, sort_keys=True, default=str), []).append(entry.name)
        if len(by_value) > 1:
            said = "; ".join(f"{value} in {', '.join(names)}" for value, names in by_value.items())
            problems.append(f"  {key}: {said}")
    if problems:
        raise EnsuiteError(
            "these runs cannot stand in one table, their cards differ:\n"
            + "\n".join(problems)
            + "\nCompare runs of one prepared dataset, measured by one rule."
        )


def check_dataset(entries: Sequence[Entry], dataset: Dataset) -> None:
    for entry in entries:
        fingerprint = _lookup(entry.card, "data.fingerprint")
        n_items = getattr(entry.model, "n_items", dataset.n_items)
        if fingerprint not in (None, dataset.fingerprint):
            raise EnsuiteError(
                f"{entry.name}: was trained on data with the fingerprint {fingerprint}, {dataset.path} has "
                f"{dataset.fingerprint}; compare on the dataset it was trained on"
            )
        if n_items != dataset.n_items:
            raise EnsuiteError(f"{entry.name}: knows {n_items} items, {dataset.path} has {dataset.n_items}")


def _lookup(card: Mapping[str, Any], key: str) -> Any:
    value: Any = card
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def named_runs(runs: Sequence[Any] | Mapping[str, Any]) -> list[tuple[Any, str | None]]:
    return (
        [(run, name) for name, run in runs.items()]
        if isinstance(runs, Mapping)
        else [(run, None) for run in runs]
    )


def dataset_of(runs: Sequence[Any] | Mapping[str, Any]) -> Dataset:
    for run, _ in named_runs(runs):
        if callable(getattr(run, "dataset", None)):
            return run.dataset()
    raise EnsuiteError("no dataset: none of these is a run that names one; pass dataset=Dataset.open(...)")
