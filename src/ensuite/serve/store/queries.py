"""Questions to the events, each answered from an index (`schema.py` says which)."""

from __future__ import annotations

import sqlalchemy as sa

from ensuite.serve.store.records import StoredEvent
from ensuite.serve.store.schema import events

e = events.c
STORED = (e.user_id, e.item_id, e.time, e.event_id, e.kind, e.session, e.context, e.arrival)
"""The columns of a `StoredEvent`, in its order."""
READ = (e.item_id, e.time, e.session)
"""The columns of a `Happened`, in its order."""
LAST = "\U0010ffff"
"""No character comes after it."""


def last_events(
    columns: tuple[sa.Column, ...], user: str | sa.BindParameter, limit: int | sa.BindParameter
) -> sa.Select:
    """Select the last events of a user, the newest first: the end of a range of the index."""
    newest_first = e.time.desc(), e.arrival.desc()
    return sa.select(*columns).where(e.user_id == user).order_by(*newest_first).limit(limit)


LAST_READ = last_events(READ, sa.bindparam("user"), sa.bindparam("most"))
"""What models read of the last ``most`` events of ``user``: made once, since making a statement costs as much
as running it."""


def last_of_each(user_ids: list[str], limit: int) -> sa.CompoundSelect:
    """Select user, arrival and what models read of the last events of each user, in any order."""
    # Subqueries, since SQLite limits no member of a union otherwise.
    each = [last_events((e.user_id, e.arrival, *READ), user, limit).subquery() for user in user_ids]
    return sa.union_all(*(sa.select(one) for one in each))


def summary(user_id: str) -> sa.Select:
    """Select the columns of a `User`."""
    return _summaries().where(e.user_id == user_id)


def first_users(prefix: str, limit: int) -> sa.Select:
    """Select the columns of the first users whose id begins with ``prefix``: a range of the index."""
    asked = _summaries().where(e.user_id >= prefix).order_by(e.user_id).limit(limit)
    after = _after(prefix)
    return asked if after is None else asked.where(e.user_id < after)


def counts() -> sa.Select:
    """Select the columns of an `Info`."""
    f = sa.func
    return sa.select(f.count(), f.count(e.user_id.distinct()), f.min(e.time), f.max(e.time))


def _summaries() -> sa.Select:
    return sa.select(e.user_id, sa.func.count(), sa.func.min(e.time), sa.func.max(e.time)).group_by(e.user_id)


def _after(prefix: str) -> str | None:
    """Return the first text after all that begin with ``prefix``; None when nothing comes after them.

    >>> _after("ab"), _after("a" + LAST), _after("")
    ('ac', 'b', None)
    """
    kept = prefix.rstrip(LAST)
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    return kept[:-1] + chr(0xE000 if following == 0xD800 else following)  # surrogates are no characters


def read_event(row: sa.Row) -> StoredEvent:
    """Make an event of a row of the columns `STORED`."""
    *values, arrival = row
    return StoredEvent(*values, arrival=arrival)
