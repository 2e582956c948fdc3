"""The one product call: items for a history, the same for users in the data and for those who never were."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ensuite.data.batches import History
from ensuite.data.dataset import Dataset, index_ids
from ensuite.errors import EnsuiteError
from ensuite.models.base import Model, Retriever
from ensuite.serve.engine import Engine, ModelEngine
from ensuite.serve.recommendations import Ranked, Recommendations
from ensuite.serve.requests import ItemId, When, name_of, read_histories, split_times, to_seconds
from ensuite.serve.search.index import Search, load_engine
from ensuite.serve.top_k import top_k
from ensuite.training.run import Run, load_run

BATCH = 256
"""Histories scored at a time."""


class Recommender:
    """Recommends from a model in the user's own item ids.

    Parameters
    ----------
    model
        Any model of ensuite, trained; it is put into evaluation mode, and must not be trained further
        meanwhile.
    item_ids
        The user's key of item row i + 1, at position i: [V].
    titles
        What to show beside an id: [V]; None for nothing.
    time_unit
        Unit of times given as plain numbers: "s", "ms", "us" or "ns".
    exclude
        What `recommend` leaves out when it is not told: as the model was measured.
    engine
        How the best items are found; by default the model scores them all.

    Examples
    --------
    >>> from ensuite.models.popularity import Popularity, PopularityConfig
    >>> model = Popularity(PopularityConfig(), n_items=3)
    >>> model.counts = torch.tensor([0, 5, 9, 7])
    >>> Recommender(model, ["tea", "rice", "oil"]).recommend(["rice"], k=2).ids
    ['oil', 'tea']
    """

    def __init__(
        self,
        model: Model,
        item_ids: Sequence[ItemId],
        titles: Sequence[str | None] | None = None,
        *,
        time_unit: str = "s",
        exclude: Literal["seen", "none"] = "seen",
        engine: Engine | None = None,
    ):
        if len(item_ids) != model.n_items:
            raise EnsuiteError(
                f"{len(item_ids)} item ids for a model of {model.n_items} items: one for each is needed"
            )
        self.model = model.eval()
        self.item_ids = list(item_ids)
        self.titles = None if titles is None else ["" if title is None else str(title) for title in titles]
        self.time_unit = time_unit
        self.exclude = exclude
        self._rows = {str(item): row for row, item in enumerate(self.item_ids, 1)}
        self.engine = engine or ModelEngine(self.model)

    @classmethod
    def load(
        cls, run: str | os.PathLike[str], *, device: str | torch.device = "cpu", search: Search = "auto"
    ) -> Recommender:
        """Load a run folder; the dataset it was trained on is not needed.

        ``search`` says how the best items are found: "auto" by the index beside the run (`ensuite index`) if
        there is one, "index" by it only, "exact" by the model's scores alone. Scores of a quantised index
        (pq, pq-pruned) are those of the quantised items, near the model's and not equal to them.
        """
        return cls.of(load_run(run), device=device, search=search)

    @classmethod
    def of(cls, run: Run, *, device: str | torch.device = "cpu", search: Search = "auto") -> Recommender:
        """Recommend from a run that is loaded already; titles are the item table's column `title`, or else
        `name`."""
        titles = next(
            (run.items[name].to_list() for name in ("title", "name") if name in run.items.columns), None
        )
        unit = run.card["data"].get("time_unit") or "s"
        exclude = run.card.get("protocol", {}).get("exclude", "seen")
        run.model.to(device)
        ids, engine = run.items["item_id"].to_list(), load_engine(run, search)
        return cls(run.model, ids, titles, time_unit=unit, exclude=exclude, engine=engine)

    def recommend(
        self,
        history: Iterable[Any],
        k: int = 10,
        *,
        exclude: Literal["seen", "none"] | Iterable[ItemId] | None = None,
        candidates: Iterable[ItemId] | None = None,
        at: When | None = None,
    ) -> Recommendations:
        """Return the k best items after a history, or after each of many.

        Parameters
        ----------
        history
            Item ids, oldest first, or tuples (item id, time) or (item id, time, session), which are put in
            order of time; a list of such lists for many users. A session is any value that its events share;
            models of sessions cut by pauses where none is given. Times are datetimes, ISO texts or numbers
            in the dataset's unit. Items that the model does not know are left out, and named in the answer's
            ``unknown``.
        k
            How many items.
        exclude
            "seen": none of the history's own items; "none": any item; a list of ids: none of these (nor any
            other rule). By default as the model was measured: "seen", or "none" after a sessions split.
        candidates
            Choose among these items only.
        at
            When the items are asked for; default: the time of the last event. Read by models of request time
            only.

        Raises
        ------
        EnsuiteError
            When no item of a history is known, when the model needs times and there are none, when ``at``
            lies before the last event, or when fewer than k items can be had (saying how many).
        """
        histories, many = read_histories(history)
        read = [self._read(events, name_of(number, many)) for number, events in enumerate(histories, 1)]
        asked = None if at is None else to_seconds(at, self.time_unit)
        allowed, unknown_candidates = self._allowed(candidates)
        exclude = self.exclude if exclude is None else exclude
        excluded = [self._excluded(exclude, rows) for rows, *_ in read]
        self._check_k(k, allowed, excluded, many)
        ranked: list[Ranked] = [None] * len(read)  # type: ignore[list-item]
        order = sorted(range(len(read)), key=lambda number: len(read[number][0]))
        for at_number in range(0, len(order), BATCH):
            which = order[at_number : at_number + BATCH]
            batch = self._build([read[number][:3] for number in which], asked, many)
            scores, rows = self.engine.top_k(batch, k, allowed, [excluded[number] for number in which])
            for number, values, items in zip(which, scores.tolist(), rows.tolist()):
                ranked[number] = self._name(items, values, read[number][3])
        return Recommendations(ranked, many, unknown_candidates)

    def similar(self, item: ItemId, k: int = 10) -> Recommendations:
        """Return the k items whose vectors have the largest cosine with that of ``item``."""
        if not isinstance(self.model, Retriever):
            raise EnsuiteError(
                f"{type(self.model).__name__} has no item vectors to compare; load a model such as sasrec"
            )
        row = self._rows.get(str(item))
        if row is None:
            raise EnsuiteError(f"item {item!r} is unknown to the model; {self._example()}")
        excluded = [np.array([row])]
        self._check_k(k, None, excluded, many=False)
        with torch.inference_mode():
            vectors = torch.nn.functional.normalize(self.model.item_vectors().float(), dim=-1)  # [V + 1, D]
            cosines = (vectors @ vectors[row])[None]
            cosines[0, [0, row]] = -torch.inf
            scores, rows = top_k(cosines, k)
        return Recommendations([self._name(rows[0].tolist(), scores[0].tolist(), [])])

    def title(self, item: ItemId) -> str | None:
        """Return an item's title; None when it is unknown, or there are no titles."""
        row = self._rows.get(str(item))
        return None if self.titles is None or row is None else self.titles[row - 1]

    # -- reading a request -------------------------------------------------------------------------

    def _read(
        self, events: list[Any], name: str
    ) -> tuple[list[int], list[int] | None, list[Any] | None, list[ItemId]]:
        """Return known item rows, their times in seconds, their sessions, and the unknown items."""
        items, times, sessions = split_times(events, self.time_unit, name)
        rows = [self._rows.get(str(item), 0) for item in items]
        unknown = [item for item, row in zip(items, rows) if not row]
        if len(unknown) == len(rows):
            shown = ", ".join(map(repr, unknown[:5]))
            raise EnsuiteError(
                f"{name}: none of its {len(rows)} items is known to the model ({shown}); {self._example()}"
            )
        if times is None and self.model.needs_times():
            raise EnsuiteError(
                f"{name} has no times, which this {type(self.model).__name__} reads: give (item id, time) "
                "tuples (on the command line --times, one for each item)"
            )
        kept = None if times is None else [time for time, row in zip(times, rows) if row]
        shared = None if sessions is None else [key for key, row in zip(sessions, rows) if row]
        return [row for row in rows if row], kept, shared, unknown

    def _example(self) -> str:
        return f"known ids look like {', '.join(repr(item) for item in self.item_ids[:3])}"

    def _allowed(self, candidates: Iterable[ItemId] | None) -> tuple[Tensor | None, list[ItemId]]:
        """Return True at the rows that may be recommended, [V + 1], and the candidates that are unknown."""
        if candidates is None:
            return None, []
        if isinstance(candidates, str | bytes):
            raise EnsuiteError(f"candidates is a list of item ids; got {candidates!r}")
        known, unknown = self._lookup(candidates)
        if not known:
            raise EnsuiteError(
                f"none of the {len(unknown)} candidates is known to the model; {self._example()}"
            )
        allowed = torch.zeros(self.model.n_items + 1, dtype=torch.bool)
        allowed[known] = True
        return allowed, unknown

    def _excluded(self, exclude: str | Iterable[ItemId], seen: list[int]) -> np.ndarray:
        """Return the rows that must not be recommended: [X] int64, ascending."""
        if isinstance(exclude, str):
            if exclude not in ("seen", "none"):
                raise EnsuiteError(f"exclude = '{exclude}': 'seen', 'none', or a list of item ids")
            return np.unique(seen if exclude == "seen" else np.zeros(0, np.int64))
        return np.unique(np.array(self._lookup(exclude)[0], np.int64))

    def _lookup(self, ids: Iterable[ItemId]) -> tuple[list[int], list[ItemId]]:
        pairs = [(item, self._rows.get(str(item), 0)) for item in ids]
        return [row for _, row in pairs if row], [item for item, row in pairs if not row]

    def _check_k(self, k: int, allowed: Tensor | None, excluded: list[np.ndarray], many: bool) -> None:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise EnsuiteError(f"k = {k!r}: how many items to recommend, at least 1")
        total = self.model.n_items if allowed is None else int(allowed.sum())
        for number, rows in enumerate(excluded, 1):
            out = len(rows) if allowed is None else int(allowed[rows].sum())
            if k > total - out:
                what = "items in the catalogue" if allowed is None else "known candidates"
                raise EnsuiteError(
                    f"k = {k}: only {total - out} can be had for {name_of(number, many)}: "
                    f"{total} {what}, {out} of them excluded; ask for at most {total - out}"
                )

    def _build(
        self,
        read: list[tuple[list[int], list[int] | None, list[Any] | None]],
        asked: int | None,
        many: bool,
    ) -> History:
        """Pad the last events of the histories on the right."""
        length = self.model.max_length
        cut = [(rows[-length:], None if times is None else times[-length:]) for rows, times, _ in read]
        width = max(len(rows) for rows, _ in cut)
        items = torch.tensor([rows + [0] * (width - len(rows)) for rows, _ in cut])
        keys = [None if sessions is None else sessions[-length:] for _, _, sessions in read]
        if any(one is None for one in keys) and any(one is not None for one in keys):
            raise EnsuiteError("some histories have sessions and some have none; give all of them, or none")
        sessions = None
        if keys[0] is not None:
            sessions = torch.zeros_like(items)
            for row, one in enumerate(key for key in keys if key is not None):
                changes = [int(a != b) for a, b in pairwise(one)]
                sessions[row, : len(one)] = torch.tensor([0, *accumulate(changes)])
        timed = [times for _, times in cut if times is not None]
        if len(timed) < len(cut):
            if timed and self.model.needs_times():
                raise EnsuiteError("some histories have times and some have none; give all of them times")
            return History(items)
        times = torch.tensor([times + [0] * (width - len(times)) for times in timed])
        requests = torch.zeros_like(times)
        requests[:, :-1] = times[:, 1:]
        for row, one in enumerate(timed):
            if asked is not None and asked < one[-1]:
                which = name_of(row + 1, False) if not many else "a history"
                raise EnsuiteError(
                    f"at: the request lies {one[-1] - asked:,} seconds before the last event of {which}"
                )
            requests[row, len(one) - 1] = one[-1] if asked is None else asked
        return History(items, times, requests, sessions)

    def _name(self, rows: list[int], scores: list[float], unknown: list[ItemId]) -> Ranked:
        titles = None if self.titles is None else [self.titles[row - 1] for row in rows]
        return Ranked([self.item_ids[row - 1] for row in rows], scores, titles, unknown)


