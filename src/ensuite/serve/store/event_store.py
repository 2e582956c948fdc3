"""The store: events of users, items added while serving, and the keys of the service's callers."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from ensuite.errors import EnsuiteError
from ensuite.serve.store import secrets
from ensuite.serve.store.database import (
    WRITE,
    StoreUnavailable,
    connect,
    failures_named,
    name_of,
    parse_url,
)
from ensuite.serve.store.migrate import migrate
from ensuite.serve.store.queries import (
    LAST_READ,
    STORED,
    counts,
    first_users,
    last_events,
    last_of_each,
    read_event,
    summary,
)
from ensuite.serve.store.records import (
    Appended,
    Event,
    Happened,
    Info,
    Item,
    Key,
    StoredEvent,
    User,
    check_event,
    check_item,
    check_text,
)
from ensuite.serve.store.schema import counters, events, items, keys

AT_A_TIME = 200
"""Users, or event ids, asked for in one statement; SQLite joins at most 500 selects."""
TRIES = 5
SENT = tuple(field.name for field in fields(Event))
"""What a sender says of an event: an event of another store has an arrival, too, which is not taken over."""


class EventStore:
    """Events in a database; safe to use from many threads, and from many processes at once.

    SQLite serves one machine (its writers take turns), PostgreSQL several. An append is on the disk when it
    returns: it survives the death of the process (kill -9) and, where disk and settings keep their word
    (SQLite's `synchronous=FULL`, which is set here; PostgreSQL's `synchronous_commit`, on by default), a loss
    of power.

    Every method raises `StoreUnavailable` when the database cannot be reached, answers later than
    ``timeout``, or cannot write. (PostgreSQL itself watches over the time of a statement: a server that is
    frozen, neither dead nor answering, is waited for.)

    Examples
    --------
    >>> import tempfile
    >>> store = EventStore.open(tempfile.mkdtemp() + "/events.sqlite")
    >>> store.append([Event("ann", "tea", time=1), Event("ann", "rice", time=2)])
    Appended(new=2, repeated=0)
    >>> [event.item_id for event in store.history("ann", limit=10)]
    ['tea', 'rice']
    >>> store.close()
    """

    def __init__(self, engine: sa.Engine, name: str):
        self.name = name
        """The store in messages: its URL without the password, or its path."""
        self._engine = engine
        self._writer = engine.execution_options(**{WRITE: True})
        dialect = sqlite if engine.dialect.name == "sqlite" else postgresql
        self._insert = dialect.insert  # type: ignore[attr-defined]

    @classmethod
    def open(
        cls,
        url: str | os.PathLike[str],
        *,
        pool_size: int = 8,
        timeout: float = 5.0,
        create: bool = True,
    ) -> EventStore:
        """Open a store; an empty database gets its tables, an older one is brought up to date.

        Parameters
        ----------
        url
            SQLAlchemy's URL of a SQLite or PostgreSQL database, or the path of a SQLite file.
        pool_size
            Most connections at a time; whoever needs another waits for one to come free.
        timeout
            Seconds after which a connection, a lock or a statement is given up.
        create
            Whether a SQLite file that is not there is made; else it is refused.

        Raises
        ------
        EnsuiteError
            When the URL is not one, the file is no SQLite database, rights are missing, or the database was
            made by a newer version.
        """
        parsed = parse_url(url)
        name = name_of(parsed)
        store = cls(connect(parsed, pool_size, timeout, create), name)
        try:
            with store._write() as connection:
                if connection.dialect.name == "postgresql":
                    _check_encoding(connection, name)
                migrate(connection, name)
        except exc.ProgrammingError as error:  # no right to create tables, say
            store.close()
            raise EnsuiteError(f"store {name}: {str(error.orig).strip().splitlines()[0]}") from None
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def ping(self) -> None:
        """Return when the database answers."""
        with self._read() as connection:
            connection.execute(sa.select(counters.c.value)).first()

    # Events

    def append(self, events_: Sequence[Event]) -> Appended:
        """Store events, all of them or none; they are on the disk when this returns.

        An event with an ``event_id`` that the store holds already is not stored again, whoever sent it: ids
        are unique in the whole store, so a sender may repeat whatever was not acknowledged. (What was deleted
        since is forgotten, its id too.) Equal times keep the order of arrival, within a batch its own.

        Raises
        ------
        EnsuiteError
            When an event cannot be kept, or its ``event_id`` belongs to an event with other content; nothing
            of the batch is stored then.
        """
        for number, event in enumerate(events_):
            try:
                check_event(event)
            except EnsuiteError as error:
                raise EnsuiteError(f"event {number}: {error}" if len(events_) > 1 else str(error)) from None
        if not events_:
            return Appended(0, 0)
        rows = [_row(event) for event in events_]
        for left in reversed(range(TRIES)):
            try:
                with self._write() as connection:
                    return self._append(connection, events_, rows)
            except StoreUnavailable as error:
                # Two batches with the same ids in another order may wait for each other; PostgreSQL then
                # undoes one, which has only to try again.
                if left == 0 or not error.again:
                    raise
        raise AssertionError("unreachable")

    def _append(self, connection: sa.Connection, sent: Sequence[Event], rows: list[dict]) -> Appended:
        statement = self._insert(events).on_conflict_do_nothing(index_elements=["event_id"])
        new = len(connection.execute(statement.returning(events.c.arrival), rows).all())
        if new < len(rows):
            named = [event for event in sent if event.event_id is not None]
            for at in range(0, len(named), AT_A_TIME):
                _check_repeated(connection, named[at : at + AT_A_TIME])
        return Appended(new, len(rows) - new)

    def history(self, user_id: str, limit: int) -> list[StoredEvent]:
        """Return a user's last ``limit`` events, oldest first: by time, equal times by arrival."""
        if not _can_be_kept(user_id):
            return []
        with self._read() as connection:
            rows = connection.execute(last_events(STORED, user_id, limit)).fetchall()
        return [read_event(row) for row in reversed(rows)]

    def histories(self, user_ids: Sequence[str], limit: int) -> dict[str, list[Happened]]:
        """Return what models read of the last ``limit`` events of each user, oldest first; no events, an
        empty list."""
        found: dict[str, list[Happened]] = {user: [] for user in user_ids}
        asked = [user for user in found if _can_be_kept(user)]
        with self._read() as connection:
            for at in range(0, len(asked), AT_A_TIME):
                some = asked[at : at + AT_A_TIME]
                if len(some) == 1:
                    rows = connection.execute(LAST_READ, {"user": some[0], "most": limit}).fetchall()
                    found[some[0]] = [Happened._make(row) for row in reversed(rows)]
                    continue
                rows = connection.execute(last_of_each(some, limit)).fetchall()
                for user, _, *read in sorted(rows, key=lambda row: (row.time, row.arrival)):
                    found[user].append(Happened._make(read))
        return found

    def user(self, user_id: str) -> User | None:
        """Return what is known of a user, None when there are no events."""
        if not _can_be_kept(user_id):
            return None
        with self._read() as connection:
            row = connection.execute(summary(user_id)).first()
        return None if row is None else User(*row)

    def users(self, prefix: str = "", limit: int = 20) -> list[User]:
        """Return the first ``limit`` users whose id begins with ``prefix``, by id."""
        if prefix and not _can_be_kept(prefix):
            return []
        with self._read() as connection:
            return [User(*row) for row in connection.execute(first_users(prefix, limit))]

    def info(self) -> Info:
        """Count events and users: reads the whole index, seconds for each ten million."""
        with self._read() as connection:
            return Info(*connection.execute(counts()).one())

    def delete_user(self, user_id: str) -> int:
        """Delete all events of a user and return how many there were.

        SQLite overwrites them with zeros (`secure_delete`) and empties its log; where that fails
        (`StoreUnavailable`), call again. PostgreSQL frees their place at its next VACUUM, and backups keep
        what they hold."""
        if not _can_be_kept(user_id):
            return 0
        with self._write() as connection:
            removed = connection.execute(sa.delete(events).where(events.c.user_id == user_id)).rowcount
        self._empty_log()
        return removed

    def forget(self, before: int, *, batch: int = 10_000) -> int:
        """Delete all events older than ``before`` (microseconds since 1970) and return how many there were.

        Each ``batch`` is a transaction of its own, so that appends get their turn in between."""
        oldest = sa.select(events.c.arrival).where(events.c.time < before).order_by(events.c.time)
        removed = 0
        while True:
            with self._write() as connection:
                some = sa.delete(events).where(events.c.arrival.in_(oldest.limit(batch)))
                now = connection.execute(some).rowcount
            removed += now
            if now < batch:
                self._empty_log()
                return removed

    def _empty_log(self) -> None:
        """Have SQLite write its log into the database and cut it, so that deleted content is in neither."""
        if self._engine.dialect.name != "sqlite":
            return
        with failures_named(self.name), self._engine.connect() as connection:
            driver: Any = connection.connection.driver_connection  # a transaction would be in its own way
            try:
                busy = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.OperationalError as error:
                busy = error
        if busy:
            why = busy if isinstance(busy, Exception) else "others read it all the time"
            raise StoreUnavailable(
                f"store {self.name}: events are deleted, but the log that may still hold them could not be "
                f"emptied: {why}; delete again"
            )

    # Items

    def put_items(self, items_: Sequence[Item]) -> int:
        """Add items, or replace those there are, all or none; return the new `items_version`."""
        for item in items_:
            check_item(item)
        rows = [vars(item) for item in {item.item_id: item for item in items_}.values()]
        with self._write() as connection:
            # The counter first: its row is the lock that puts calls of several processes in a line.
            bump = sa.update(counters).where(counters.c.name == "items").values(value=counters.c.value + 1)
            version = connection.execute(bump.returning(counters.c.value)).scalar_one()
            if rows:
                insert = self._insert(items)
                values = {name: insert.excluded[name] for name in ("title", "attributes", "like")}
                connection.execute(
                    insert.on_conflict_do_update(index_elements=["item_id"], set_=values), rows
                )
        return version

    def items(self) -> list[Item]:
        """Return all items that were added, by id."""
        with self._read() as connection:
            rows = connection.execute(sa.select(items).order_by(items.c.item_id)).all()
        return [Item(**row._mapping) for row in rows]

    def items_version(self) -> int:
        """Return a number that grows with every `put_items`, of any process."""
        with self._read() as connection:
            asked = sa.select(counters.c.value).where(counters.c.name == "items")
            return connection.execute(asked).scalar_one()

    # Keys

    def add_key(self, name: str, scopes: frozenset[str]) -> str:
        """Make an API key and return its secret, which is not kept: only its SHA-256 is.

        Raises
        ------
        EnsuiteError
            When the name was used before, for a key that was revoked too, or a scope is unknown.
        """
        check_text(name, "name of the key")
        secrets.check_scopes(scopes)
        secret = secrets.make()
        row = {
            "name": name,
            "digest": secrets.digest(secret),
            "scopes": " ".join(sorted(scopes)),
            "created": _now(),
        }
        try:
            with self._write() as connection:
                connection.execute(sa.insert(keys), row)
        except exc.IntegrityError:
            raise EnsuiteError(
                f"key '{name}': there is, or was, a key of this name; choose another"
            ) from None
        return secret

    def keys(self) -> list[Key]:
        """Return all keys, revoked ones too, by name."""
        with self._read() as connection:
            rows = connection.execute(sa.select(keys).order_by(keys.c.name)).all()
        return [_key(row) for row in rows]

    def revoke_key(self, name: str) -> None:
        """Make a key worthless from now on, in every process; its name stays taken.

        Raises
        ------
        EnsuiteError
            When there is no valid key of this name.
        """
        with self._write() as connection:
            valid = sa.update(keys).where(keys.c.name == name, keys.c.revoked.is_(None))
            changed = connection.execute(valid.values(revoked=_now())).rowcount
        if not changed:
            raise EnsuiteError(f"key '{name}': there is no valid key of this name")

    def check_key(self, secret: str) -> Key | None:
        """Return the key that a secret belongs to; None when it is unknown or revoked."""
        digest = secrets.digest(secret)
        with self._read() as connection:
            row = connection.execute(sa.select(keys).where(keys.c.digest == digest)).first()
        if row is None or not secrets.same(row.digest, digest) or row.revoked is not None:
            return None
        return _key(row)

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with failures_named(self.name), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with failures_named(self.name), self._writer.begin() as connection:
            yield connection


