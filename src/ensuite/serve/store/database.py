"""The connection: SQLite or PostgreSQL, what each is told, and how its failures look from outside."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from ensuite.errors import EnsuiteError
from ensuite.serve.store.records import to_json

WRITE = "ensuite_write"
"""Execution option of connections that will write."""
DEADLOCK = "40P01"
"""PostgreSQL's code of a transaction that it undid because two waited for each other."""
SWITCH_SECONDS = 5.0
"""How long a process tries to switch a new SQLite file to its write-ahead log."""


class StoreUnavailable(EnsuiteError):
    """The database cannot be reached, answered too late or cannot write (disk full, say).

    What was to be stored is not acknowledged: send it again, with its event_id. The store works again by
    itself as soon as the database does."""

    def __init__(self, message: str, again: bool = False):
        super().__init__(message)
        self.again = again
        """Whether two writers were in each other's way, and the same call is likely to succeed now."""


def parse_url(url: str | os.PathLike[str]) -> sa.URL:
    """Read a URL of SQLite or PostgreSQL, or the path of a SQLite file.

    >>> parse_url("events.sqlite").database, parse_url("postgresql://db/shop").drivername
    ('events.sqlite', 'postgresql+psycopg')
    """
    text = os.fspath(url)
    try:
        parsed = sa.make_url(text) if "://" in text else sa.URL.create("sqlite", database=text)
    except (exc.ArgumentError, ValueError):  # the message would show the password
        raise EnsuiteError(
            "the store's URL cannot be read: it looks like postgresql+psycopg://user:password@host/database"
        ) from None
    kind = parsed.get_backend_name()
    if kind in ("postgresql", "postgres"):
        if not find_spec("psycopg"):
            raise EnsuiteError(
                "a PostgreSQL store needs psycopg, which is not installed: pip install 'ensuite[postgres]'"
            )
        return parsed.set(drivername="postgresql+psycopg")
    if kind != "sqlite":
        raise EnsuiteError(f"the store may be SQLite or PostgreSQL, not {kind}")
    if not parsed.database or ":memory:" in parsed.database:
        raise EnsuiteError("a store in memory would forget what it acknowledged; name a file")
    return parsed.set(drivername="sqlite+pysqlite")


def name_of(url: sa.URL) -> str:
    """Name a store in messages, without its password, which may stand in the query too."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.set(drivername="postgresql", query={}).render_as_string(hide_password=True)


def connect(url: sa.URL, pool_size: int, timeout: float, create: bool) -> sa.Engine:
    """Build the engine; nothing is connected yet, but a SQLite file is created."""
    options: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": 0,
        "pool_timeout": timeout,
        "json_serializer": to_json,
        "hide_parameters": True,  # what users did does not belong in a log
    }
    if url.get_backend_name() == "sqlite":
        _prepare_file(Path(str(url.database)), create)
        engine = sa.create_engine(url, connect_args={"timeout": timeout}, **options)
        event.listen(engine, "connect", _tell_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    milliseconds = round(1000 * timeout)
    told = {
        "connect_timeout": max(2, round(timeout)),  # libpq takes no less
        "tcp_user_timeout": milliseconds,  # a host that vanished
        "options": f"-c statement_timeout={milliseconds} -c timezone=UTC",
        "application_name": "ensuite",
    }
    return sa.create_engine(
        url, connect_args=told, pool_pre_ping=True, pool_use_lifo=True, **options
    )  # pinged at every loan: a server that was restarted is not noticed by the requests after it


def _prepare_file(path: Path, create: bool) -> None:
    if path.exists():
        return
    if not create:
        raise EnsuiteError(f"{path}: no such store; `ensuite serve` or `ensuite store keys add` makes it")
    try:
        path.touch(mode=0o600)  # what users did is for the service's own account to read
    except OSError as error:
        raise EnsuiteError(f"{path}: cannot be created: {error.strerror}") from None


def _tell_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # we begin transactions, not the driver
    # FULL: a commit returns when the log is on the disk. An acknowledged event survives the death of the
    # process and, as far as the disk keeps its word, a loss of power. NORMAL would survive the first only.
    _switch_to_wal(connection)
    for setting in ("synchronous=FULL", "secure_delete=ON"):
        connection.execute(f"PRAGMA {setting}")


def _switch_to_wal(connection: Any) -> None:
    """Let readers go on while one writes. Of processes that begin at once only one can switch a new file, and
    SQLite does not let the others wait for it, as it does for every other lock."""
    until = time.monotonic() + SWITCH_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer announces itself: two that began as readers could only fail when both turn to writing.
    writes = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def failures_named(name: str) -> Iterator[None]:
    """Turn what a driver raises when the database fails into `StoreUnavailable`; our own mistakes in SQL
    stay what they are."""
    try:
        yield
    except exc.TimeoutError:
        raise StoreUnavailable(f"store {name}: all connections are in use, none came free in time") from None
    except (exc.IntegrityError, exc.DataError, exc.ProgrammingError):
        raise
    except exc.DBAPIError as error:
        again = getattr(error.orig, "sqlstate", None) == DEADLOCK
        raise StoreUnavailable(f"store {name}: {_first_line(error)}", again) from error


def _first_line(error: exc.DBAPIError) -> str:
    return (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
