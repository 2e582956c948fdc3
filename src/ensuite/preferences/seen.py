"""What a writer of preferences is shown: a user's latest events, with what is known of the items and what the
user thought of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ensuite.content.template import as_text
from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError, did_you_mean

LATEST = 5
"""Events that a writer is shown, at most."""
KINDS = ("genres", "genre", "categories", "category", "tags", "brand")
TITLES = ("title", "name")
REVIEWS = ("review_summary", "summary", "review_text", "review")


@dataclass(frozen=True)
class Seen:
    """An event, in words."""

    item: str
    """The item's title, or its kinds where there is none."""
    kinds: tuple[str, ...]
    liked: bool | None
    """By its rating, above or below the middle of the scale; None: unrated."""
    review: str


class Reader:
    """Reads the events of a dataset as `Seen`.

    Parameters
    ----------
    dataset
        The dataset.
    kinds
        Column of the item table with what kinds of item there are; "": the first of `KINDS` that is there.
    review
        Text column of the events; "": the first of `REVIEWS` that is there.

    Raises
    ------
    EnsuiteError
        When a named column is not there, or nothing says anything about the items.
    """

    def __init__(self, dataset: Dataset, kinds: str = "", review: str = ""):
        self.dataset = dataset
        columns = dataset.items.columns
        title = next((name for name in TITLES if name in columns), None)
        kinds = _pick(kinds, KINDS, columns, f"{dataset.path}: item column")
        review = _pick(review, REVIEWS, list(dataset.card["columns"]), f"{dataset.path}: event column")
        if not (title or kinds or review):
            raise EnsuiteError(
                f"{dataset.path}: nothing says what its items are: preferences are made of titles, kinds "
                f"({', '.join(KINDS)}) or reviews ({', '.join(REVIEWS)}); prepare it with --items TABLE, or "
                "with --keep review_summary"
            )
        self.kinds = [_leaves(value) for value in dataset.items[kinds]] if kinds else [()] * dataset.n_items
        common = set.intersection(*map(set, self.kinds)) if dataset.n_items > 1 else set()
        self.kinds = [tuple(kind for kind in one if kind not in common) for one in self.kinds]
        titles = dataset.items[title].to_list() if title else [None] * dataset.n_items
        self.titles = [as_text(name) or ", ".join(one) for name, one in zip(titles, self.kinds)]
        self._review = np.asarray(dataset.column(review)) if review else None
        labels = dataset.labels(review) if review else None
        if review and labels is None:
            raise EnsuiteError(f"{dataset.path}: event column '{review}' holds numbers; reviews are text")
        self._words = [] if labels is None else labels.to_list()
        self.liked = opinions(dataset)

    def latest(self, user: int, step: int) -> list[Seen]:
        """Return the last (at most five) of the first ``step`` events of ``user``, oldest first."""
        first = int(self.dataset.offsets[user])
        return [self.event(row) for row in range(first + max(0, step - LATEST), first + step)]

    def event(self, row: int) -> Seen:
        """Return the event at ``row`` of the event columns."""
        item = int(self.dataset.item_idx[row]) - 1
        opinion = None if self.liked is None or np.isnan(self.liked[row]) else bool(self.liked[row])
        return Seen(self.titles[item], self.kinds[item], opinion, self.review(row))

    def review(self, row: int) -> str:
        """Return the review of an event; empty: there is none."""
        code = -1 if self._review is None else int(self._review[row])
        return " ".join(self._words[code].split()) if code >= 0 else ""


def opinions(dataset: Dataset) -> np.ndarray | None:
    """Return 1 where an event's rating is in the upper half of the scale, 0 in the lower, NaN without one:
    [E] float64; None when the dataset has no ratings."""
    if "rating" not in dataset.card["columns"] or dataset.labels("rating") is not None:
        return None
    rating = np.asarray(dataset.column("rating"), np.float64)
    low, high = np.nanmin(rating, initial=np.inf), np.nanmax(rating, initial=-np.inf)
    return np.where(np.isnan(rating), np.nan, rating >= (low + high) / 2)


def _pick(asked: str, known: tuple[str, ...], there: list[str], what: str) -> str:
    if asked and asked not in there:
        raise EnsuiteError(f"{what} '{asked}' is not there; {did_you_mean(asked, there)}")
    return asked or next((name for name in known if name in there), "")


def _leaves(value: object) -> tuple[str, ...]:
    """Return a cell's kinds, each once: a text that holds several separates them by ``|``."""
    if value is None:
        return ()
    flat = [value] if isinstance(value, str) else list(_flat(value))
    parts = [as_text(part) for one in flat for part in str(one).split("|")]
    return tuple(dict.fromkeys(part for part in parts if part))


def _flat(value: object) -> list[object]:
    if hasattr(value, "__iter__") and not isinstance(value, str):
        return [leaf for part in value for leaf in _flat(part)]
    return [] if value is None else [value]
