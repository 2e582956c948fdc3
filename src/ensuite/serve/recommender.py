"""The one product call: items for a history, the same for users in the data and for those who never were."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ensuite.data.batches import History
from ensuite.data.dataset import Dataset, index_ids
from ensuite.errors import EnsuiteError, did_you_mean
from ensuite.models.base import Model, Retriever, TakesItems
from ensuite.serve.engine import Engine, EngineName, ModelEngine
from ensuite.serve.recommendations import Ranked, Recommendations
from ensuite.serve.requests import (
    Ask,
    BadRequest,
    ItemId,
    NothingKnown,
    When,
    name_of,
    read_histories,
    split_times,
    to_seconds,
)
from ensuite.serve.search.index import has_index, load_engine
from ensuite.serve.top_k import top_k
from ensuite.training.new_items import Describer
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
    run
        Where the model is from: it knows how new items are described to it.

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
        run: Run | None = None,
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
        self.run = run

    @classmethod
    def load(
        cls,
        run: str | os.PathLike[str],
        *,
        device: str | torch.device = "cpu",
        engine: EngineName = "auto",
    ) -> Recommender:
        """Load a run folder; the dataset it was trained on is not needed. See `of`."""
        return cls.of(load_run(run), device=device, engine=engine)

    @classmethod
    def of(
        cls,
        run: Run,
        *,
        device: str | torch.device = "cpu",
        engine: EngineName = "auto",
    ) -> Recommender:
        """Recommend from a run that is loaded already; titles are the item table's column `title`, or else
        `name`.

        ``engine`` says how the best items are found: "torch" by the model's scores, "index" by the index
        beside the run (`ensuite index`), "onnx" by the graph that `ensuite export RUN --onnx` wrote; "auto"
        by the index if there is one, else by the model. Scores of a quantised index (pq, pq-pruned) are those
        of the quantised items, near the model's and not equal to them.
        """
        titles = next(
            (run.items[name].to_list() for name in ("title", "name") if name in run.items.columns), None
        )
        unit = run.card["data"].get("time_unit") or "s"
        exclude = run.card.get("protocol", {}).get("exclude", "seen")
        return cls(
            run.model.to(device),
            run.items["item_id"].to_list(),
            titles,
            time_unit=unit,
            exclude=exclude,
            engine=_open_engine(engine, run),
            run=run,
        )

    def recommend(
        self,
        history: Iterable[Any],
        k: int = 10,
        *,
        exclude: Literal["seen", "none"] | Iterable[ItemId] | None = None,
        candidates: Iterable[ItemId] | None = None,
        at: When | None = None,
        preference: str | None = None,
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
        preference
            What is wanted, in words, for models that read it.

        Raises
        ------
        EnsuiteError
            When no item of a history is known, when the model needs times and there are none, when ``at``
            lies before the last event, when the model reads no ``preference``, or when fewer than k items can
            be had (saying how many).
        """
        histories, many = read_histories(history)
        exclude = exclude if exclude is None or isinstance(exclude, str) else list(exclude)
        if isinstance(candidates, str | bytes):
            raise EnsuiteError(f"candidates is a list of item ids; got {candidates!r}")
        among = None if candidates is None else list(candidates)
        asks = [
            Ask(events, k, exclude, among, at, name_of(number, many), preference)  # type: ignore[arg-type]
            for number, events in enumerate(histories, 1)
        ]
        ranked = []
        for answer in self.recommend_each(asks):
            if isinstance(answer, BadRequest):
                raise answer
            ranked.append(answer)
        return Recommendations(ranked, many, ranked[0].unknown_candidates)

    def recommend_each(self, asks: Sequence[Ask]) -> list[Ranked | BadRequest]:
        """Answer requests that have nothing to do with each other, as many at a time as go together.

        Those of one ``k`` and one list of candidates (the same object) are scored as one batch. A request
        that cannot be met has its error as its answer, and the others have theirs.

        Raises
        ------
        EnsuiteError
            When the model fails: its scores are not numbers, or fewer than k of them are finite.
        """
        answers: list[Ranked | BadRequest] = [None] * len(asks)  # type: ignore[list-item]
        read: dict[int, _Read] = {}
        candidates: dict[int, tuple[Tensor | None, list[ItemId]]] = {}
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, ask in enumerate(asks):
            try:
                if id(ask.candidates) not in candidates:
                    candidates[id(ask.candidates)] = self._allowed(ask.candidates)
                one = read[number] = self._read(ask, *candidates[id(ask.candidates)])
            except BadRequest as error:
                answers[number] = error
            else:
                key = ask.k, id(ask.candidates), one.times is None, one.sessions is None
                groups.setdefault(key, []).append(number)
        for (k, *_), members in groups.items():
            members.sort(key=lambda number: len(read[number].rows))
            for at in range(0, len(members), BATCH):
                which = members[at : at + BATCH]
                batch = [read[number] for number in which]
                excluded = [one.excluded for one in batch]
                scores, rows = self.engine.top_k(self._build(batch), k, batch[0].allowed, excluded)
                for number, values, items in zip(which, scores.tolist(), rows.tolist()):
                    one = read[number]
                    answers[number] = self._name(items, values, one.unknown, one.unknown_candidates)
        return answers

    def similar(self, item: ItemId, k: int = 10) -> Recommendations:
        """Return the k items whose vectors have the largest cosine with that of ``item``."""
        if not isinstance(self.model, Retriever):
            raise EnsuiteError(
                f"{type(self.model).__name__} has no item vectors to compare; load a model such as sasrec"
            )
        row = self._rows.get(str(item))
        if row is None:
            raise BadRequest(f"item {item!r} is unknown to the model; {self._example()}", "item_id")
        excluded = [np.array([row])]
        self._check_k(k, None, excluded[0], f"item {item!r}")
        with torch.inference_mode():
            vectors = torch.nn.functional.normalize(self.model.item_vectors().float(), dim=-1)  # [V + 1, D]
            cosines = (vectors @ vectors[row])[None]
            cosines[0, [0, row]] = -torch.inf
            scores, rows = top_k(cosines, k)
        return Recommendations([self._name(rows[0].tolist(), scores[0].tolist(), [], [])])

    def with_items(
        self, ids: Sequence[ItemId], like: Sequence[Sequence[ItemId]], titles: Sequence[str | None]
    ) -> Recommender:
        """Return a recommender that knows new items too, each at the mean of the items it is ``like``.

        They are recommended and read in histories at once; this recommender stays as it is.

        Raises
        ------
        EnsuiteError
            When the model cannot take items without being trained again, or its engine has a fixed catalogue.
        """
        if not isinstance(self.model, TakesItems):
            raise EnsuiteError(
                f"{type(self.model).__name__} cannot take new items without training: train again with them"
            )
        rows = [[self._rows[str(item)] for item in named] for named in like]
        return self._grown(self.model.with_items(rows), ids, titles)

    @cached_property
    def describer(self) -> Describer:
        """What gives this model new items by what they are.

        Raises
        ------
        EnsuiteError
            When the model knows items one by one.
        """
        if self.run is None:
            raise EnsuiteError("a recommender without a run cannot be told what items are; load it from one")
        return Describer(self.run)

    def with_described(self, items: pl.DataFrame, where: str) -> Recommender:
        """Return a recommender that knows new items too, by what they are: a table with item_id and the
        columns that described the items of the training; ``where`` is how messages call it.

        They are recommended and read in histories at once; this recommender stays as it is.

        Raises
        ------
        EnsuiteError
            When the model knows items one by one, its engine has a fixed catalogue, or the items cannot be
            described (`Describer.grow`).
        """
        model = self.describer.grow(items, where)
        titles = next((items[name].to_list() for name in ("title", "name") if name in items.columns), None)
        return self._grown(model, items["item_id"].to_list(), titles or [None] * len(items))

    def _grown(self, model: Model, ids: Sequence[ItemId], titles: Sequence[str | None]) -> Recommender:
        if not isinstance(self.engine, ModelEngine):
            raise EnsuiteError(
                "this engine answers from a catalogue that was fixed when it was built; serve with the "
                "model itself (--engine torch), or train again with the new items"
            )
        known = [""] * len(self.item_ids) if self.titles is None else self.titles
        titled = self.titles is not None or any(titles)
        return Recommender(
            model,
            [*self.item_ids, *ids],
            [*known, *titles] if titled else None,
            time_unit=self.time_unit,
            exclude=self.exclude,
            run=self.run,
        )

    def with_titles(self, titles: Mapping[ItemId, str]) -> Recommender:
        """Return a recommender that shows other titles for some items that it knows."""
        new = [""] * len(self.item_ids) if self.titles is None else list(self.titles)
        for item, title in titles.items():
            new[self._rows[str(item)] - 1] = title
        return Recommender(
            self.model,
            self.item_ids,
            new,
            time_unit=self.time_unit,
            exclude=self.exclude,
            engine=self.engine,
            run=self.run,
        )

    def knows(self, item: ItemId) -> bool:
        """Whether the item is in the catalogue; ids are compared as text."""
        return str(item) in self._rows

    def title(self, item: ItemId) -> str | None:
        """Return an item's title; None when it is unknown, or there are no titles."""
        row = self._rows.get(str(item))
        return None if self.titles is None or row is None else self.titles[row - 1]

    # -- reading a request -------------------------------------------------------------------------

    def _read(self, ask: Ask, allowed: Tensor | None, unknown_candidates: list[ItemId]) -> _Read:
        items, times, sessions = split_times(list(ask.history), self.time_unit, ask.name)
        rows = [self._rows.get(str(item), 0) for item in items]
        unknown = [] if all(rows) else [item for item, row in zip(items, rows) if not row]
        if len(unknown) == len(rows):
            shown = ", ".join(map(repr, unknown[:5]))
            raise NothingKnown(
                f"{ask.name}: none of its {len(rows)} items is known to the model ({shown}); "
                f"{self._example()}",
                "history",
            )
        if times is None and self.model.needs_times():
            raise BadRequest(
                f"{ask.name} has no times, which this {type(self.model).__name__} reads: give (item id, "
                "time) tuples (on the command line --times, one for each item)",
                "history",
            )
        kept, shared, known = times, sessions, rows
        if unknown:
            kept = None if times is None else [time for time, row in zip(times, rows) if row]
            shared = None if sessions is None else [key for key, row in zip(sessions, rows) if row]
            known = [row for row in rows if row]
        excluded = self._excluded(self.exclude if ask.exclude is None else ask.exclude, known)
        self._check_k(ask.k, allowed, excluded, ask.name)
        stated = None if ask.preference is None else self._stated(ask.preference)
        at = None if ask.at is None else to_seconds(ask.at, self.time_unit)
        if at is not None and kept is not None and at < kept[-1]:
            raise BadRequest(
                f"at: the request lies {kept[-1] - at:,} seconds before the last event of {ask.name}", "at"
            )
        return _Read(known, kept, shared, unknown, at, excluded, allowed, unknown_candidates, stated)

    def _stated(self, preference: str) -> Tensor:
        """Return a preference as the model reads it: [W]."""
        if not self.model.reads_preferences():
            raise BadRequest(
                f"this {type(self.model).__name__} reads no preference; leave it out, or ask a run of a "
                "system that does (mender)",
                "preference",
            )
        try:
            return self.model.encode_preferences([preference])[0].cpu()
        except EnsuiteError as error:
            raise BadRequest(str(error), "preference") from None

    def _example(self) -> str:
        return f"known ids look like {', '.join(repr(item) for item in self.item_ids[:3])}"

    def _allowed(self, candidates: Iterable[ItemId] | None) -> tuple[Tensor | None, list[ItemId]]:
        """Return True at the rows that may be recommended, [V + 1], and the candidates that are unknown."""
        if candidates is None:
            return None, []
        known, unknown = self._lookup(candidates)
        if not known:
            raise BadRequest(
                f"none of the {len(unknown)} candidates is known to the model; {self._example()}",
                "candidates",
            )
        allowed = torch.zeros(self.model.n_items + 1, dtype=torch.bool)
        allowed[known] = True
        return allowed, unknown

    def _excluded(self, exclude: str | Iterable[ItemId], seen: list[int]) -> np.ndarray:
        """Return the rows that must not be recommended: [X] int64, ascending."""
        if isinstance(exclude, str):
            if exclude not in ("seen", "none"):
                raise BadRequest(f"exclude = '{exclude}': 'seen', 'none', or a list of item ids", "exclude")
            return np.unique(seen if exclude == "seen" else np.zeros(0, np.int64))
        return np.unique(np.array(self._lookup(exclude)[0], np.int64))

    def _lookup(self, ids: Iterable[ItemId]) -> tuple[list[int], list[ItemId]]:
        pairs = [(item, self._rows.get(str(item), 0)) for item in ids]
        return [row for _, row in pairs if row], [item for item, row in pairs if not row]

    def _check_k(self, k: int, allowed: Tensor | None, excluded: np.ndarray, name: str) -> None:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise BadRequest(f"k = {k!r}: how many items to recommend, at least 1", "k")
        total = self.model.n_items if allowed is None else int(allowed.sum())
        out = len(excluded) if allowed is None else int(allowed[excluded].sum())
        if k > total - out:
            what = "items in the catalogue" if allowed is None else "known candidates"
            raise BadRequest(
                f"k = {k}: only {total - out} can be had for {name}: "
                f"{total} {what}, {out} of them excluded; ask for at most {total - out}",
                "k",
            )

    def _build(self, batch: list[_Read]) -> History:
        """Pad the last events of the histories on the right; all of them have times (sessions), or none."""
        length = self.model.max_length
        items = _pad([one.rows[-length:] for one in batch])
        stated = _stack([one.stated for one in batch])
        if batch[0].times is None:
            return History(items, preferences=stated)
        times = _pad([(one.times or [])[-length:] for one in batch])
        requests = torch.zeros_like(times)
        requests[:, :-1] = times[:, 1:]
        last = torch.arange(len(batch)), (items != 0).sum(1) - 1
        asked = [one.at if one.at is not None else (one.times or [])[-1] for one in batch]
        requests[last] = torch.tensor(asked)
        if batch[0].sessions is None:
            return History(items, times, requests, preferences=stated)
        cut = [(one.sessions or [])[-length:] for one in batch]
        changes = [[0, *(int(a != b) for a, b in pairwise(keys))] for keys in cut]
        return History(items, times, requests, _pad([list(accumulate(one)) for one in changes]), stated)

    def _name(
        self,
        rows: list[int],
        scores: list[float],
        unknown: list[ItemId],
        unknown_candidates: list[ItemId],
    ) -> Ranked:
        titles = None if self.titles is None else [self.titles[row - 1] for row in rows]
        ids = [self.item_ids[row - 1] for row in rows]
        return Ranked(ids, scores, titles, unknown, unknown_candidates)


