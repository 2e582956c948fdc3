"""What the pages ask of the service, the event store, the datasets and the folder of runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import polars as pl

from ensuite.data.dataset import Dataset
from ensuite.errors import EnsuiteError
from ensuite.serve.asking import Answer, Given, Request, build_ask
from ensuite.serve.explain import Explanation, explain
from ensuite.serve.page.shelf import Shelved, find_run, read_shelf, same_catalogue
from ensuite.serve.page.titles import TitleIndex
from ensuite.serve.recommender import Recommender, user_history
from ensuite.serve.requests import BadRequest, ItemId, to_seconds
from ensuite.serve.service import Service
from ensuite.serve.store import Event
from ensuite.training.run import Run

MICROSECONDS = 1_000_000
HISTORY = 500
"""How many of a user's last events are read from the store."""


@dataclass(frozen=True)
class PastEvent:
    """One event of a history that is being looked at."""

    item: ItemId
    time: int | None = None
    """Seconds since 1970; None where only the order is known."""
    session: Any = None
    recorded: bool = False
    """Whether it stands in the store."""
    fresh: bool = False
    """Whether it arrived while one was looking."""


@dataclass(frozen=True)
class KnownUser:
    """A user whose history can be shown."""

    user: Any
    stored: bool
    """In the event store, or else in the dataset of the run."""
    events: int


