"""What the service reads and writes as JSON; OpenAPI is made of these classes."""

from __future__ import annotations

import datetime as dt
import re
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

from ensuite.serve import asking
from ensuite.serve.http.limits import (
    AHEAD,
    CANDIDATES,
    DEPTH,
    EVENTS,
    HISTORY,
    ITEMS,
    REQUESTS,
    K,
)
from ensuite.serve.store import Event, Item

TEXT = 512
"""Characters of an id, a kind, a session or a title."""
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]+$"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_WHOLE = 1 << 63


def read_text(value: Any) -> str:
    """Check a short text: no control characters, and not too long."""
    if not isinstance(value, str):
        raise ValueError("a text is needed")
    if not 0 < len(value) <= TEXT:
        raise ValueError(f"1 to {TEXT} characters are needed, these are {len(value):,}")
    if _CONTROL.search(value):
        raise ValueError("control characters are not allowed")
    _check_unicode(value)
    return value


def read_id(value: Any) -> str | int:
    """Check an id: a whole number of 64 bits, or a text."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not -_WHOLE <= value < _WHOLE:
            raise ValueError("a whole number of at most 64 bits is needed")
        return value
    if not isinstance(value, str):
        raise ValueError("an id is a whole number or a text")
    return read_text(value)


def read_time(value: Any) -> int:
    """Read a time, as ISO text (without a zone: UTC) or seconds since 1970: microseconds since 1970."""
    if isinstance(value, str):
        try:
            when = dt.datetime.fromisoformat(value)
            seconds = (when if when.tzinfo else when.replace(tzinfo=dt.UTC)).timestamp()
        except (ValueError, OverflowError):
            raise ValueError("a time is ISO text like 2024-05-01T12:30:00Z, or seconds since 1970") from None
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    else:
        raise ValueError("a time is ISO text like 2024-05-01T12:30:00Z, or seconds since 1970")
    if seconds < 0:
        raise ValueError("a time lies in 1970 or later")
    if seconds > time.time() + AHEAD:
        raise ValueError(
            f"more than {AHEAD // 3600} hours in the future; times are seconds since 1970 (or ISO text), "
            "not milliseconds"
        )
    return round(seconds * 1_000_000)


def read_object(value: Any) -> dict[str, Any]:
    """Check a JSON object of any keys: not too deep, and nothing that a database could not give back."""
    if not isinstance(value, dict):
        raise ValueError("an object is needed")
    _check_value(value, DEPTH)
    return value


def _check_value(value: Any, left: int) -> None:
    if left == 0:
        raise ValueError(f"nested deeper than {DEPTH} levels")
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("the character NUL is not allowed")
        _check_unicode(value)
    elif isinstance(value, dict):
        for one in (*value, *value.values()):
            _check_value(one, left - 1)
    elif isinstance(value, list):
        for one in value:
            _check_value(one, left - 1)


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid Unicode (half of a surrogate pair)") from None


_TEXT_SCHEMA = {"type": "string", "minLength": 1, "maxLength": TEXT, "pattern": PRINTABLE}
_INTEGER_SCHEMA = {"type": "integer", "minimum": -_WHOLE, "maximum": _WHOLE - 1}
Text = Annotated[str, BeforeValidator(read_text), WithJsonSchema(_TEXT_SCHEMA)]
Id = Annotated[Any, BeforeValidator(read_id), WithJsonSchema({"anyOf": [_INTEGER_SCHEMA, _TEXT_SCHEMA]})]
Time = Annotated[
    int,
    BeforeValidator(read_time),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number", "minimum": 0}]}),
]
Object = Annotated[dict[str, Any], BeforeValidator(read_object), WithJsonSchema({"type": "object"})]


class Sent(BaseModel):
    """What callers send: unknown keys are refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class HistoryEvent(Sent):
    """An event of a request's history."""

    item_id: Id
    time: Time | None = Field(
        None, description="When it happened; all events of a history have one, or none."
    )
    session: Text | None = None

    def given(self) -> asking.Given:
        return asking.Given(self.item_id, self.time, self.session)


