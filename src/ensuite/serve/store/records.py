"""What goes into the store and comes out of it, and what is refused at its door."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ensuite.errors import EnsuiteError

MAX_LENGTH = 512
"""Characters of an id, a kind or a session: at most 2,048 bytes, which an index entry of PostgreSQL (2,704
bytes) holds beside a time."""


@dataclass(frozen=True)
class Event:
    """Something that happened: a user met an item."""

    user_id: str
    item_id: str
    time: int | None = None
    """Microseconds since 1970, UTC; None: the moment it is stored."""
    event_id: str | None = None
    """The sender's own name of the event, unique in the whole store: sent again, it is not stored again."""
    kind: str | None = None
    """What the user did: "view", "buy", ..."""
    session: str | None = None
    context: dict[str, Any] | None = None
    """Anything else, as JSON."""


@dataclass(frozen=True)
class StoredEvent(Event):
    """An event as it stands in the store."""

    time: int
    arrival: int = field(kw_only=True)
    """The store's own ascending number: the order among equal times."""


class Happened(NamedTuple):
    """What models read of a stored event."""

    item_id: str
    time: int
    """Microseconds since 1970, UTC."""
    session: str | None


@dataclass(frozen=True)
class Appended:
    """How many events of a batch were new, and how many were there already."""

    new: int
    repeated: int


@dataclass(frozen=True)
class User:
    """What the store knows of a user."""

    user_id: str
    events: int
    first: int
    """Time of the first event, microseconds since 1970, UTC."""
    last: int


@dataclass(frozen=True)
class Info:
    """How many events and users there are, and from when to when."""

    events: int
    users: int
    first: int | None
    """Microseconds since 1970, UTC; None: there are no events."""
    last: int | None


@dataclass(frozen=True)
class Item:
    """An item added while serving."""

    item_id: str
    title: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    like: list[str] = field(default_factory=list)
    """Known items that it resembles."""


@dataclass(frozen=True)
class Key:
    """An API key, without its secret, which is not kept."""

    name: str
    scopes: frozenset[str]
    created: int
    """Microseconds since 1970, UTC."""
    revoked: int | None = None
    """When it was revoked; None: it is valid."""


def check_text(value: Any, what: str) -> str:
    """Return an id or other short text as it is; ``what`` begins the message when it cannot be kept.

    >>> check_text("", "user_id")
    Traceback (most recent call last):
        ...
    ensuite.errors.EnsuiteError: user_id: empty
    """
    if not isinstance(value, str):
        raise EnsuiteError(f"{what}: a text is needed, this is a {type(value).__name__}")
    if not value:
        raise EnsuiteError(f"{what}: empty")
    if len(value) > MAX_LENGTH:
        raise EnsuiteError(f"{what}: {len(value):,} characters, at most {MAX_LENGTH} are kept")
    if "\0" in value:
        raise EnsuiteError(f"{what}: holds the character NUL, which PostgreSQL cannot keep")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise EnsuiteError(f"{what}: not valid Unicode (half of a surrogate pair)") from None
    return value


def check_event(event: Event) -> None:
    """Refuse an event that one of the databases could not give back as it came."""
    for name in ("user_id", "item_id", "event_id", "kind", "session"):
        value = getattr(event, name)
        if value is not None or name in ("user_id", "item_id"):
            check_text(value, name)
    if event.time is not None:
        whole = isinstance(event.time, int) and not isinstance(event.time, bool)
        if not whole or not -(2**63) <= event.time < 2**63:
            raise EnsuiteError(f"time: {event.time!r}: whole microseconds since 1970 are needed, in 64 bits")
    if event.context is not None:
        check_json(event.context, dict, "context")


def check_item(item: Item) -> None:
    """Refuse an item that cannot be kept."""
    check_text(item.item_id, "item_id")
    if item.title is not None:
        check_text(item.title, f"title of item {item.item_id}")
    check_json(item.attributes, dict, f"attributes of item {item.item_id}")
    check_json(item.like, list, f"like of item {item.item_id}")


def check_json(value: Any, kind: type, what: str) -> None:
    """Refuse what JSON cannot hold, or would give back changed."""
    if not isinstance(value, kind):
        raise EnsuiteError(f"{what}: a {kind.__name__} is needed, this is a {type(value).__name__}")
    try:
        same = json.loads(to_json(value)) == value
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise EnsuiteError(f"{what}: JSON cannot hold it as it is (NaN, keys that are no text, objects)")


def to_json(value: Any) -> str:
    """Return the JSON that the databases hold: one text for equal values."""
    return json.dumps(value, allow_nan=False, sort_keys=True, separators=(",", ":"))
