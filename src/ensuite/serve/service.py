"""The service: a model, an event store, and what is done when either of them fails. No HTTP in here."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from ensuite.errors import EnsuiteError
from ensuite.serve import new_items
from ensuite.serve.asking import Answer, NoAnswer, Reason, Request, build_ask, merge_events, unread
from ensuite.serve.batching import Batcher
from ensuite.serve.fallback import Fallback, build_fallback
from ensuite.serve.metrics import Metrics
from ensuite.serve.new_items import NewItems
from ensuite.serve.recommendations import Ranked
from ensuite.serve.recommender import BATCH, Recommender
from ensuite.serve.requests import BadRequest, NothingKnown
from ensuite.serve.store import (
    Appended,
    Event,
    EventStore,
    Happened,
    Item,
    StoredEvent,
    StoreUnavailable,
    User,
)
from ensuite.training.run import Run, load_run

T = TypeVar("T")
logger = logging.getLogger(__name__)

OVERLAP = 0.5
"""Share of the served items that a new model must know: less is the model of another catalogue."""
STORE_TIMEOUT = 10.0
"""Seconds after which a store that does not answer is taken as away: a frozen database says nothing."""
USERS_READ = 64
"""Users whose events are read from the store in one query."""


@dataclass(frozen=True)
class Loaded:
    """A model that serves, with what belongs to it; replaced whole."""

    run: Run
    base: Recommender
    """As it was trained."""
    recommender: Recommender
    """With the items that were put since."""
    new_items: NewItems
    fallback: Fallback
    version: str
    """The first digits of the SHA-256 of the weights."""
    weights: tuple[int, int]
    """`weights_of` the run when they were read."""
    since: float = field(default_factory=time.time)
    """When it began to serve, seconds since 1970."""


@dataclass(frozen=True)
class _Question:
    request: Request
    stored: Sequence[Happened]
    now: int
    ignored: list[str]


class _ModelFailed(Exception):
    """The model raised something; the log says what."""


class Service:
    """Answers requests from stored and given events; the same calls serve HTTP, the page and tests.

    Everything that waits is a coroutine, to be called in one event loop; model and store work in threads.

    Parameters
    ----------
    run
        The run folder whose model serves first.
    store
        Where events, new items and keys are kept; not closed by this object.
    load
        Makes a recommender of a run: with another engine, say.
    fallback
        A popularity run whose items answer when the model cannot; None: see `build_fallback`.
    history
        How many of a user's last events are read from the store. Models read fewer; `exclude: "seen"` reads
        them all.
    timeout
        Seconds after which a request is answered from the fallback list.

    Raises
    ------
    EnsuiteError
        When the run cannot be loaded or the store cannot be reached.
    """

    def __init__(
        self,
        run: Path,
        store: EventStore,
        *,
        load: Callable[[Run], Recommender] = Recommender.of,
        fallback: Path | None = None,
        history: int = 1000,
        timeout: float = 1.0,
    ):
        self.store = store
        self.metrics = Metrics()
        self.timeout = timeout
        self._load_recommender = load
        self._fallback = fallback
        self._history = history
        self._items = store.items()
        self._items_version = store.items_version()
        self._changing = asyncio.Lock()
        self._loaded = self._load(run)
        self._announce()
        self._model = Batcher(self._answer, BATCH, "ensuite-model", self.metrics.batch.observe)
        self._events = Batcher(self._read_events, USERS_READ, "ensuite-events")

    @property
    def loaded(self) -> Loaded:
        """The model that serves now."""
        return self._loaded

    @property
    def recommender(self) -> Recommender:
        """The recommender that serves now."""
        return self._loaded.recommender

    def close(self) -> None:
        """Let go of the threads."""
        self._model.close()
        self._events.close()

    # -- recommending ------------------------------------------------------------------------------

    async def recommend(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests side by side, in batches with those of other callers.

        Raises
        ------
        BadRequest
            When one of them cannot be met as it stands; see `recommend_one`.
        NoAnswer
            When the model cannot answer one that wants no fallback list.
        """
        return list(await asyncio.gather(*(self.recommend_one(request) for request in requests)))

    async def recommend_one(self, request: Request) -> Answer:
        """Answer a request; the errors are those of `recommend`."""
        stored: list[Happened] = []
        try:
            async with asyncio.timeout(self.timeout):
                ignored = []
                if request.user_id is not None:
                    try:
                        stored = await self._events.ask(request.user_id)
                    except StoreUnavailable:
                        self.metrics.store_errors.labels("histories").inc()
                        if not request.history:
                            return self._fall_back(request, stored, "store unavailable")
                        ignored = ["user_id"]
                if request.at is not None:
                    stored = [event for event in stored if event.time < request.at]
                if not stored and not request.history:
                    return self._fall_back(request, stored, "unknown user")
                question = _Question(request, stored, time.time_ns() // 1000, ignored)
                answer = await self._model.ask(question)
        except TimeoutError:
            return self._fall_back(request, stored, "timeout")
        if isinstance(answer, NothingKnown):
            return self._fall_back(request, stored, "unknown items")
        if isinstance(answer, _ModelFailed):
            return self._fall_back(request, stored, "model failed")
        if isinstance(answer, BadRequest):
            raise answer
        self.metrics.recommendations.inc()
        self.metrics.unknown_items.inc(len(answer.ranked.unknown))
        return answer

    def _read_events(self, users: list[str]) -> list[list[Happened]]:
        histories = self.store.histories(list(dict.fromkeys(users)), self._history)
        return [histories[user] for user in users]

    def _answer(self, questions: list[_Question]) -> list[Answer | BadRequest | _ModelFailed]:
        """Answer a batch in the model's thread; when it fails as a whole, each question alone."""
        try:
            return self._answer_together(questions)
        except Exception:
            if len(questions) == 1:
                logger.exception("the model failed")
                return [_ModelFailed()]
        return [self._answer([question])[0] for question in questions]

    def _answer_together(self, questions: list[_Question]) -> list[Answer | BadRequest | _ModelFailed]:
        loaded = self._loaded  # one model for the whole batch, whatever is swapped in meanwhile
        recommender = loaded.recommender
        answers: list[Answer | BadRequest | _ModelFailed] = [_ModelFailed()] * len(questions)
        asked, lengths = {}, {}
        for number, question in enumerate(questions):
            request = question.request
            try:
                events = merge_events(question.stored, request.history)
                asked[number] = build_ask(request, events, recommender, question.now)
                lengths[number] = len(events)
            except BadRequest as error:
                answers[number] = error
        for number, ranked in zip(asked, recommender.recommend_each(list(asked.values()))):
            if isinstance(ranked, BadRequest):
                answers[number] = ranked
                continue
            question = questions[number]
            ignored = [*question.ignored, *unread(question.request, recommender)]
            answers[number] = Answer(
                ranked, loaded.run.name, loaded.version, lengths[number], ignored=ignored
            )
        return answers

    def _fall_back(self, request: Request, stored: Sequence[Happened], reason: Reason) -> Answer:
        self.metrics.fallbacks.labels(reason).inc()
        if not request.fallback:
            raise NoAnswer(reason)
        loaded = self._loaded
        events = merge_events(stored, request.history)
        exclude = loaded.recommender.exclude if request.exclude is None else request.exclude
        if exclude == "seen":
            excluded = {str(event.item_id) for event in events}
        else:
            excluded = set() if exclude == "none" else set(map(str, exclude))
        ranked = loaded.fallback.best(request.k, excluded, request.candidates, loaded.recommender)
        unknown = [event.item_id for event in events if not loaded.recommender.knows(event.item_id)]
        ignored = unread(request, loaded.recommender)
        return Answer(
            replace(ranked, unknown=unknown), loaded.run.name, loaded.version, len(events), reason, ignored
        )

    async def similar(self, item_id: str, k: int) -> Ranked:
        """Return the k items whose vectors are most like that of an item.

        Raises
        ------
        EnsuiteError
            When the model has no item vectors; `BadRequest` when the item is unknown or k is too large.
        """
        recommender = self.recommender
        return (await asyncio.to_thread(recommender.similar, item_id, k))[0]

    # -- events and users --------------------------------------------------------------------------

    async def append(self, events: Sequence[Event]) -> Appended:
        """Store events; they are on the disk when this returns, and the next recommendation reads them.

        Raises
        ------
        EnsuiteError
            When an event_id belongs to another event; `StoreUnavailable` when nothing could be stored.
        """
        done = await self._stored("append", lambda: self.store.append(events))
        self.metrics.events.labels("new").inc(done.new)
        self.metrics.events.labels("repeated").inc(done.repeated)
        return done

    async def user(self, user_id: str, limit: int = 20) -> tuple[User, list[StoredEvent]] | None:
        """Return what the store knows of a user, and their last events, oldest first; None: nothing."""

        def read() -> tuple[User, list[StoredEvent]] | None:
            user = self.store.user(user_id)
            return None if user is None else (user, self.store.history(user_id, limit))

        return await self._stored("user", read)

    async def delete_user(self, user_id: str) -> int:
        """Delete all events of a user; returns how many there were."""
        return await self._stored("delete_user", lambda: self.store.delete_user(user_id))

    async def ping(self) -> bool:
        """Whether the store answers."""
        try:
            await self._stored("ping", self.store.ping)
        except StoreUnavailable:
            return False
        return True

    async def _stored(self, operation: str, call: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(STORE_TIMEOUT):
                return await asyncio.to_thread(call)
        except StoreUnavailable:
            self.metrics.store_errors.labels(operation).inc()
            raise
        except TimeoutError:  # the thread goes on waiting; what it was to store may yet be stored
            self.metrics.store_errors.labels(operation).inc()
            raise StoreUnavailable(
                f"the store has not answered for {STORE_TIMEOUT:g} seconds: send it again"
            ) from None

    # -- items and models --------------------------------------------------------------------------

    async def put_items(self, items: Sequence[Item]) -> NewItems:
        """Store new items, or new titles of known ones, and use them at once.

        Raises
        ------
        EnsuiteError
            When the model takes no new items; `BadRequest` when one of them is like nothing that it knows.
            Nothing is stored then.
        """
        async with self._changing:
            await asyncio.to_thread(new_items.check, self._loaded.base, items)
            await self._stored("put_items", lambda: self.store.put_items(items))
            await self._take_items()
        return self._loaded.new_items

    async def refresh_items(self) -> None:
        """Take the items that other processes have put into the store since."""
        if await self._stored("items", self.store.items_version) != self._items_version:
            async with self._changing:
                await self._take_items()

    async def swap(self, path: Path) -> Loaded:
        """Put the model of another run in the place of the one that serves; requests under way end on the
        old one.

        Raises
        ------
        EnsuiteError
            When the run is damaged, is none of ensuite, knows too few of the items that are served, or its
            model fails; the old model keeps serving.
        """
        async with self._changing:
            try:
                loaded = await asyncio.to_thread(self._load, path)
                _check_overlap(self._loaded, loaded)
            except Exception as error:  # a foreign model may raise anything
                self.metrics.swaps.labels("refused").inc()
                logger.warning("refused as the model to serve: %s", error)
                if isinstance(error, EnsuiteError):
                    raise
                raise EnsuiteError(f"{path}: cannot be loaded: {error}") from error
            self._loaded = loaded
            self.metrics.swaps.labels("done").inc()
            self._announce()
            logger.info("serving %s, version %s", loaded.run.path, loaded.version)
        return loaded

    async def _take_items(self) -> None:
        def read() -> tuple[int, list[Item]]:
            return self.store.items_version(), self.store.items()

        self._items_version, self._items = await self._stored("items", read)
        base = self._loaded.base
        recommender, taken = await asyncio.to_thread(new_items.take, base, self._items)
        self._loaded = replace(self._loaded, recommender=recommender, new_items=taken)
        self._announce()

    def _load(self, path: Path) -> Loaded:
        weights = weights_of(path) or (0, 0)
        run = load_run(path)
        base = self._load_recommender(run)
        _try(run, base)
        recommender, taken = new_items.take(base, self._items)
        if taken.dropped:
            shown = ", ".join(taken.dropped[:5])
            logger.warning("%s cannot take %d of the new items: %s", path, len(taken.dropped), shown)
        version = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()[:12]
        fallback = build_fallback(run, self._fallback)
        return Loaded(run, base, recommender, taken, fallback, version, weights)

    def _announce(self) -> None:
        loaded, metrics = self._loaded, self.metrics
        metrics.model.clear()
        metrics.model.labels(loaded.run.name, loaded.run.config.name, loaded.version).set(1)
        metrics.new_items.labels("added").set(loaded.new_items.added)
        metrics.new_items.labels("dropped").set(len(loaded.new_items.dropped))


def weights_of(path: Path) -> tuple[int, int] | None:
    """Return what changes when a run's weights are written anew: time (ns) and size of the file."""
    try:
        stat = (path / "model.safetensors").stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


def _check_overlap(old: Loaded, new: Loaded) -> None:
    served = old.base.item_ids
    known = sum(map(new.base.knows, served))
    if known < OVERLAP * len(served):
        raise EnsuiteError(
            f"{new.run.path}: the model of another catalogue: it knows {known:,} of the {len(served):,} "
            "items that are served; start a service of its own with it"
        )


def _try(run: Run, recommender: Recommender) -> None:
    """Ask a model once before users do: what only shows when it computes shows here."""
    item = recommender.item_ids[0]
    try:
        recommender.recommend([(item, 0) if recommender.model.needs_times() else item], k=1, exclude="none")
    except Exception as error:
        raise EnsuiteError(f"{run.path}: the model fails when it is asked: {error}") from error
