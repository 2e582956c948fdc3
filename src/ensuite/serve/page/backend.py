"""What the pages ask of the service, the event store, the datasets and the folder of runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from ensuite.data.dataset import SECONDS_PER_TICK, Dataset
from ensuite.errors import EnsuiteError
from ensuite.serve.explain import Explanation, explain
from ensuite.serve.page.shelf import Shelved, find_run, read_shelf, same_catalogue
from ensuite.serve.page.titles import TitleIndex
from ensuite.serve.recommendations import Ranked
from ensuite.serve.recommender import Recommender, user_history
from ensuite.serve.requests import Ask, BadRequest, ItemId, to_seconds
from ensuite.serve.store import Event, EventStore
from ensuite.training.run import read_card

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

    def __init__(self, recommender: Recommender, store: EventStore, run: Path, runs: Path | None):
        self.recommender, self.store, self.run, self.runs = recommender, store, run, runs
        self._index: tuple[Recommender, TitleIndex] | None = None

    # -- items --

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

    async def answer(self, ask: Ask, model: Recommender | None = None) -> Ranked:
        """Return the best items of the model that is served, or of ``model``."""
        (answer,) = await asyncio.to_thread((model or self.recommender).recommend_each, [ask])
        if isinstance(answer, BadRequest):
            raise answer
        return answer

    async def explain(
        self, ask: Ask, items: Sequence[ItemId], model: Recommender | None = None
    ) -> Explanation:
        """Return what each event of the history weighs for each of ``items``."""
        chosen = model or self.recommender
        return await asyncio.to_thread(explain, chosen, ask.history, items, at=ask.at)

    def others(self) -> list[Shelved]:
        """Return the other runs on the shelf that know the same items."""
        if self.runs is None:
            return []
        ids, served = self.recommender.item_ids, self.run.resolve()
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

    @cached_property
    def dataset(self) -> Dataset | None:
        """The data that the served run was trained on; None when they are not at hand."""
        try:
            card = read_card(self.run)
            dataset = Dataset.open(card["data"]["path"])
        except EnsuiteError:
            return None
        return dataset if dataset.fingerprint == card["data"]["fingerprint"] else None

    async def users(self, prefix: str, limit: int = 8) -> list[KnownUser]:
        """Return users whose id begins with ``prefix``: those of the store first."""
        return await asyncio.to_thread(self._users, prefix, limit)

    def _users(self, prefix: str, limit: int) -> list[KnownUser]:
        found = [KnownUser(user.user_id, True, user.events) for user in self.store.users(prefix, limit)]
        if self.dataset is not None and len(found) < limit:
            ids = self.dataset.users["user_id"]
            rows = ids.cast(pl.String).str.starts_with(prefix).arg_true().head(limit)
            stored = {user.user for user in found}
            for row in rows:
                events = int(self.dataset.offsets[row + 1] - self.dataset.offsets[row])
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
                for event in self.store.history(str(user.user), HISTORY)
            ]
        assert self.dataset is not None
        events = user_history(self.dataset, user.user)[-HISTORY:]
        if not isinstance(events[0], tuple):
            return [PastEvent(item) for item in events]
        unit = self.dataset.card["time_unit"]
        return [PastEvent(event[0], to_seconds(event[1], unit), *event[2:]) for event in events]

    async def version(self, user: KnownUser) -> Any:
        """Return what changes whenever the store holds other events of a user."""
        return await asyncio.to_thread(self.store.user, str(user.user))

    async def record(self, user: KnownUser, events: Sequence[PastEvent]) -> None:
        """Append events to the store; they are on the disk when this returns."""
        await asyncio.to_thread(
            self.store.append,
            [
                Event(
                    str(user.user),
                    str(event.item),
                    None if event.time is None else event.time * MICROSECONDS,
                    session=None if event.session is None else str(event.session),
                )
                for event in events
            ],
        )

    def history(self, events: Sequence[PastEvent], model: Recommender) -> list[Any]:
        """Return events as `Recommender.recommend` takes them. Events without a time get one, a minute apart
        and the last one now, when the model reads times."""
        if any(event.time is None for event in events):
            if not model.model.needs_times():
                return [event.item for event in events]
            now = int(time.time())
            events = [
                replace(event, time=now - 60 * (len(events) - 1 - number))
                for number, event in enumerate(events)
            ]
        ticks = round(1 / SECONDS_PER_TICK[model.time_unit])
        if all(event.session is not None for event in events):
            return [(event.item, (event.time or 0) * ticks, event.session) for event in events]
        return [(event.item, (event.time or 0) * ticks) for event in events]


@lru_cache(maxsize=4)
def _load(path: Path, changed: int) -> Recommender:
    return Recommender.load(path)