def _event_or_id(value: Any) -> str:
    return "<event>" if isinstance(value, dict | HistoryEvent) else "<id>"


def _ids_or_rule(value: Any) -> str:
    return "<ids>" if isinstance(value, list) else "<rule>"


Ids = Annotated[list[Id], Field(max_length=CANDIDATES)]


class Recommend(Sent):
    """A request for one user or history."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": "ann", "k": 3},
                {"history": [260, 1196, 2571], "k": 3, "exclude": "seen"},
                {
                    "user_id": "ann",
                    "history": [{"item_id": 260, "time": "2024-05-01T12:30:00Z"}],
                    "candidates": [1198, 1210, 1291],
                    "k": 2,
                },
            ]
        }
    )
    user_id: Id | None = Field(None, description="Read the stored events of this user.")
    history: (
        Annotated[
            list[
                Annotated[
                    Annotated[HistoryEvent, Tag("<event>")] | Annotated[Id, Tag("<id>")],
                    Discriminator(_event_or_id),
                ]
            ],
            Field(min_length=1, max_length=HISTORY),
        ]
        | None
    ) = Field(
        None,
        description="Item ids, oldest first, or events. With a user_id they come after the stored events "
        "(by time, where they have one); alone they are the whole history. Nothing of it is stored.",
    )
    k: int = Field(10, ge=1, le=K, description="How many items.")
    candidates: Annotated[list[Id], Field(min_length=1, max_length=CANDIDATES)] | None = Field(
        None, description="Choose among these items only."
    )
    exclude: (
        Annotated[
            Annotated[Literal["seen", "none"], Tag("<rule>")] | Annotated[Ids, Tag("<ids>")],
            Discriminator(_ids_or_rule),
        ]
        | None
    ) = Field(
        None,
        description="seen: no item of the history; none: any item; or the ids of items to leave out. By "
        "default as the model was measured.",
    )
    at: Time | None = Field(
        None,
        description="When the items are asked for; default: now. Stored events from then on are left out.",
    )
    context: Object | None = Field(
        None, description="For models that read it; the others say so in `ignored`."
    )
    fallback: bool = Field(True, description="Whether the fallback list may answer; else that is an error.")
    preference: Text | None = Field(
        None,
        description="What is wanted, in words, such as 'Find comedies'; refused by models that read none.",
    )

    def request(self) -> asking.Request:
        """Return the request in the service's own words."""
        events = [
            event.given() if isinstance(event, HistoryEvent) else asking.Given(event)
            for event in self.history or ()
        ]
        return asking.Request(
            None if self.user_id is None else str(self.user_id),
            events,
            self.k,
            self.candidates,
            self.exclude,
            self.at,
            self.context,
            self.fallback,
            self.preference,
        )


class RecommendMany(Sent):
    """Several requests, answered side by side."""

    requests: list[Recommend] = Field(min_length=1, max_length=REQUESTS)


def _many(value: Any) -> str:
    return "<many>" if isinstance(value, dict) and "requests" in value else "<one>"


RecommendBody = Annotated[
    Annotated[Recommend, Tag("<one>")] | Annotated[RecommendMany, Tag("<many>")], Discriminator(_many)
]


class EventIn(Sent):
    """Something that happened."""

    user_id: Id
    item_id: Id
    time: Time | None = Field(None, description="When; default: now.")
    event_id: Text | None = Field(
        None, description="Your own name of this event: sent again, it is not stored again."
    )
    kind: Text | None = Field(None, description="What the user did: view, buy, ...")
    session: Text | None = None
    context: Object | None = None

    def event(self) -> Event:
        return Event(
            str(self.user_id),
            str(self.item_id),
            self.time,
            self.event_id,
            self.kind,
            self.session,
            self.context,
        )


