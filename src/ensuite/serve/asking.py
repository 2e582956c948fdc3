"""What the service is asked and what it answers; how stored and given events become one history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ensuite.errors import EnsuiteError
from ensuite.serve.recommendations import Ranked
from ensuite.serve.recommender import Recommender
from ensuite.serve.requests import Ask, BadRequest, ItemId

if TYPE_CHECKING:
    from ensuite.serve.store import Happened

TICKS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Of each unit in a second."""

Reason = Literal["unknown user", "unknown items", "model failed", "store unavailable", "timeout"]
"""Why a request is not answered by the model."""


@dataclass(frozen=True)
class Given:
    """An event that comes with a request and is not stored."""

    item_id: ItemId
    time: int | None = None
    """Microseconds since 1970, UTC."""
    session: str | None = None


@dataclass(frozen=True)
class Request:
    """What is asked for one user or history."""

    user_id: str | None = None
    """The stored events of this user are read."""
    history: Sequence[Given] = ()
    """Events after the stored ones, or the whole history when there is no user."""
    k: int = 10
    candidates: Sequence[ItemId] | None = None
    """Choose among these items only."""
    exclude: Literal["seen", "none"] | Sequence[ItemId] | None = None
    """As for `Recommender.recommend`."""
    at: int | None = None
    """When the items are asked for, microseconds since 1970; default: now. Stored events from then on are
    left out."""
    context: Mapping[str, Any] | None = None
    """For models that read it; none does today."""
    fallback: bool = True
    """Whether the fallback list answers when the model cannot; else that is an error (`NoAnswer`)."""
    preference: str | None = None
    """What is wanted, in words; refused by models that read none."""


@dataclass(frozen=True)
class Answer:
    """What one request gets."""

    ranked: Ranked
    run: str
    """Name of the run whose model was asked."""
    version: str
    """The first digits of the SHA-256 of its weights."""
    events: int
    """Length of the history, stored and given, unknown items too."""
    fallback: Reason | None = None
    """Why the items are those of the fallback list; None: they are the model's."""
    ignored: list[str] = field(default_factory=list)
    """Parts of the request that this model does not read, or that could not be read now."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            **self.ranked.to_dict(),
            "unknown_candidates": self.ranked.unknown_candidates,
            "events": self.events,
            "fallback": self.fallback,
            "ignored": self.ignored,
            "model": {"run": self.run, "version": self.version},
        }


class NoAnswer(EnsuiteError):
    """The model cannot answer, and the request wants no fallback list."""

    def __init__(self, reason: Reason):
        super().__init__(f"{reason}, and the request has fallback: false")
        self.reason = reason


def merge_events(stored: Sequence[Happened], given: Sequence[Given]) -> list[Happened | Given]:
    """Return stored and given events: by time when the given ones have times, else these after the others.

    A given event that is stored already (same item, same time) counts once.

    Raises
    ------
    BadRequest
        When some given events have a time and some have none.
    """
    events: list[Happened | Given] = [*stored]
    timed = sum(event.time is not None for event in given)
    if timed not in (0, len(given)):
        raise BadRequest(
            f"{timed} of {len(given)} events have a time; give all of them one, or none", "history"
        )
    if not timed:
        return [*events, *given]
    there = {(event.item_id, event.time) for event in events}
    events += [event for event in given if (str(event.item_id), event.time) not in there]
    return sorted(events, key=lambda event: event.time or 0)


def build_ask(
    request: Request, events: Sequence[Happened | Given], recommender: Recommender, now: int
) -> Ask:
    """Put a request into the words of `Recommender.recommend_each`.

    Raises
    ------
    BadRequest
        When the model reads times and the given events have none.
    """
    model = recommender.model
    history: list[Any] = [event.item_id for event in events]
    at: int | None = None
    if model.needs_times():
        if any(event.time is None for event in events):
            raise BadRequest(
                f"{type(model).__name__} reads times: give each event of the history its `time`", "history"
            )
        unit = recommender.time_unit
        times = [to_unit(event.time or 0, unit) for event in events]
        if all(event.session is not None for event in events):
            history = [(event.item_id, time, event.session) for event, time in zip(events, times)]
        else:
            history = [(event.item_id, time) for event, time in zip(events, times)]
        # A sender's clock may be ahead of ours: what happened, happened before it was asked for.
        at = to_unit(request.at, unit) if request.at is not None else max(to_unit(now, unit), times[-1])
    return Ask(history, request.k, request.exclude, request.candidates, at, preference=request.preference)


def to_unit(microseconds: int, unit: str) -> int:
    """Return a time in the unit of a dataset.

    >>> to_unit(1_500_000, "s"), to_unit(1_500_000, "ms")
    (1, 1500)
    """
    return microseconds * TICKS[unit] // TICKS["us"]


def unread(request: Request, recommender: Recommender) -> list[str]:
    """Return the parts of a request that the model does not read."""
    names = []
    if request.context:
        names.append("context")
    if request.at is not None and request.user_id is None and not recommender.model.reads_request_time():
        names.append("at")
    return names