def user_history(dataset: Dataset, user_id: Any, *, before: When | None = None) -> list[Any]:
    """Return all events of a user of a dataset, as `Recommender.recommend` takes them: (item id, time,
    session) or (item id, time) as far as the dataset has them, or item ids alone. With ``before``, only
    events earlier than that.

    Raises
    ------
    EnsuiteError
        When the dataset has no such user, or no event of theirs lies before ``before``.
    """
    (number,) = index_ids(dataset.users, "user_id", [user_id])
    if not number:
        shown = ", ".join(repr(user) for user in dataset.users["user_id"].head(3).to_list())
        raise EnsuiteError(f"{dataset.path}: no user {user_id!r}; user ids look like {shown}")
    rows = slice(int(dataset.offsets[number - 1]), int(dataset.offsets[number]))
    items = dataset.items["item_id"].gather(np.asarray(dataset.item_idx[rows], np.int64) - 1).to_list()
    if dataset.time is None:
        return items
    unit = dataset.card["time_unit"]
    columns = [items, np.asarray(dataset.time[rows]).tolist()]
    if "session" in dataset.card["columns"]:
        columns.append(np.asarray(dataset.column("session")[rows]).tolist())
    events = list(zip(*columns))
    if before is not None:
        limit = to_seconds(before, unit)
        events = [event for event in events if to_seconds(event[1], unit) < limit]
        if not events:
            raise EnsuiteError(f"{dataset.path}: user {user_id!r} has no event before {before}")
    return events
