"""Sessions: what a user did at a stretch, cut by a column or by pauses, each holding an item once.

A session is a run of consecutive events of one user. It is known by a number: any number in the log's session
column, and once prepared the count of the user's sessions from 0.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from ensuite.data.filters import Steps
from ensuite.data.options import PrepareConfig
from ensuite.data.order import Ordered
from ensuite.data.side import event_column
from ensuite.data.times import TICKS, parse_gap
from ensuite.errors import EnsuiteError


def begins(user: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Mark the first event of each run of one user and one session ``key``: [N] bool.

    >>> begins(np.array([0, 0, 0, 1]), np.array([5, 5, 7, 7])).tolist()
    [True, False, True, True]
    """
    mark = np.ones(len(user), bool)
    mark[1:] = (user[1:] != user[:-1]) | (key[1:] != key[:-1])
    return mark


def within_users(offsets: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Count the sessions of each user from 0, given a key for each event: [E] int32."""
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    number = np.cumsum(begins(user, key)) - 1
    return (number - number[np.asarray(offsets[:-1])][user]).astype(np.int32)


def apply_sessions(
    events: Ordered, column: pl.Series | None, unit: str | None, config: PrepareConfig, steps: Steps
) -> Ordered:
    """Cut the events into sessions and apply the filters that look at sessions; `Ordered.session` is set.

    Parameters
    ----------
    column
        The log's session column in the order of the source, or None to cut by ``config.session_gap``.

    Raises
    ------
    EnsuiteError
        For a gap without times, an event without a session, a session whose events are not in one piece in
        time, or when no session holds more than one item.
    """
    mark = _by_column(events, column) if config.session_gap is None else _by_gap(events, unit, config)
    number = np.cumsum(mark) - 1  # ascending, over all users
    events = replace(events, session=number)
    pair = pl.Series(number * (int(events.item.max(initial=0)) + 1) + events.item)
    once = pair.is_first_distinct().to_numpy()
    events = steps.apply(events, once, "once a session", "further events with an item of the same session")
    if len(events) and np.bincount(_session(events)).max() < 2:
        raise EnsuiteError(
            "sessions: every session holds one item only, so none says what goes together; "
            + ("name another column with --session" if column is not None else "give a longer --session-gap")
        )
    if config.session_min > 1:
        enough = np.bincount(_session(events))[_session(events)] >= config.session_min
        least = f"sessions >= {config.session_min}"
        events = steps.apply(events, enough, least, "events of sessions with fewer different items")
    if config.session_first:
        position = _position(_session(events))
        first = f"first {config.session_first} of a session"
        events = steps.apply(events, position < config.session_first, first, "the items after those")
    if config.min_sessions > 1 and len(events):
        count = np.bincount(events.user[begins(events.user, _session(events))])
        enough = count[events.user] >= config.min_sessions
        least = f"users >= {config.min_sessions} sessions"
        events = steps.apply(events, enough, least, "events of users with fewer sessions")
    return events


def _session(events: Ordered) -> np.ndarray:
    assert events.session is not None
    return events.session


def _position(number: np.ndarray) -> np.ndarray:
    """Count the events of each session from 0; ``number`` [N] ascends."""
    return np.arange(len(number)) - np.searchsorted(number, number)


def _by_gap(events: Ordered, unit: str | None, config: PrepareConfig) -> np.ndarray:
    if events.time is None or unit is None:
        raise EnsuiteError(
            f"--session-gap {config.session_gap} needs times, and this log holds an order only; name the "
            "column with --time, or name a session column with --session"
        )
    assert config.session_gap is not None
    gap = parse_gap(config.session_gap) * TICKS[unit]
    mark = np.ones(len(events), bool)
    mark[1:] = (events.user[1:] != events.user[:-1]) | (events.time[1:] - events.time[:-1] > gap)
    return mark


def _by_column(events: Ordered, column: pl.Series | None) -> np.ndarray:
    assert column is not None
    assert events.row is not None
    key = column.gather(events.row)
    missing = key.null_count() + (int(key.is_nan().sum()) if key.dtype.is_float() else 0)
    if missing:
        raise EnsuiteError(f"--session: {missing:,} events have no session; fill them in or remove them")
    codes = event_column("session", key).values
    mark = begins(events.user, codes)
    pieces = pl.DataFrame({"user": events.user[mark], "session": codes[mark]})
    if len(again := pieces.is_duplicated().arg_true()):
        raise EnsuiteError(
            f"--session: {pieces[again].n_unique():,} sessions are not in one piece: in order of time "
            f"another session of the same user lies between their events ({key.filter(mark)[again[0]]!r} is "
            "one); give sessions that do not overlap, or cut by pauses with --session-gap 20m"
        )
    return mark