def _row(event: Event) -> dict:
    sent = {name: getattr(event, name) for name in SENT}
    return sent | {"time": _now() if event.time is None else event.time}


def _now() -> int:
    return time.time_ns() // 1000


def _check_repeated(connection: sa.Connection, sent: list[Event]) -> None:
    ids = [event.event_id for event in sent]
    stored = {
        row.event_id: read_event(row)
        for row in connection.execute(sa.select(*STORED).where(events.c.event_id.in_(ids)))
    }
    for event in sent:
        held = stored.get(event.event_id)
        if held is None:  # PostgreSQL: between our two statements
            raise StoreUnavailable("an event was deleted while it was sent again", again=True)
        for name in SENT:
            value = getattr(event, name)
            # A time that the store gave is not the sender's: it cannot differ.
            if value != getattr(held, name) and not (name == "time" and value is None):
                raise EnsuiteError(
                    f"event_id '{event.event_id}' is taken by an event with another {name}; nothing was "
                    "stored: an event is changed by none, give this one an id of its own"
                )


def _can_be_kept(user_id: str) -> bool:
    """Whether a user of this id may have events; asked about others, the database would complain."""
    try:
        check_text(user_id, "user_id")
    except EnsuiteError:
        return False
    return True


def _key(row: sa.Row) -> Key:
    return Key(row.name, frozenset(row.scopes.split()), row.created, row.revoked)


def _check_encoding(connection: sa.Connection, name: str) -> None:
    encoding = connection.execute(sa.text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        raise EnsuiteError(
            f"store {name}: the database's encoding is {encoding}, ids need UTF8: "
            "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
