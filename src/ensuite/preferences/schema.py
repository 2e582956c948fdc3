"""The file of preferences: Parquet or JSON Lines, a row for each user and step.

    user_id       as in the log
    step          how many of the user's events were read, from 1: the preferences may be used for the event
                  of that index (counted from 0) and for later ones
    preferences   one to five texts
    sentiments    of each "positive" or "negative"; the column is optional: by rule without it

A step says what may be known: whoever makes such a file with a model of their own makes row (user, step)
from the first ``step`` events of that user, and from nothing later.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ensuite.data.dataset import Dataset, index_ids
from ensuite.errors import EnsuiteError
from ensuite.preferences.sentiment import by_rule, invert

MOST = 5
"""Preferences of a step."""
POSITIVE, NEGATIVE = "positive", "negative"


@dataclass(frozen=True, eq=False)
class Preferences:
    """The preferences of a dataset's users, in its own numbers."""

    texts: list[str]
    """Every different text, and of the negative ones also the opposite; text n is number n + 1."""
    user: np.ndarray  # [N] int64, user rows, ascending
    step: np.ndarray  # [N] int64, ascending within a user
    members: np.ndarray  # [N, 5] int64, numbers of texts, 0 where there are fewer
    negative: np.ndarray  # [N, 5] bool

    @cached_property
    def opposite(self) -> np.ndarray:
        """The number of each text's opposite, its own where it has none: [T + 1] int64."""
        number = {text: n for n, text in enumerate(self.texts, 1)}
        return np.array([0, *(number[invert(text)] for text in self.texts)], np.int64)

    def row_at(self, user: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Return the newest row that may be used for the event of ``index`` of each ``user``, -1 where there
        is none: [Q] int64."""
        if not len(self.user):
            return np.full(len(user), -1)
        width = int(max(self.step.max(), index.max(initial=0))) + 1
        row = np.searchsorted(self.user * width + self.step, user * width + index, side="right") - 1
        return np.where((row >= 0) & (self.user[row] == user), row, -1)

    def text(self, number: int) -> str:
        """Return text ``number``, from 1."""
        return self.texts[number - 1]


def read_preferences(path: str | os.PathLike[str], dataset: Dataset) -> Preferences:
    """Read a file of preferences for the users of ``dataset``.

    Raises
    ------
    EnsuiteError
        When the file is unreadable or misses a column, names a user that the dataset has not, a step outside
        the user's sequence or twice, an empty list or text, more than five, or sentiments that do not match.
    """
    path = Path(path)
    table = _read(path)
    for name in ("user_id", "step", "preferences"):
        if name not in table.columns:
            raise EnsuiteError(
                f"{path}: no column '{name}' (there is {', '.join(table.columns)}); a file of preferences "
                "has user_id, step, preferences, and if need be sentiments"
            )
    if not table.height:
        raise EnsuiteError(f"{path}: holds no row")
    user = _users(table["user_id"], dataset, path)
    step = _steps(table["step"], table["user_id"], user, dataset, path)
    order = np.lexsort((step, user))
    twice = np.flatnonzero((np.diff(user[order]) == 0) & (np.diff(step[order]) == 0))
    if len(twice):
        raise _wrong(path, table, int(order[twice[0] + 1]), "this step has two rows")
    lists = table["preferences"].to_list()
    given = table["sentiments"].to_list() if "sentiments" in table.columns else [None] * len(lists)
    members, negative = np.zeros((len(lists), MOST), np.int64), np.zeros((len(lists), MOST), bool)
    number: dict[str, int] = {}
    for row, (texts, sentiments) in enumerate(zip(lists, given)):
        why = _mistake(texts, sentiments)
        if why:
            raise _wrong(path, table, row, why)
        clean = [" ".join(text.split()) for text in texts]
        members[row, : len(clean)] = [number.setdefault(text, len(number) + 1) for text in clean]
        labels = by_rule(clean) if sentiments is None else [one == NEGATIVE for one in sentiments]
        negative[row, : len(clean)] = labels
    for text in list(number):
        number.setdefault(invert(text), len(number) + 1)
    return Preferences(list(number), user[order], step[order], members[order], negative[order])


def write_preferences(path: Path, rows: Sequence[dict[str, Any]], ids: pl.DataType) -> None:
    """Write rows of the four columns aside and rename: Parquet, or JSON Lines by the name's end."""
    texts = pl.List(pl.String)
    schema: dict[str, Any] = {"user_id": ids, "step": pl.Int64, "preferences": texts, "sentiments": texts}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.write_ndjson(aside) if path.suffix in JSON_LINES else table.write_parquet(aside)
        os.replace(aside, path)
    except OSError as error:
        raise EnsuiteError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        aside.unlink(missing_ok=True)


JSON_LINES = (".jsonl", ".ndjson")


def _read(path: Path) -> pl.DataFrame:
    if not path.exists():
        raise EnsuiteError(f"{path}: no such file; make one with `ensuite preferences DATA --out {path}`")
    try:
        if path.suffix in JSON_LINES:
            return pl.read_ndjson(path, infer_schema_length=None)
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise EnsuiteError(
            f"{path}: neither Parquet nor (by the name's end .jsonl) JSON Lines: {str(error).splitlines()[0]}"
        ) from None


def _users(ids: pl.Series, dataset: Dataset, path: Path) -> np.ndarray:
    """Return the user rows of ``ids``: [N] int64."""
    user = np.asarray(index_ids(dataset.users, "user_id", ids.to_list()), np.int64) - 1
    unknown = np.flatnonzero(user < 0)
    if len(unknown):
        some = ", ".join(map(repr, ids.gather(unknown).unique(maintain_order=True).head(3).to_list()))
        known = ", ".join(map(repr, dataset.users["user_id"].head(3).to_list()))
        raise EnsuiteError(
            f"{path}: {len(unknown):,} of {len(ids):,} rows are of users that {dataset.path} has not "
            f"({some}); its user ids look like {known}"
        )
    return user


def _steps(steps: pl.Series, ids: pl.Series, user: np.ndarray, dataset: Dataset, path: Path) -> np.ndarray:
    """Return the steps: [N] int64."""
    if not steps.dtype.is_integer() or steps.null_count():
        raise EnsuiteError(f"{path}: column 'step' holds {steps.dtype}: a whole number in each row is needed")
    step, lengths = steps.to_numpy().astype(np.int64), np.diff(np.asarray(dataset.offsets))
    wrong = np.flatnonzero((step < 1) | (step > lengths[user]))
    if len(wrong):
        row = int(wrong[0])
        raise EnsuiteError(
            f"{path}: row {row + 1}: step {step[row]} of user {ids[row]!r}, who has "
            f"{lengths[user[row]]} events; a step is the number of events that were read, from 1"
        )
    return step


def _mistake(texts: Any, sentiments: Any) -> str:
    """Say what is wrong with a row's lists; empty: nothing."""
    if texts is None or not len(texts):
        return "the list of preferences is empty; leave such rows out"
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        return f"preferences is a list of texts, not {texts!r}"
    if len(texts) > MOST:
        return f"{len(texts)} preferences; at most {MOST} are read"
    if not all(text.strip() for text in texts):
        return "a preference is empty"
    if sentiments is None:
        return ""
    if len(sentiments) != len(texts):
        return f"{len(sentiments)} sentiments of {len(texts)} preferences"
    if not set(sentiments) <= {POSITIVE, NEGATIVE}:
        return f"sentiments are {POSITIVE} or {NEGATIVE}, not {', '.join(map(repr, sentiments))}"
    return ""


def _wrong(path: Path, table: pl.DataFrame, row: int, why: str) -> EnsuiteError:
    return EnsuiteError(f"{path}: user {table['user_id'][row]!r}, step {table['step'][row]}: {why}")
