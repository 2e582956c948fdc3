"""What a request may look like: histories of one user or many, with times or without."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from operator import itemgetter
from typing import Any, Literal

from ensuite.data.dataset import SECONDS_PER_TICK
from ensuite.errors import EnsuiteError

ItemId = Any
"""The user's own key of an item: whatever stands in the log, a number or a text."""
PLAIN = {int, str, tuple}
"""Types of most events: a history of nothing else is not looked at event by event."""
When = dt.datetime | dt.date | str | float
"""A moment: datetime (without a zone: UTC), ISO text, or a number in the dataset's unit since 1970."""


class BadRequest(EnsuiteError):
    """A request that cannot be met as it stands; ``field`` names the part of it that is wrong."""

    def __init__(self, message: str, field: str):
        super().__init__(message)
        self.field = field


class NothingKnown(BadRequest):
    """A history of which the model knows no item."""


@dataclass(frozen=True)
class Ask:
    """What is asked for one history; the fields are those of `Recommender.recommend`."""

    history: Sequence[Any]
    k: int = 10
    exclude: Literal["seen", "none"] | Sequence[ItemId] | None = None
    candidates: Sequence[ItemId] | None = None
    at: When | None = None
    name: str = "the history"
    """What messages call the history."""
    preference: str | None = None


def read_histories(history: Iterable[Any]) -> tuple[list[list[Any]], bool]:
    """Return the histories as lists of events, and whether many were given.

    A list of lists is many histories; anything else is one. Events are item ids, or tuples (item id, time) or
    (item id, time, session).

    >>> read_histories([1, 2])
    ([[1, 2]], False)
    >>> read_histories([[("a", 10), ("b", 20)], [("c", 5)]])
    ([[('a', 10), ('b', 20)], [('c', 5)]], True)
    """
    if isinstance(history, str | bytes) or not isinstance(history, Iterable):
        raise EnsuiteError(f"a history is a list of item ids, oldest first; got {history!r}")
    events = list(history)
    if not PLAIN.issuperset(map(type, events)):
        events = [list(event) if _is_list(event) else event for event in events]
    kinds = set(map(type, events))
    many = list in kinds
    if many and len(kinds) > 1:
        raise EnsuiteError(
            "a history holds item ids or (item id, time) tuples, many histories are a list of lists; "
            "these are mixed"
        )
    histories = events if many else [events]
    for number, one in enumerate(histories, 1):
        if not one:
            raise EnsuiteError(f"{name_of(number, many)} is empty: at least one item is needed")
    return histories, many


def _is_list(event: Any) -> bool:
    """Whether an element is a history itself: a list, or an array or Series (which have both of these
    methods)."""
    return isinstance(event, list) or (
        hasattr(event, "tolist") and getattr(event, "ndim", 1) > 0 and hasattr(event, "__len__")
    )


def split_times(
    events: list[Any], unit: str, name: str
) -> tuple[list[ItemId], list[int] | None, list[Any] | None]:
    """Separate item ids, times (whole seconds) and sessions, and put the events in order of time, equal times
    as they stood."""
    if not any(issubclass(kind, tuple) for kind in set(map(type, events))):
        return events, None, None
    pairs = [event for event in events if isinstance(event, tuple)]
    if len(pairs) < len(events):
        raise BadRequest(
            f"{name}: {len(pairs)} of {len(events)} events have a time; give all of them one, or none",
            "history",
        )
    for pair in pairs:
        if len(pair) not in (2, 3) or len(pair) != len(pairs[0]):
            raise EnsuiteError(
                f"{name}: {pair!r}: an event is an item id, or a tuple (item id, time), or (item id, time, "
                "session), all of one kind"
            )
    timed = sorted([(to_seconds(pair[1], unit), pair) for pair in pairs], key=itemgetter(0))
    sessions = [pair[2] for _, pair in timed] if len(pairs[0]) == 3 else None
    return [pair[0] for _, pair in timed], [seconds for seconds, _ in timed], sessions


def to_seconds(when: When, unit: str) -> int:
    """Return a moment as whole seconds since 1970.

    >>> to_seconds("1970-01-02", "s"), to_seconds(86_400_000, "ms"), to_seconds("86400", "s")
    (86400, 86400, 86400)
    """
    if type(when) is int:  # nearly always
        return when // round(1 / SECONDS_PER_TICK[unit])
    if isinstance(when, str):
        try:
            when = float(when) if _is_number(when) else dt.datetime.fromisoformat(when.strip())
        except ValueError:
            raise EnsuiteError(
                f"time '{when}': give ISO text like 2024-05-01T12:30, or a number of {unit} since 1970"
            ) from None
    if isinstance(when, dt.datetime):
        return int((when if when.tzinfo else when.replace(tzinfo=dt.UTC)).timestamp() // 1)
    if isinstance(when, dt.date):
        return to_seconds(dt.datetime(when.year, when.month, when.day), unit)
    if isinstance(when, bool) or not (isinstance(when, Real) or hasattr(when, "__int__")) or when != when:
        raise EnsuiteError(f"time {when!r}: give a datetime, ISO text, or a number of {unit} since 1970")
    return int(when) // round(1 / SECONDS_PER_TICK[unit])


def _is_number(text: str) -> bool:
    return text.strip().lstrip("+-").replace(".", "", 1).isdigit()


def name_of(number: int, many: bool) -> str:
    """Name a history in an error message: there may be only one."""
    return f"history {number}" if many else "the history"