@dataclass(frozen=True)
class _Read:
    """A request in the model's terms."""

    rows: list[int]
    """Known items of the history, oldest first."""
    times: list[int] | None  # in seconds
    sessions: list[Any] | None
    unknown: list[ItemId]
    at: int | None  # in seconds
    excluded: np.ndarray  # [X] int64, ascending
    allowed: Tensor | None  # [V + 1]
    unknown_candidates: list[ItemId]
    stated: Tensor | None  # [W], the preference


def _stack(stated: list[Tensor | None]) -> Tensor | None:
    """Return preferences as `History` holds them, [B, 1, W], 0 where there is none; None: nobody has one."""
    some = next((one for one in stated if one is not None), None)
    if some is None:
        return None
    return torch.stack([torch.zeros_like(some) if one is None else one for one in stated])[:, None]


def _pad(lists: list[list[int]]) -> Tensor:
    width = max(map(len, lists))
    return torch.tensor([one + [0] * (width - len(one)) for one in lists])


def _open_engine(name: EngineName, run: Run) -> Engine | None:
    """Return an engine other than the model itself, which is None."""
    if name not in get_args(EngineName):
        raise EnsuiteError(f"engine = '{name}': {did_you_mean(name, get_args(EngineName))}")
    if name == "onnx":
        from ensuite.serve.export.engine import OnnxEngine

        return OnnxEngine.of(run)
    if name == "index" or (name == "auto" and has_index(run.path)):
        return load_engine(run)
    return None


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
