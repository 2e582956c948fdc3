"""The database fails: nothing is half stored, and the store works again when the database does."""

from __future__ import annotations

import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event as Flag
from threading import Thread

import pytest
import sqlalchemy as sa

from ensuite.serve.store import Appended, Event, EventStore, Item, StoreUnavailable

CALLS: list[Callable[[EventStore], object]] = [
    lambda store: store.append([Event("ann", "rice", 2, "e2")]),
    lambda store: store.history("ann", 1),
    lambda store: store.user("ann"),
    lambda store: store.users(),
    lambda store: store.delete_user("bob"),
    lambda store: store.forget(0),
    lambda store: store.put_items([Item("tea")]),
    lambda store: store.items(),
    lambda store: store.items_version(),
    lambda store: store.add_key("shop", frozenset({"read"})),
    lambda store: store.keys(),
    lambda store: store.revoke_key("shop"),
    lambda store: store.check_key("secret"),
    lambda store: store.ping(),
]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_stopped_server_is_named_by_every_call_and_forgotten_when_it_is_back(
    postgres, postgres_url: str, how: signal.Signals
) -> None:
    store = EventStore.open(postgres_url)
    store.append([Event("ann", "tea", 1, "e1")])
    postgres.stop(how)
    for call in CALLS:
        with pytest.raises(StoreUnavailable, match="store postgresql://postgres@/test: "):
            call(store)
    with pytest.raises(StoreUnavailable):
        EventStore.open(postgres_url)
    postgres.start()
    assert [event.item_id for event in store.history("ann", 5)] == ["tea"]
    assert store.append([Event("ann", "tea", 1, "e1"), Event("ann", "rice", 2, "e2")]) == Appended(1, 1)
    store.close()


def test_restarted_between_two_calls_the_second_does_not_notice(postgres, postgres_url: str) -> None:
    store = EventStore.open(postgres_url)
    store.append([Event("ann", "tea", 1)])
    postgres.stop()
    postgres.start()
    assert len(store.history("ann", 5)) == 1
    store.close()


def test_a_server_that_dies_within_an_append_has_stored_none_of_it(postgres, postgres_url: str) -> None:
    """Killed between the insert and the commit."""
    store = EventStore.open(postgres_url)

    sa.event.listen(store._engine, "commit", lambda _: postgres.stop(signal.SIGQUIT), once=True)
    with pytest.raises(StoreUnavailable):
        store.append([Event("ann", "tea", 1, "e1"), Event("ann", "rice", 2, "e2")])
    postgres.start()
    assert store.history("ann", 5) == []
    assert store.append([Event("ann", "tea", 1, "e1")]) == Appended(1, 0)
    store.close()


def test_a_lock_is_given_up_in_time(store_url: str) -> None:
    """Another program holds the table; readers go on, an append waits its time and no longer."""
    store = EventStore.open(store_url, timeout=0.3)
    store.append([Event("ann", "tea", 1)])
    other = sa.create_engine(store_url)
    with other.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql("LOCK TABLE ensuite_events IN EXCLUSIVE MODE")
        with pytest.raises(StoreUnavailable, match=r"locked|statement timeout"):
            store.append([Event("ann", "rice", 2)])
        assert len(store.history("ann", 5)) == 1
    store.append([Event("ann", "rice", 2)])
    assert len(store.history("ann", 5)) == 2
    other.dispose()
    store.close()


def test_when_all_connections_are_in_use_the_next_waits_its_time(store_url: str) -> None:
    store = EventStore.open(store_url, pool_size=1, timeout=0.3)
    taken, done = Flag(), Flag()

    def hold() -> None:
        with store._read():
            taken.set()
            done.wait(30)

    thread = Thread(target=hold)
    thread.start()
    taken.wait(30)
    with pytest.raises(StoreUnavailable, match="all connections are in use"):
        store.ping()
    done.set()
    thread.join()
    store.ping()
    store.close()


def test_disk_full_then_space_again(tmp_path: Path) -> None:
    """The limit of a file's size stands for the full disk: SQLite gets the same failure of a write."""
    path = tmp_path / "events.sqlite"
    program = """
import resource, sys
from ensuite.serve.store import *
store = EventStore.open(sys.argv[1])
acknowledged = 0
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
try:
    for number in range(10_000):
        store.append([Event("ann", "x" * 500, number, f"e{number}")])
        acknowledged += 1
except StoreUnavailable as error:
    print(error)
assert len(store.history("ann", 10_000)) == acknowledged  # it still reads
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
print(store.append([Event("ann", "x" * 500, acknowledged, f"e{acknowledged}")]))
print(acknowledged + 1)
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said, appended, count = done.stdout.splitlines()
    assert "disk" in said
    assert appended == "Appended(new=1, repeated=0)"
    store = EventStore.open(path)
    assert [event.event_id for event in store.history("ann", 10_000)] == [f"e{i}" for i in range(int(count))]
    store.close()
    assert int(count) > 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY  # of this process


def test_a_killed_writer_loses_nothing_that_it_was_told_is_stored(store_url: str) -> None:
    """kill -9 at some moment of four threads' appends; what was printed is there, once, and no half batch."""
    program = """
import sys
from concurrent.futures import ThreadPoolExecutor
from ensuite.serve.store import *
store = EventStore.open(sys.argv[1])
def send(thread):
    for number in range(100_000):
        name = f"{thread}-{number}"
        store.append([Event(f"u{thread}", "tea", number, f"{name}-{part}") for part in "ab"])
        sys.stdout.write(f"{name}\\n"); sys.stdout.flush()
list(ThreadPoolExecutor(4).map(send, range(4)))
"""
    process = subprocess.Popen([sys.executable, "-c", program, store_url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(100)]
    process.kill()
    acknowledged += [
        line.strip() for line in process.stdout.read().splitlines(keepends=True) if line[-1] == "\n"
    ]
    process.wait()
    store = EventStore.open(store_url)
    stored = [e.event_id for thread in range(4) for e in store.history(f"u{thread}", 1_000_000)]
    assert len(stored) == len(set(stored))
    assert {f"{name}-{part}" for name in acknowledged for part in "ab"} <= set(stored)
    assert {f"{str(name)[:-1]}{part}" for name in stored for part in "ab"} == set(stored)
    store.close()


def test_what_sqlite_was_told(tmp_path: Path) -> None:
    store = EventStore.open(tmp_path / "events.sqlite")
    with store._read() as connection:
        told = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "secure_delete", "busy_timeout")
        ]
    assert told == ["wal", 2, 1, 5000]
    store.close()


def test_deleted_content_is_not_in_the_file_any_more(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    store = EventStore.open(path)
    store.append(
        [Event("ann-of-green-gables", f"secret-{i}", i) for i in range(500)] + [Event("bob", "tea", 1)]
    )
    store.delete_user("ann-of-green-gables")
    raw = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"bob" in raw
    assert b"green-gables" not in raw
    assert b"secret-" not in raw
    store.close()
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_content_that_a_reader_holds_in_the_log_is_not_called_erased(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    store = EventStore.open(path, timeout=0.2)
    store.append([Event("ann", "secret", 1)])
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM ensuite_events").fetchall()
    with pytest.raises(StoreUnavailable, match=r"events are deleted, but the log .* could not be emptied"):
        store.delete_user("ann")
    reader.execute("COMMIT")
    assert store.delete_user("ann") == 0  # this empties it
    assert b"secret" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    reader.close()
    store.close()