class Backend:
    """One for the whole process: it holds nothing that belongs to a reader of the page."""

    def __init__(self, service: Service, runs: Path | None):
        self.service, self.runs = service, runs
        self._index: tuple[Recommender, TitleIndex] | None = None

    @property
    def recommender(self) -> Recommender:
        """What serves now; asked anew each time, since another may be swapped in."""
        return self.service.recommender

    @property
    def run(self) -> Run:
        """The run that serves now."""
        return self.service.loaded.run

    # -- items --

    @property
    def trained_ids(self) -> list[ItemId]:
        """The items that the served run was trained on: without those that were put since."""
        return self.service.loaded.base.item_ids

    def index(self) -> TitleIndex:
        """Return the titles of the catalogue that is served now."""
        current = self.recommender
        if self._index is None or self._index[0] is not current:
            self._index = current, TitleIndex(current.item_ids, current.titles)
        return self._index[1]

    def title(self, item: ItemId) -> str:
        """Return what an item is called, or its id."""
        return self.recommender.title(item) or str(item)

    # -- answers --

    def request(
        self,
        events: Sequence[PastEvent],
        k: int,
        exclude: Literal["seen", "none"],
        candidates: list[str] | None = None,
        at: int | None = None,
    ) -> Request:
        """Return what the service is asked for a history.

        Parameters
        ----------
        events
            When the model reads times, events without one get it: a minute apart, the last one now.
        at
            Seconds since 1970. By default the time of the last event, or now when that stands in the store:
            what is long over is not asked about as if it went on.
        """
        if self.recommender.model.needs_times():
            now = int(time.time())
            if any(event.time is None for event in events):
                last = len(events) - 1
                events = [replace(event, time=now - 60 * (last - n)) for n, event in enumerate(events)]
            times = [event.time or 0 for event in events]
            at = at or (max(now, *times) if any(event.recorded for event in events) else max(times))
        else:
            events, at = [replace(event, time=None) for event in events], None
        given = [
            Given(
                event.item,
                None if event.time is None else event.time * MICROSECONDS,
                None if event.session is None else str(event.session),
            )
            for event in events
        ]
        moment = None if at is None else at * MICROSECONDS
        return Request(history=given, k=k, candidates=candidates, exclude=exclude, at=moment)

    async def answer(self, request: Request, model: Recommender | None = None) -> Answer:
        """Return what the service answers, or ``model`` when one is given."""
        if model is None:
            return await self.service.recommend_one(request)
        ask = build_ask(request, request.history, model, 0)
        (ranked,) = await asyncio.to_thread(model.recommend_each, [ask])
        if isinstance(ranked, BadRequest):
            raise ranked
        return Answer(ranked, "", "", len(request.history))

    async def explain(
        self, request: Request, items: Sequence[ItemId], model: Recommender | None = None
    ) -> Explanation:
        """Return what each event of the history weighs for each of ``items``."""
        chosen = model or self.recommender
        ask = build_ask(request, request.history, chosen, 0)
        return await asyncio.to_thread(explain, chosen, ask.history, items, at=ask.at)

    def others(self) -> list[Shelved]:
        """Return the other runs on the shelf that know the same items."""
        if self.runs is None:
            return []
        ids, served = self.trained_ids, self.run.path.resolve()
        return [
            run
            for run in read_shelf(self.runs)
            if run.ready and run.path.resolve() != served and same_catalogue(run, ids)
        ]

    async def model(self, name: str) -> Recommender:
        """Load a run of the shelf, or return it when it was asked for lately."""
        assert self.runs is not None
        run = find_run(self.runs, name)
        changed = (run.path / "model.safetensors").stat().st_mtime_ns
        return await asyncio.to_thread(_load, run.path, changed)

    # -- users --

    def dataset(self) -> Dataset | None:
        """Return the data that the served run was trained on; None when they are not at hand."""
        data = self.run.card["data"]
        return _open(str(data["path"]), data["fingerprint"])

    async def users(self, prefix: str, limit: int = 8) -> list[KnownUser]:
        """Return users whose id begins with ``prefix``: those of the store first."""
        return await asyncio.to_thread(self._users, prefix, limit)

    def _users(self, prefix: str, limit: int) -> list[KnownUser]:
        users = self.service.store.users(prefix, limit)
        found = [KnownUser(user.user_id, True, user.events) for user in users]
        dataset = self.dataset()
        if dataset is not None and len(found) < limit:
            ids = dataset.users["user_id"]
            rows = ids.cast(pl.String).str.starts_with(prefix).arg_true().head(limit)
            stored = {user.user for user in found}
            for row in rows:
                events = int(dataset.offsets[row + 1] - dataset.offsets[row])
                if str(ids[row]) not in stored:
                    found.append(KnownUser(ids[row], False, events))
        return found[:limit]

    async def past(self, user: KnownUser) -> list[PastEvent]:
        """Return the last events of a user, oldest first."""
        return await asyncio.to_thread(self._past, user)

    def _past(self, user: KnownUser) -> list[PastEvent]:
        if user.stored:
            return [
                PastEvent(event.item_id, event.time // MICROSECONDS, event.session, recorded=True)
                for event in self.service.store.history(str(user.user), HISTORY)
            ]
        dataset = self.dataset()
        assert dataset is not None
        events = user_history(dataset, user.user)[-HISTORY:]
        if not isinstance(events[0], tuple):
            return [PastEvent(item) for item in events]
        unit = dataset.card["time_unit"]
        return [PastEvent(event[0], to_seconds(event[1], unit), *event[2:]) for event in events]

    async def version(self, user: KnownUser) -> Any:
        """Return what changes whenever the store holds other events of a user."""
        return await asyncio.to_thread(self.service.store.user, str(user.user))

    async def record(self, user: KnownUser, events: Sequence[PastEvent]) -> None:
        """Append events to the store; they are on the disk when this returns."""
        await self.service.append(
            [
                Event(
                    str(user.user),
                    str(event.item),
                    None if event.time is None else event.time * MICROSECONDS,
                    session=None if event.session is None else str(event.session),
                )
                for event in events
            ]
        )


@lru_cache(maxsize=4)
def _load(path: Path, changed: int) -> Recommender:
    return Recommender.load(path)


@lru_cache(maxsize=4)
def _open(path: str, fingerprint: str) -> Dataset | None:
    try:
        dataset = Dataset.open(path)
    except EnsuiteError:
        return None
    return dataset if dataset.fingerprint == fingerprint else None
