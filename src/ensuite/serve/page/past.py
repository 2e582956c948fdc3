"""The left half of "Try it": a history, the newest event on top, that is built, put in order and recorded."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from nicegui.events import SortableEventArguments

from ensuite.serve.page.backend import Backend, KnownUser, PastEvent
from ensuite.serve.page.components import Option, SearchBox, SortableTag, Tag, button, icon_button

SHOWN = 40
"""Events that are shown of a long history until all are asked for."""
ON_DRAG = {"filter": "button", "preventOnFilter": False, "delay": 200, "delayOnTouchOnly": True}
"""Buttons of a row stay buttons, and a finger that does not rest scrolls."""
WHERE = {True: "in the store", False: "dataset"}


class Acts(Protocol):
    """What can be done to the history; each builds the page anew where it must."""

    async def add(self, item: object) -> None: ...
    async def remove(self, number: int) -> None: ...
    async def move(self, number: int, to: int) -> None: ...
    async def clear(self) -> None: ...
    async def example(self) -> None: ...
    async def choose(self, user: KnownUser) -> None: ...
    async def record(self) -> None: ...


class PastPanel:
    """Shows a history and offers what can be done to it."""

    def __init__(self, backend: Backend, acts: Acts):
        self.backend, self.acts = backend, acts
        self.all_shown = False
        self._newest = -1
        self._rows: dict[int, tuple[Tag, Tag, Tag]] = {}
        with Tag("section", "panel past", aria_labelledby="past-title"):
            with Tag("div", "title"):
                Tag("h2", "", "So far", id="past-title")
                self.whose = Tag("span", "whose")
            SearchBox(
                "items", "Search items by title or id", "Search a title or an id", self._items, acts.add
            )
            SearchBox("users", "Pick a user", "… or pick a user", self._users, acts.choose)
            self.nothing, self.tools = Tag("div", "empty"), Tag("div", "tools")
            # It stays when its rows are built anew, and so does the place one has scrolled to.
            self.list = SortableTag("ol", "events", aria_label="The history, the newest first", reversed=True)
            self.list.make_sortable(ON_DRAG, on_end=self._dropped)
            self.more = Tag("div")

    def show(self, events: Sequence[PastEvent], user: KnownUser | None, offered: bool) -> None:
        """Build the list anew; ``offered``: whether events may be recorded for the user."""
        self.whose.clear()
        with self.whose:
            if user is not None:
                Tag("span", "pill live" if user.stored else "pill", f"user {user.user}")
        self._rows, self._newest = {}, len(events) - 1
        for part in (self.nothing, self.tools, self.list, self.more):
            part.clear()
        self.nothing.set(hidden=bool(events))
        for part in (self.tools, self.list):
            part.set(hidden=not events)
        if not events:
            with self.nothing:
                self._empty(user)
            return
        with self.tools:
            self._tools(events, user, offered)
        first = 0 if self.all_shown else max(0, len(events) - SHOWN)
        with self.list:
            for number in reversed(range(first, len(events))):
                self._row(number, events)
        if first:
            with self.more:
                button(
                    f"Show all {len(events)}",
                    lambda: self._all(events, user, offered),
                    "quiet wide",
                    id="all",
                )

    def weigh(self, weights: Sequence[float] | None) -> None:
        """Show what each event weighs for the recommendation that is looked at; None: nothing is."""
        known = [abs(w) for w in weights or [] if not math.isnan(w)]
        most = max(known, default=0.0)
        for number, (row, bar, value) in self._rows.items():
            weight = weights[number] if weights is not None and number < len(weights) else 0.0
            if weights is None or (not math.isnan(weight) and (most == 0 or abs(weight) < 5e-3 * most)):
                row.classes(remove="for against")
                bar.style(replace="--part: 0")
                value.text = ""
                row.set(aria_description=None if weights is None else "weighs nothing for the selected item")
                continue
            share = 1.0 if math.isnan(weight) else abs(weight) / most
            against = weight < 0
            row.classes(add="against" if against else "for", remove="for" if against else "against")
            bar.style(replace=f"--part: {share:.3f}")
            value.text = "all" if math.isnan(weight) else signed(weight, most)
            row.set(aria_description=f"weight {value.text} for the selected item")

    def _empty(self, user: KnownUser | None) -> None:
        if user is None:
            Tag("p", "big", "Whose story is it?")
            Tag("p", "", "Search a few titles above, pick a user, or look at an example.")
            button("Show me an example", self.acts.example, "primary", id="example")
        else:
            Tag("p", "big", f"User {user.user} has no events yet.")
            Tag("p", "", "Search a title above to add one. What arrives over HTTP appears here by itself.")

    def _tools(self, events: Sequence[PastEvent], user: KnownUser | None, offered: bool) -> None:
        new = sum(not event.recorded for event in events)
        live = user is not None and user.stored
        Tag("span", "count", count(len(events)) + (f", {new:,} not recorded" if live and new else ""))
        if user is not None and live and offered and new:
            to = f"Append to the store, as events of user {user.user}"
            button(f"Record {count(new)}", self.acts.record, "quiet", id="record", title=to)
        button("Clear", self.acts.clear, "quiet", id="clear")

    def _row(self, number: int, events: Sequence[PastEvent]) -> None:
        event = events[number]
        title = self.backend.title(event.item)
        known = self.backend.recommender.knows(event.item)
        kind = (
            ("" if event.recorded else " draft")
            + (" fresh" if event.fresh else "")
            + ("" if known else " unknown")
        )
        with Tag("li", f"event{kind}", data_item=str(event.item), value=number + 1) as row:
            with Tag("div", "what"):
                Tag("span", "name", title)
                Tag("span", "hint", self._hint(event, known))
                bar = Tag("span", "weight", aria_hidden="true")
            value = Tag("span", "value")
            with Tag("div", "moves"):
                for sign, way, step in (("up", "later", 1), ("down", "earlier", -1)):
                    icon_button(
                        sign,
                        f"Move {title} {way}",
                        partial(self.acts.move, number, number + step),
                        id=f"{way}-{number}",
                        disabled=not 0 <= number + step < len(events),
                    )
                remove = partial(self.acts.remove, number)
                icon_button("remove", f"Remove {title}", remove, id=f"remove-{number}")
        self._rows[number] = row, bar, value

    async def _dropped(self, event: SortableEventArguments) -> None:
        await self.acts.move(self._newest - event.old_index, self._newest - event.new_index)

    def _hint(self, event: PastEvent, known: bool) -> str:
        parts = [str(event.item)] if self.backend.recommender.titles is not None else []
        if event.time is not None:
            parts.append(say_date(event.time))
        if not known:
            parts.append("unknown to the model")
        return " · ".join(parts)

    def _all(self, events: Sequence[PastEvent], user: KnownUser | None, offered: bool) -> None:
        self.all_shown = True
        self.show(events, user, offered)

    async def _items(self, text: str) -> list[Option]:
        titled = self.backend.recommender.titles is not None
        return [
            Option(found.title, str(found.item) if titled else "", found.item)
            for found in self.backend.index().find(text)
        ]

    async def _users(self, text: str) -> list[Option]:
        text = text.strip()
        found = await self.backend.users(text)
        options = [
            Option(str(user.user), f"{count(user.events)}, {WHERE[user.stored]}", user) for user in found
        ]
        if text and text not in [option.text for option in options]:
            options.append(Option(text, "new user", KnownUser(text, True, 0)))
        return options


def count(events: int) -> str:
    """Write a number of events.

    >>> count(1), count(1234)
    ('1 event', '1,234 events')
    """
    return f"{events:,} event{'s' * (events != 1)}"


def say_date(seconds: int) -> str:
    """Write a moment as a day, or as a time of today.

    >>> say_date(0)
    '1970-01-01'
    """
    try:
        when = dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return "far away in time"
    return f"{when:%H:%M:%S} UTC" if when.date() == dt.datetime.now(dt.UTC).date() else f"{when:%Y-%m-%d}"


def signed(value: float, most: float) -> str:
    """Write a weight with its sign, and as many decimals as tell two digits of the greatest one.

    >>> signed(0.5, 0.5), signed(-0.009, 0.08), signed(3.2, 120.0)
    ('+0.50', '−0.009', '+3')
    """
    digits = 2 if not most else max(0, min(6, 1 - math.floor(math.log10(most))))
    return f"{'−' if value < 0 else '+'}{abs(value):.{digits}f}"
