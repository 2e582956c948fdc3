"""Opening a store: URLs, migrations, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from ensuite.errors import EnsuiteError
from ensuite.serve.store import Event, EventStore, default_url
from ensuite.serve.store.database import name_of, parse_url
from ensuite.serve.store.migrate import TABLE
from ensuite.serve.store.schema import metadata


def test_the_migrations_make_the_tables_that_the_queries_expect(store: EventStore) -> None:
    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": TABLE})
        assert compare_metadata(context, metadata) == []


def test_reopened_it_holds_what_it_held(store_url: str) -> None:
    for number in range(3):
        store = EventStore.open(store_url)
        store.append([Event("ann", str(number), number)])
        assert len(store.history("ann", 10)) == number + 1
        store.close()


def test_processes_that_start_at_once_do_not_disturb_each_other(store_url: str) -> None:
    """Each waits until all are ready, then opens the empty database."""
    program = (
        "import sys; from ensuite.serve.store import *\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "store = EventStore.open(sys.argv[1]); print(store.append([Event('ann', sys.argv[2], 1)]))\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, store_url, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert out == "Appended(new=1, repeated=0)\n", err
    store = EventStore.open(store_url)
    assert len(store.history("ann", 10)) == 4
    store.close()


def test_a_database_of_a_newer_version_is_refused_by_name(store_url: str) -> None:
    store = EventStore.open(store_url)
    with store._write() as connection:
        connection.execute(sa.text(f"UPDATE {TABLE} SET version_num = '9999'"))
    store.close()
    with pytest.raises(
        EnsuiteError, match=r"at revision 9999, this version of ensuite knows them up to 0001"
    ):
        EventStore.open(store_url)


def test_it_shares_a_database_with_other_tables(store_url: str) -> None:
    engine = sa.create_engine(store_url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE events (a INTEGER)"))
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num TEXT)"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('theirs')"))
    engine.dispose()
    store = EventStore.open(store_url)
    store.append([Event("ann", "tea", 1)])
    store.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://root:secret@db/shop", "the store may be SQLite or PostgreSQL, not mysql"),
        ("postgresql://me:secret@db:port/shop", "the store's URL cannot be read"),
        ("sqlite://", "a store in memory"),
        (":memory:", "a store in memory"),
    ],
)
def test_other_urls_are_refused_without_their_password(url: str, message: str) -> None:
    with pytest.raises(EnsuiteError, match=message) as caught:
        EventStore.open(url)
    assert "secret" not in str(caught.value)


def test_a_store_is_named_without_its_password() -> None:
    url = parse_url("postgresql://me:secret@db/shop?password=secret")
    assert name_of(url) == "postgresql://me:***@db/shop"


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item,time\n" * 100)
    with pytest.raises(EnsuiteError, match=r"log.csv: file is not a database"):
        EventStore.open(path)
    assert path.read_text().startswith("user,item")


def test_a_file_is_made_only_where_that_is_meant(tmp_path: Path) -> None:
    with pytest.raises(EnsuiteError, match=r"events.sqlite: no such store"):
        EventStore.open(tmp_path / "events.sqlite", create=False)
    with pytest.raises(EnsuiteError, match="cannot be created: No such file or directory"):
        EventStore.open(tmp_path / "nowhere" / "events.sqlite")
    EventStore.open(tmp_path / "events.sqlite").close()
    assert (tmp_path / "events.sqlite").stat().st_mode & 0o777 == 0o600


def test_missing_rights_are_named(postgres, postgres_url: str) -> None:
    postgres.execute("CREATE ROLE guest LOGIN")
    postgres.execute("GRANT USAGE ON SCHEMA public TO guest", "test")
    with pytest.raises(EnsuiteError, match="permission denied for schema public"):
        EventStore.open(postgres_url.replace("postgres@", "guest@"))


def test_an_encoding_that_cannot_hold_every_id_is_refused(postgres, postgres_url: str) -> None:
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(EnsuiteError, match="encoding is LATIN1, ids need UTF8"):
        EventStore.open(postgres_url.replace("/test?", "/latin?"))


def test_where_none_is_named_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENSUITE_STORE", raising=False)
    assert default_url() == "ensuite-events.sqlite"
    monkeypatch.setenv("ENSUITE_STORE", "postgresql://db/shop")
    assert default_url() == "postgresql://db/shop"
