"""The tables, as the queries see them; the migrations make them (a test holds the two together).

Every name begins with ``ensuite_``: the database may be shared with other programs. Texts compare by code
point in both databases (PostgreSQL would else follow the language of its installation), so that "begins
with" is a range of an index and users come in one order everywhere.

How long a query takes with 100 million events:

- a user's last n events: `ix_ensuite_events_user` (user, time, arrival) is read backwards from the user's
  end, n entries, without a sort; likewise for many users, one such range each;
- a repeated event: `uq_ensuite_events_event_id` is asked once for each event as it is inserted;
- retention: `ix_ensuite_events_time` is read from its old end, a batch at a time.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

metadata = sa.MetaData()
TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""64 bits; SQLite numbers its rows under the name INTEGER only."""
JSON = sa.JSON(none_as_null=True)

events = sa.Table(
    "ensuite_events",
    metadata,
    sa.Column("arrival", NUMBER, primary_key=True, autoincrement=True),
    sa.Column("user_id", TEXT, nullable=False),
    sa.Column("item_id", TEXT, nullable=False),
    sa.Column("time", sa.BigInteger(), nullable=False),
    sa.Column("event_id", TEXT),
    sa.Column("kind", TEXT),
    sa.Column("session", TEXT),
    sa.Column("context", JSON),
    sa.Index("ix_ensuite_events_user", "user_id", "time", "arrival"),
    sa.Index("ix_ensuite_events_time", "time"),
    sa.Index("uq_ensuite_events_event_id", "event_id", unique=True),
    sqlite_autoincrement=True,  # a number is never given twice, not even after the last event was deleted
)

items = sa.Table(
    "ensuite_items",
    metadata,
    sa.Column("item_id", TEXT, primary_key=True),
    sa.Column("title", TEXT),
    sa.Column("attributes", JSON, nullable=False),
    sa.Column("like", JSON, nullable=False),
)

counters = sa.Table(
    "ensuite_counters",
    metadata,
    sa.Column("name", TEXT, primary_key=True),
    sa.Column("value", sa.BigInteger(), nullable=False),
)

keys = sa.Table(
    "ensuite_keys",
    metadata,
    sa.Column("name", TEXT, primary_key=True),
    sa.Column("digest", TEXT, nullable=False),
    sa.Column("scopes", TEXT, nullable=False),
    sa.Column("created", sa.BigInteger(), nullable=False),
    sa.Column("revoked", sa.BigInteger()),
    sa.Index("uq_ensuite_keys_digest", "digest", unique=True),
)
