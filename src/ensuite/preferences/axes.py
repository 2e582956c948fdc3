"""The five axes of preference discerning (Paischer et al., TMLR 2025, arXiv:2412.08604), as questions that
any model can be asked.

    recommendation   history + the preference that fits the next item (an oracle, see `matching`)
    fine steering    history of another user + a preference: the item that the preference was chosen for, a
                     near neighbour of one that the other user had
    coarse steering  the same with the least similar item
    sentiment        a preference alone: its item is to come for the positive form, and not for the negative
    consolidation    history + all preferences of the step: the next item

and beside them, since the first is an oracle's, `last preference`: the step's last positive one in its place.

What differs from the paper: a preference may be asked about an item in one phase only, not by taking the
second nearest in tests, but by lots: half of the texts belong to training, a quarter each to validation and
test. An item counts as disliked by its rating, not by a classifier of its review. The history of a user who
owns an item is what came before that item.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ensuite.data.dataset import Dataset
from ensuite.data.samples import Extra
from ensuite.preferences.matching import Choice, Space, choose
from ensuite.preferences.schema import Preferences
from ensuite.preferences.seen import Reader, opinions

Phase = Literal["train", "valid", "test"]
NEAREST = 20
"""Texts nearest to an item that are tried, until somebody else owns the other item and did not write the
text."""
BLOCK = 1 << 10
NAMES: dict[Choice, str] = {"matched": "recommendation", "last": "last preference", "all": "consolidation"}


@dataclass(frozen=True, eq=False)
class Questions:
    """Q questions: after the history ``start:end`` (rows of the event columns) with the preferences
    ``numbers``, does ``target`` come?"""

    axis: str
    user: np.ndarray  # [Q] int64, whose history it is; of sentiment: who disliked the item
    start: np.ndarray  # [Q] int64
    end: np.ndarray  # [Q] int64; that of ``start``: no history
    numbers: np.ndarray  # [Q, P] int64, see `Preferences`
    target: np.ndarray  # [Q] int64, item rows
    against: np.ndarray | None = None  # [Q, P] int64: preferences with which the target is not to come

    def __len__(self) -> int:
        return len(self.target)

    def extra(self, wanted: bool = True) -> Extra:
        """Return the questions as training samples: that the targets come, or with ``wanted`` false, that
        they do not where ``against`` is stated."""
        numbers = self.numbers if wanted or self.against is None else self.against
        unwanted = np.full(len(self), not wanted)
        return Extra(self.user, self.start, self.end, self.target, numbers, unwanted)


class Axes:
    """Makes the questions of one phase of a dataset.

    Parameters
    ----------
    phase
        `train` asks for training events; `valid` and `test` for the first target of each case of the split.
    """

    def __init__(self, dataset: Dataset, preferences: Preferences, space: Space, phase: Phase):
        self.dataset, self.preferences, self.space, self.phase = dataset, preferences, space, phase
        self.offsets = np.asarray(dataset.offsets)
        self.items = np.asarray(dataset.item_idx, np.int64)
        self.owner = np.repeat(np.arange(dataset.n_users), np.diff(self.offsets))  # [E]
        self.index = np.arange(len(self.items)) - self.offsets[self.owner]  # [E]
        if phase == "train":
            rows = dataset.events("train").rows()
            self.targets = rows[self.index[rows] > 0]
        else:
            self.targets = dataset.cases(phase).history_end
        split = dataset.split
        ends = {"train": split.train_end, "valid": split.valid_end, "test": split.test_end}[phase]
        self.visible = self.index < np.asarray(ends)[self.owner]  # [E] bool

    def recommendation(self, choice: Choice = "matched") -> Questions:
        """Ask for the next item, with the preference of ``choice``; who has none is left out."""
        rows = self.targets
        numbers = self.chosen(rows, choice)
        rows, numbers = rows[(numbers > 0).any(1)], numbers[(numbers > 0).any(1)]
        return Questions(NAMES[choice], self.owner[rows], self._first(rows), rows, numbers, self.items[rows])

    def chosen(self, rows: np.ndarray, choice: Choice) -> np.ndarray:
        """Return the preferences that go with the events ``rows``, see `choose`."""
        return choose(
            self.preferences, self.owner[rows], self.index[rows], self.items[rows], choice, self.space
        )

    def steering(self, kind: Literal["fine", "coarse"]) -> Questions:
        """Swap histories between the owners of an item and of its most (``fine``) or least similar one; no
        item is asked for twice."""
        _, first = np.unique(self.items[self.targets], return_index=True)
        sources = self.targets[np.sort(first)]  # one event for each item
        others = self._others(self.items[sources], kind)
        nearest = self._nearest_texts(self._pool(negative=False))
        found: list[tuple[int, int, int]] = []  # row whose history it is, text, target
        asked: set[int] = set()
        for row, other in zip(sources.tolist(), others.tolist()):
            item = int(self.items[row])
            if item not in asked and (one := self._swap(nearest(item), self._events_of(other), row)):
                found.append((*one, item))
                asked.add(item)
            if other not in asked and (one := self._swap(nearest(other), iter([row]), None)):
                found.append((*one, other))
                asked.add(other)
        rows, texts, items = np.array(found, np.int64).reshape(-1, 3).T
        return Questions(f"{kind} steering", self.owner[rows], self._first(rows), rows, texts[:, None], items)

    def sentiment(self) -> Questions | None:
        """Ask for disliked items by the negative preference that fits them best and its opposite; None when
        the dataset has no ratings."""
        liked = opinions(self.dataset)
        if liked is None:
            return None
        rows = self.targets[liked[self.targets] == 0]
        rows = rows[np.sort(np.unique(self.items[rows], return_index=True)[1])]
        pool = self._pool(negative=True)
        pool = pool[self.preferences.opposite[pool] != pool]
        if not len(pool) or not len(rows):
            rows, against = rows[:0], np.zeros((0, 1), np.int64)
        else:
            scores = self._described(rows) @ self.space.texts[pool].T  # [Q, N]
            against = pool[scores.argmax(1)][:, None]
        nowhere = np.zeros(len(rows), np.int64)
        positive = self.preferences.opposite[against]
        user, target = self.owner[rows], self.items[rows]
        return Questions("sentiment", user, nowhere, nowhere, positive, target, against)

    def every(self) -> Iterator[Questions]:
        """Yield the questions of all axes that the dataset allows."""
        yield self.recommendation()
        yield self.recommendation("last")
        yield self.steering("fine")
        yield self.steering("coarse")
        if (sentiment := self.sentiment()) is not None:
            yield sentiment
        yield self.recommendation("all")

    # -- parts ---------------------------------------------------------------------------------------

    def _first(self, rows: np.ndarray) -> np.ndarray:
        """Return the first row of the user of each of ``rows``."""
        return self.offsets[self.owner[rows]]

    def _swap(self, texts: Iterator[int], histories: Iterator[int], of: int | None) -> tuple[int, int] | None:
        """Return the row before which a history ends, and a text that its user did not write; not the history
        of the user of row ``of``."""
        rows = [row for row in histories if of is None or self.owner[row] != self.owner[of]]
        for text in texts if rows else ():
            for row in rows:
                if text not in self._written[int(self.owner[row])]:
                    return row, text
        return None

    def _events_of(self, item: int) -> Iterator[int]:
        """Yield the rows of an item's events that the phase may see, and that have a history."""
        first, last = np.searchsorted(self._sorted_items, [item, item + 1])
        yield from self._by_item[first:last].tolist()

    @cached_property
    def _by_item(self) -> np.ndarray:
        rows = np.flatnonzero(self.visible & (self.index > 0))
        return rows[np.argsort(self.items[rows], kind="stable")]

    @cached_property
    def _sorted_items(self) -> np.ndarray:
        return self.items[self._by_item]

    @cached_property
    def _written(self) -> list[set[int]]:
        """The texts of each user, and their opposites."""
        written: list[set[int]] = [set() for _ in range(self.dataset.n_users)]
        for user, members in zip(self.preferences.user.tolist(), self.preferences.members.tolist()):
            written[user].update(members)
        opposite = self.preferences.opposite.tolist()
        return [texts | {opposite[text] for text in texts} for texts in written]

    def _others(self, items: np.ndarray, kind: str) -> np.ndarray:
        """Return the most or least similar item of each of ``items``, of those that have an event."""
        vectors = _unit(self.space.items)
        there = np.unique(self._sorted_items)
        there = there[self.space.items[there].any(1)]
        out = []
        for at in range(0, len(items), BLOCK):
            block = items[at : at + BLOCK]
            cosine = vectors[block] @ vectors[there].T  # [b, N]
            own = block[:, None] == there[None]
            cosine = np.where(own, -np.inf if kind == "fine" else np.inf, cosine)
            out.append(there[cosine.argmax(1) if kind == "fine" else cosine.argmin(1)])
        return np.concatenate(out) if out else items

    def _nearest_texts(self, pool: np.ndarray) -> Callable[[int], Iterator[int]]:
        """Return what gives the texts of ``pool`` that fit an item best, best first."""
        vectors = self.space.texts[pool]

        def nearest(item: int) -> Iterator[int]:
            order = np.argsort(-(vectors @ self.space.items[item]), kind="stable")[:NEAREST]
            return iter(pool[order].tolist())

        return nearest

    def _pool(self, negative: bool) -> np.ndarray:
        """Return the numbers of the positive (negative) texts that belong to the phase."""
        members, labels = self.preferences.members, self.preferences.negative
        numbers = np.unique(members[(members > 0) & (labels == negative)])
        mine = [n for n in numbers.tolist() if phase_of(self.preferences.text(n)) == self.phase]
        return np.array(mine, np.int64)

    def _described(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors of "Review, Title" of events; of the item's text where there are no reviews."""
        reader = Reader(self.dataset)
        reviews = [reader.review(row) for row in rows.tolist()]
        if not any(reviews):
            return self.space.items[self.items[rows]]
        titles = [reader.titles[item - 1] for item in self.items[rows].tolist()]
        texts = [", ".join(filter(None, pair)) for pair in zip(reviews, titles)]
        return self.space.encode(texts)


def phase_of(text: str) -> Phase:
    """Return the phase that a text belongs to, by lot: half train, a quarter valid, a quarter test."""
    lot = hashlib.sha256(text.encode()).digest()[0] % 4
    return ("train", "train", "valid", "test")[lot]  # type: ignore[return-value]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
