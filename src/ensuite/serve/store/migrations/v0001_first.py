"""Events, items added while serving, counters and API keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "ensuite_events",
        sa.Column("arrival", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("user_id", TEXT, nullable=False),
        sa.Column("item_id", TEXT, nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("event_id", TEXT),
        sa.Column("kind", TEXT),
        sa.Column("session", TEXT),
        sa.Column("context", sa.JSON()),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_ensuite_events_user", "ensuite_events", ["user_id", "time", "arrival"])
    op.create_index("ix_ensuite_events_time", "ensuite_events", ["time"])
    op.create_index("uq_ensuite_events_event_id", "ensuite_events", ["event_id"], unique=True)
    op.create_table(
        "ensuite_items",
        sa.Column("item_id", TEXT, primary_key=True),
        sa.Column("title", TEXT),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("like", sa.JSON(), nullable=False),
    )
    counters = op.create_table(
        "ensuite_counters",
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("value", sa.BigInteger(), nullable=False),
    )
    op.bulk_insert(counters, [{"name": "items", "value": 0}])
    op.create_table(
        "ensuite_keys",
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("scopes", TEXT, nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("revoked", sa.BigInteger()),
    )
    op.create_index("uq_ensuite_keys_digest", "ensuite_keys", ["digest"], unique=True)
