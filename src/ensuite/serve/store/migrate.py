"""Brings a database's tables up to the newest step when a store is opened."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from ensuite.errors import EnsuiteError

FOLDER = Path(__file__).parent / "migrations"
TABLE = "ensuite_revision"
ADVISORY_LOCK = 0x656E7375697465
"""The number under which processes that migrate one PostgreSQL database wait for each other: "ensuite"."""

_in_process = Lock()  # Alembic hands its operations over in a global


def migrate(connection: sa.Connection, name: str) -> None:
    """Run the steps that a database lacks, inside the caller's transaction: all of them or none.

    The transaction of SQLite has begun as a writer (BEGIN IMMEDIATE), PostgreSQL gets a lock of its own, so
    a second process waits here and then finds nothing to do.

    Raises
    ------
    EnsuiteError
        When the database ``name`` was made by a newer version, whose steps are unknown here.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(ADVISORY_LOCK)))
    script = ScriptDirectory(str(FOLDER), version_locations=[str(FOLDER)])
    known = {step.revision for step in script.walk_revisions()}

    def steps(revision: tuple[str, ...], _: MigrationContext) -> list:
        return script._upgrade_revs("head", revision)  # type: ignore[arg-type]

    context = MigrationContext.configure(connection, opts={"fn": steps, "version_table": TABLE})
    found = context.get_current_revision()
    if found is not None and found not in known:
        raise EnsuiteError(
            f"{name}: its tables are at revision {found}, this version of ensuite knows them up to "
            f"{script.get_current_head()}; update ensuite, or name another store"
        )
    if found == script.get_current_head():
        return
    with _in_process, Operations.context(context):
        context.run_migrations()
