"""What happened since the training: events, items and keys of a running service, in SQLite or PostgreSQL."""

from __future__ import annotations

import os
from importlib.util import find_spec

from ensuite.errors import EnsuiteError

if not (find_spec("sqlalchemy") and find_spec("alembic")):
    raise EnsuiteError(
        "the event store needs SQLAlchemy and Alembic, which are not installed: pip install 'ensuite[serve]'"
    )

from ensuite.serve.store.database import StoreUnavailable
from ensuite.serve.store.event_store import EventStore
from ensuite.serve.store.records import Appended, Event, Happened, Info, Item, Key, StoredEvent, User

__all__ = [
    "Appended",
    "Event",
    "EventStore",
    "Happened",
    "Info",
    "Item",
    "Key",
    "StoreUnavailable",
    "StoredEvent",
    "User",
    "default_url",
]

VARIABLE = "ENSUITE_STORE"


def default_url() -> str:
    """Return the store of a service or command that names none: the environment's ``ENSUITE_STORE`` (a URL
    with a password belongs there, not on a command line, which every user of the machine can read), or else
    the SQLite file `ensuite-events.sqlite` in the current folder."""
    return os.environ.get(VARIABLE) or "ensuite-events.sqlite"
