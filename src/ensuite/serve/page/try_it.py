"""The page "Try it": a history on the left, what comes next on the right, and why."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, NamedTuple

from nicegui import ui

from ensuite.errors import EnsuiteError
from ensuite.serve.asking import Answer, Request
from ensuite.serve.explain import Explanation
from ensuite.serve.page.answers import AnswerList, Listed
from ensuite.serve.page.backend import Backend, KnownUser, PastEvent
from ensuite.serve.page.components import Tag, frame, refocus, toast
from ensuite.serve.page.past import PastPanel, count
from ensuite.serve.recommender import Recommender
from ensuite.serve.requests import ItemId, to_seconds
from ensuite.serve.store import StoreUnavailable

logger = logging.getLogger(__name__)

DEPTHS = (10, 20, 50)
LONGEST = 20_000
"""Characters that are read of a list of candidates."""
EXPLAINED = 50
"""Items that are explained of a list."""
EVERY = 1.0
"""Seconds between two looks at the store."""


class TryIt:
    """What one reader looks at: nothing of it is shared with another."""

    def __init__(
        self,
        backend: Backend,
        scopes: Callable[[], Awaitable[frozenset[str]]],
        scopes_now: frozenset[str],
        beside: str = "",
    ):
        self.backend, self.scopes = backend, scopes
        self.may_record = "write" in scopes_now
        self.events: list[PastEvent] = []
        self.user: KnownUser | None = None
        self.version: Any = None
        self.k, self.exclude = DEPTHS[0], backend.recommender.exclude
        self.candidates: str = ""
        self.at: int | None = None
        others = [run.name for run in backend.others()]
        self.beside = beside if beside in others else ""
        self.explained: dict[str, Explanation] = {}
        self.lists: dict[str, AnswerList] = {}
        self.pinned: tuple[str, ItemId] | None = None
        self.looked: tuple[str, ItemId] | None = None
        self.client = ui.context.client
        self._turn = 0
        self._served = backend.recommender
        with frame("/", "Try it", backend.run.name) as self.served, Tag("div", "try"):
            self.past = PastPanel(backend, self)
            with Tag("section", "panel next", aria_labelledby="next-title"):
                with Tag("div", "title"):
                    Tag("h2", "", "And then?", id="next-title")
                    self._options(others)
                self.said = Tag("p", "unseen", role="status")
                self.out = Tag("div", "out", aria_busy="false")
        self.past.show([], None, False)
        self._nothing()
        ui.timer(EVERY, self._watch)

    # -- what can be done to the history --

    async def add(self, item: ItemId) -> None:
        """Put an item at the end of the history."""
        session = self.events[-1].session if self.events else None
        self.events.append(PastEvent(item, self._now(), session))
        await self._changed()

    async def remove(self, number: int) -> None:
        """Take an event out; what is recorded stays in the store."""
        del self.events[number]
        await self._changed()

    async def move(self, number: int, to: int) -> None:
        """Put an item into the place of another, which moves up; the times stay where they are."""
        if number == to or not all(0 <= place < len(self.events) for place in (number, to)):
            return
        first, last = min(number, to), max(number, to)
        between = self.events[first : last + 1]
        items = [event.item for event in between]
        items.insert(to - first, items.pop(number - first))
        self.events[first : last + 1] = [
            replace(event, item=item, recorded=False) for event, item in zip(between, items)
        ]
        await self._changed()

    async def clear(self) -> None:
        """Begin again."""
        self.events, self.user, self.version = [], None, None
        await self._changed()

    async def example(self) -> None:
        """Show a history that the model itself finds likely: a walk along its own lists."""
        ids = self.backend.recommender.item_ids
        items = [random.choice(ids)]
        try:
            for depth in (50, 10, 10, 10, 10):
                room = max(1, min(depth, len(ids) - len(items)))
                request = self.backend.request([PastEvent(item) for item in items], room, "seen")
                items.append(random.choice((await self.backend.answer(request)).ranked.ids))
        except EnsuiteError as error:
            self._say(str(error))
            return
        self.events = [PastEvent(item) for item in items[1:]]
        await self._changed()

    async def choose(self, user: KnownUser) -> None:
        """Show a user's own history, and follow it from now on when it is in the store."""
        self.past.all_shown = False
        try:
            self.events = await self.backend.past(user)
            self.version = await self.backend.version(user)
        except EnsuiteError as error:
            self._say(str(error))
            return
        self.user = user
        await self._changed()

    async def record(self) -> None:
        """Append what is not recorded yet to the store, for the chosen user."""
        new = [event for event in self.events if not event.recorded]
        if self.user is None or not self.user.stored or not new:
            return
        if "write" not in await self.scopes():
            toast(self.client, "Nothing was recorded: the key may not write any more")
            return
        try:
            await self.backend.record(self.user, new)
        except EnsuiteError as error:
            toast(self.client, f"Nothing was recorded: {error}")
            return
        self.events = [replace(event, recorded=True) for event in self.events]
        toast(self.client, f"Recorded {count(len(new))} for user {self.user.user}")
        self._show_past()

    def _now(self) -> int | None:
        """Return the time of an event that is added: now in a live history, a minute after the last one in
        one that is over, none in one that has none."""
        if self.user is not None and self.user.stored:
            return int(time.time())
        last = self.events[-1].time if self.events else None
        return None if last is None else last + 60

    # -- what is asked, and shown --

    async def _changed(self) -> None:
        self._show_past()
        await self._ask()
        refocus(self.client)

    def _show_past(self) -> None:
        self.past.show(self.events, self.user, self.may_record)

    async def _ask(self) -> None:
        """Ask the models for the history as it is now; an answer that comes too late is dropped."""
        self._turn += 1
        turn = self._turn
        if not self.events:
            self._nothing()
            return
        self.out.set(aria_busy="true")
        try:
            request = self._request()
            models: list[Asked] = [Asked("a", self.backend.run.name, None)]
            if self.beside:
                models.append(Asked("b", self.beside, await self.backend.model(self.beside)))
            answers = {asked.side: await self.backend.answer(request, asked.model) for asked in models}
            if turn != self._turn:
                return
            self._show(models, answers)
            for side, _, model in models:
                if answers[side].fallback is not None:
                    continue  # no model to ask why
                found = await self.backend.explain(request, answers[side].ranked.ids[:EXPLAINED], model)
                if turn != self._turn:
                    return
                self.explained[side] = found
            self._weigh()
        except EnsuiteError as error:
            if turn == self._turn:
                self._say(str(error))
        except Exception:
            logger.exception("the page cannot show what comes next")
            if turn == self._turn:
                self._say("Something went wrong; the service's log says what.")
        finally:
            if turn == self._turn:
                self.out.set(aria_busy="false")

    def _request(self) -> Request:
        model, k = self.backend.recommender, self.k
        seen = {str(event.item) for event in self.events} if self.exclude == "seen" else set()
        among = [word for word in self.candidates.replace(",", " ").split() if word] or None
        if among is None:
            k = min(k, len(model.item_ids) - sum(map(model.knows, seen)))
        else:
            k = min(k, len({item for item in among if model.knows(item)} - seen))
        return self.backend.request(self.events, max(1, k), self.exclude, among, self.at)

    def _show(self, models: list[Asked], answers: dict[str, Answer]) -> None:
        self.explained, self.lists, self.pinned, self.looked = {}, {}, None, None
        self.out.clear()
        with self.out, Tag("div", "lists two" if len(models) > 1 else "lists"):
            for side, name, _ in models:
                other = next((answers[s].ranked.ids for s in answers if s != side), None)
                listed = Listed(side, name, answers[side].ranked, other)
                self.lists[side] = AnswerList(listed, self.look, self.pin, self.add)
            if answers["a"].fallback is not None:
                why = f"These are the most popular items, not the model's answer: {answers['a'].fallback}."
                with self.out:
                    Tag("p", "aside", why)
        unknown = answers["a"].ranked.unknown
        if unknown:
            shown = ", ".join(map(str, unknown[:5])) + (", …" if len(unknown) > 5 else "")
            with self.out:
                Tag("p", "aside", f"Read without {len(unknown)} unknown to the model: {shown}")
        ids = answers["a"].ranked.ids
        self.said.text = f"{len(ids)} answers, the first is {self.backend.title(ids[0])}"
        self.looked = ("a", ids[0])
        self._weigh()

    def _nothing(self) -> None:
        self.explained, self.lists, self.pinned, self.looked = {}, {}, None, None
        self.out.clear()
        with self.out, Tag("div", "empty"):
            Tag("p", "big", "What comes next stands here.")
            Tag(
                "p",
                "",
                "Every change of the history is answered at once. Point at an answer to see which events "
                "speak for it.",
            )

    def _say(self, text: str) -> None:
        """Say in plain words why there is no list."""
        self.explained, self.lists = {}, {}
        self.past.weigh(None)
        self.out.clear()
        with self.out, Tag("div", "notice", role="alert"):
            Tag("p", "big", "No list for this one.")
            Tag("p", "", text)

    # -- why --

    def look(self, side: str, item: ItemId) -> None:
        """Show the weights of the row that is pointed at, unless one is pinned."""
        if self.pinned is None:
            self.looked = (side, item)
            self._weigh()

    def pin(self, side: str, item: ItemId) -> None:
        """Keep the weights of a row, or let go of it."""
        self.pinned = None if self.pinned == (side, item) else (side, item)
        self.looked = (side, item)
        self._weigh()

    def _weigh(self) -> None:
        looked = self.pinned or self.looked
        for shown in self.lists.values():
            shown.mark(looked[1] if looked else None, self.pinned is not None)
        found = self.explained.get(looked[0]) if looked else None
        if looked is None or found is None or looked[1] not in found.items:
            self.past.weigh(None)
        else:
            self.past.weigh(found.of(looked[1]))

    # -- options --

    def _options(self, others: list[str]) -> None:
        with Tag("div", "options"):
            with Tag("label", "field"):
                Tag("span", "", "Show")
                with Tag("select", "", id="depth") as depth:
                    for k in DEPTHS:
                        Tag("option", "", str(k), value=str(k))
            with Tag("label", "field"):
                Tag("span", "", "Beside")
                with Tag("select", "", id="beside") as other:
                    Tag("option", "", "no other model", value="")
                    for name in others:
                        Tag("option", "", name, value=name, selected=name == self.beside)
            with Tag("details", "more"):
                Tag("summary", "", "Options")
                with Tag("div", "drawer"):
                    with Tag("label", "check"):
                        seen = Tag("input", "", id="seen", type="checkbox", checked=self.exclude == "seen")
                        Tag("span", "", "Leave out what is in the history")
                    with Tag("label", "field stacked"):
                        Tag("span", "", "Choose among these ids only")
                        among = Tag(
                            "input", "", id="among", type="text", placeholder="all items", autocomplete="off"
                        )
                    if self.backend.recommender.model.reads_request_time():
                        with Tag("label", "field stacked"):
                            Tag("span", "", "As if asked at (UTC)")
                            at = Tag("input", "", id="at", type="datetime-local")
                        at.on(
                            "change",
                            lambda e: self._option(at=_moment(e.args)),
                            js_handler="(e) => emit(e.target.value)",
                        )
        value = "(e) => emit(e.target.value)"
        depth.on("change", lambda e: self._option(k=min(int(e.args), DEPTHS[-1])), js_handler=value)
        other.on("change", lambda e: self._option(beside=e.args), js_handler=value)
        among.on("change", lambda e: self._option(candidates=str(e.args)[:LONGEST]), js_handler=value)
        seen.on(
            "change",
            lambda e: self._option(exclude="seen" if e.args else "none"),
            js_handler="(e) => emit(e.target.checked)",
        )

    async def _option(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        await self._ask()

    # -- what happens elsewhere --

    async def _watch(self) -> None:
        """Look whether the store holds new events of the user, or another model is served."""
        if self.backend.recommender is not self._served:
            self._served = self.backend.recommender
            self.served.text = self.backend.run.name
            await self._ask()
        user = self.user
        if user is None or not user.stored:
            return
        try:
            version = await self.backend.version(user)
            if version == self.version or self.user is not user:
                return
            past = await self.backend.past(user)
        except StoreUnavailable:
            return  # it is looked for again in a second
        self.version = version
        held = [event for event in self.events if event.recorded]
        drafts = [event for event in self.events if not event.recorded]
        known = [(event.item, event.time) for event in held]
        fresh = [event for event in past if (event.item, event.time) not in known]
        if not fresh and len(past) == len(held):
            return
        self.events = [replace(event, fresh=event in fresh) for event in past] + drafts
        if fresh:
            toast(self.client, f"New: {self.backend.title(fresh[-1].item)}")
        await self._changed()


class Asked(NamedTuple):
    """A model that is asked: the one that serves (``model`` is None), or another."""

    side: str
    name: str
    model: Recommender | None


def _moment(text: str) -> int | None:
    """Return a browser's date and time, which is read as UTC, in seconds; None where the field is empty."""
    return to_seconds(text, "s") if text else None