class Events(Sent):
    """Events to store, all of them or none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"events": [{"user_id": "ann", "item_id": 260, "event_id": "click-1"}]},
                {"events": [{"user_id": "ann", "item_id": 1196, "time": "2024-05-01T12:30:00Z"}]},
            ]
        }
    )
    events: list[EventIn] = Field(min_length=1, max_length=EVENTS)


class ItemIn(Sent):
    """An item that came after the training, or a new title of one that the model knows."""

    item_id: Id
    title: Text | None = None
    attributes: Object = Field(default_factory=dict)
    like: list[Id] = Field(
        default_factory=list,
        max_length=100,
        description="Items of the training that it resembles: it is scored and read as their mean.",
    )

    def item(self) -> Item:
        return Item(str(self.item_id), self.title, self.attributes, [str(item) for item in self.like])


class Items(Sent):
    """Items to put, all of them or none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"items": [{"item_id": "new-1", "title": "Rogue One", "like": [260, 1196, 1210]}]}]
        }
    )
    items: list[ItemIn] = Field(min_length=1, max_length=ITEMS)


class Swap(Sent):
    """Which run is to serve."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"run": "sasrec-2"}]})
    run: Text = Field(description="The name of a run in the folder given with --runs.")


class ErrorDetail(BaseModel):
    code: str = Field(examples=["invalid"])
    message: str = Field(examples=["Input should be greater than or equal to 1"])
    field: str | None = Field(examples=["k"])


class Error(BaseModel):
    """What was wrong."""

    error: ErrorDetail


class ModelName(BaseModel):
    run: str
    version: str = Field(description="The first digits of the SHA-256 of the weights.")


class ScoredItem(BaseModel):
    item_id: int | str
    title: str | None = Field(None, description="Absent where the catalogue has no titles.")
    score: float | None = Field(description="Comparable within an answer only; null in catalogue order.")


class Recommendation(BaseModel):
    """Items, best first."""

    items: list[ScoredItem]
    unknown: list[int | str] = Field(description="Items of the history that the model does not know.")
    unknown_candidates: list[int | str]
    events: int = Field(description="Length of the history that was read, unknown items too.")
    fallback: asking.Reason | None = Field(
        description="Why these are the items of the fallback list; null: they are the model's."
    )
    ignored: list[str] = Field(description="Parts of the request that were not read.")
    model: ModelName


class Recommendations(BaseModel):
    """An answer, or an error, for each request, in their order."""

    answers: list[Recommendation | Error]


class AppendedOut(BaseModel):
    new: int
    repeated: int = Field(description="Were stored already, by event_id.")
    unknown_items: list[str] = Field(description="Stored, but unknown to the model that serves now.")


class StoredEventOut(BaseModel):
    item_id: str
    time: dt.datetime
    event_id: str | None
    kind: str | None
    session: str | None
    context: dict[str, Any] | None


class UserOut(BaseModel):
    user_id: str
    events: int
    first: dt.datetime
    last: dt.datetime
    recent: list[StoredEventOut] = Field(description="The last events, oldest first.")


class Deleted(BaseModel):
    deleted: int = Field(description="Events deleted.")


class Similar(BaseModel):
    """Items by the cosine of their vectors with that of one item."""

    item_id: int | str
    items: list[ScoredItem]


class NewItemsOut(BaseModel):
    """Of all items put so far."""

    added: int = Field(
        description="New to the model; known by their text, or as the mean of what they are like."
    )
    known: int = Field(description="Known to the model from its training.")
    dropped: list[str] = Field(
        description="Neither described to this model nor like anything it knows: not recommended."
    )


class FallbackOut(BaseModel):
    source: str = Field(description='A popularity run, or "catalogue order".')


class ModelOut(BaseModel):
    """The model that serves."""

    run: str
    version: str
    system: str
    items: int
    parameters: int
    reads_events: int = Field(description="How many of the most recent events it reads.")
    reads_times: bool
    reads_request_time: bool
    trained_on: str
    since: dt.datetime
    new_items: NewItemsOut
    fallback: FallbackOut
    runs: list[str] = Field(description="Names that POST /v1/model takes.")


class Health(BaseModel):
    status: Literal["ok"]


class Ready(BaseModel):
    status: Literal["ready"]
    model: str
    store: Literal["ok", "unavailable"]
