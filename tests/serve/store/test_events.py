"""Events: order, repetition, many writers, retention; the same on SQLite and PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ensuite.errors import EnsuiteError
from ensuite.serve.store import Appended, Event, EventStore, Happened, User
from ensuite.serve.store.queries import first_users, last_of_each
from ensuite.serve.store.records import to_json

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
TIMES = st.integers(0, 5) | st.integers(-(2**63), 2**63 - 1)
JSON = st.dictionaries(TEXTS, st.none() | st.booleans() | st.integers() | TEXTS | st.lists(TEXTS), max_size=3)
EVENTS = st.builds(
    Event,
    user_id=st.sampled_from(["ann", "bob", "Ann", "ann' OR 1=1 --", "\u007f\n"]) | TEXTS,
    item_id=TEXTS,
    time=TIMES,
    kind=st.none() | TEXTS,
    session=st.none() | TEXTS,
    context=st.none() | JSON,
)
often = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def empty(store: EventStore) -> None:
    """A test of many examples has one database."""
    with store._write() as connection:
        connection.execute(sa.text("DELETE FROM ensuite_events"))


def content(event: Event) -> tuple:
    e = event
    context = None if e.context is None else to_json(e.context)
    return (e.user_id, e.item_id, e.time, e.event_id, e.kind, e.session, context)


@often
@given(st.lists(st.lists(EVENTS, max_size=6), max_size=4), st.integers(1, 6))
def test_history_is_in_order_of_time_then_arrival(store: EventStore, batches: list, limit: int) -> None:
    empty(store)
    for batch in batches:
        assert store.append(batch) == Appended(len(batch), 0)
    sent = [event for batch in batches for event in batch]
    users = sorted({event.user_id for event in sent})
    histories = store.histories([*users, "nobody"], limit)
    for user in users:
        mine = sorted((event for event in sent if event.user_id == user), key=lambda event: event.time)
        stored = store.history(user, limit)
        assert [content(event) for event in stored] == [content(event) for event in mine[-limit:]]
        read = [Happened(event.item_id, event.time, event.session) for event in stored]
        assert histories[user] == store.histories([user], limit)[user] == read
        assert store.user(user) == User(user, len(mine), mine[0].time, mine[-1].time)
    assert histories["nobody"] == []
    assert store.user("nobody") is None
    assert [user.user_id for user in store.users(limit=1000)] == users


@often
@given(st.data())
def test_what_is_sent_again_is_stored_once(store: EventStore, data: st.DataObject) -> None:
    empty(store)
    made = data.draw(st.lists(EVENTS, min_size=1, max_size=8))
    events = [Event(**vars(event) | {"event_id": f"e{i}"}) for i, event in enumerate(made)]
    seen: set[str | None] = set()
    for _ in range(4):
        batch = data.draw(st.lists(st.sampled_from(events), max_size=8))
        new = {event.event_id for event in batch} - seen
        assert store.append(batch) == Appended(len(new), len(batch) - len(new))
        seen |= new
    stored = [e for user in {e.user_id for e in events} for e in store.history(user, 100)]
    assert sorted(content(e) for e in stored if e.event_id in seen) == sorted(
        content(e) for e in events if e.event_id in seen
    )
    assert len(stored) == len(seen)


@pytest.mark.parametrize("field", ["user_id", "item_id", "time", "kind", "session", "context"])
def test_an_id_with_other_content_is_refused_and_nothing_stored(store: EventStore, field: str) -> None:
    event = Event("ann", "tea", 1, "e1", "buy", "s", {"a": 1})
    other = {"time": 2, "context": {"a": 2}}.get(field, "other")
    changed = Event(**vars(event) | {field: other})
    store.append([event])
    with pytest.raises(EnsuiteError, match=f"event_id 'e1' .* another {field}"):
        store.append([Event("ann", "rice", 5), changed])
    with pytest.raises(EnsuiteError, match="event_id 'e2'"):
        store.append([Event(**vars(event) | {"event_id": "e2"}), Event(**vars(changed) | {"event_id": "e2"})])
    assert [content(event) for event in store.history("ann", 10)] == [content(event)]


def test_without_a_time_it_is_the_moment_of_storing_and_may_be_sent_again(store: EventStore) -> None:
    event = Event("ann", "tea", event_id="e1")
    assert store.append([event]) == Appended(1, 0)
    assert store.append([event]) == Appended(0, 1)
    assert store.history("ann", 1)[0].time > 1_700_000_000_000_000


def test_events_of_another_store_get_numbers_of_this_one(store: EventStore, tmp_path: Path) -> None:
    other = EventStore.open(tmp_path / "other.sqlite")
    other.append([Event("bob", "oil", 1), Event("ann", "tea", 1), Event("ann", "rice", 1)])
    store.append(other.history("ann", 5))
    store.append([Event("ann", "oil", 1)])
    other.close()
    stored = store.history("ann", 5)
    assert [event.item_id for event in stored] == ["tea", "rice", "oil"]
    assert len({event.arrival for event in stored}) == 3


def test_an_event_of_the_past_is_put_in_its_place(store: EventStore) -> None:
    store.append([Event("ann", "b", 20), Event("ann", "c", 20)])
    store.append([Event("ann", "a", 10), Event("ann", "d", 20)])
    assert [event.item_id for event in store.history("ann", 10)] == ["a", "b", "c", "d"]
    assert [event.item_id for event in store.history("ann", 2)] == ["c", "d"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Event("", "tea", 1), "user_id: empty"),
        (Event("ann", "t\0a", 1), "item_id: holds the character NUL"),
        (Event("a" * 513, "tea", 1), "user_id: 513 characters"),
        (Event("ann", "\ud800", 1), "item_id: not valid Unicode"),
        (Event("ann", 5, 1), "item_id: a text is needed"),  # type: ignore[arg-type]
        (Event("ann", "tea", 1.5), "time: 1.5: whole microseconds"),  # type: ignore[arg-type]
        (Event("ann", "tea", 2**63), "time: 9223372036854775808"),
        (Event("ann", "tea", 1, event_id=""), "event_id: empty"),
        (Event("ann", "tea", 1, context={"a": float("nan")}), "context: JSON cannot hold it"),
        (Event("ann", "tea", 1, context={1: 2}), "context: JSON cannot hold it"),
        (Event("ann", "tea", 1, context=[1]), "context: a dict is needed"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_field(store: EventStore, event: Event, message: str) -> None:
    with pytest.raises(EnsuiteError, match=message):
        store.append([event])
    with pytest.raises(EnsuiteError, match=f"event 1: {message}"):
        store.append([Event("ann", "tea", 1), event])
    assert store.users() == []


def test_users_that_cannot_be_have_no_events(store: EventStore) -> None:
    for user in ("", "\0", "\ud800", "a" * 513):
        assert store.histories([user], 5) == {user: []}
        assert store.history(user, 5) == []
        assert store.user(user) is None
        assert store.delete_user(user) == 0
    assert store.users("\ud800") == []


def test_the_longest_ids_fit_into_the_indexes(store: EventStore) -> None:
    long = "".join(chr(0x10000 + i * 97) for i in range(512))  # 2,048 bytes that do not compress
    store.append([Event(long, long, 1, long, long, long)])
    assert store.history(long, 1)[0].event_id == long


def test_users_by_prefix(store: EventStore) -> None:
    names = ["a", "a%", "aB", "ab", "a\U0010ffff", "a\U0010ffffz", "b", "\ud7ffx", "\ue000", "é"]
    store.append([Event(name, "tea", 1) for name in names])
    for prefix in ("", *names, "a\U0010ffff\U0010ffff", "\U0010ffff", "\ud7ff", "%", "_", "A"):
        found = [user.user_id for user in store.users(prefix)]
        assert found == sorted(name for name in names if name.startswith(prefix)), prefix
    assert len(store.users(limit=2)) == 2


def test_many_threads_append_at_once(store: EventStore) -> None:
    """Every event by two threads, in batches of either order: each is stored once, none is lost."""
    ids = [f"e{i}" for i in range(120)]

    def send(number: int) -> int:
        mine = ids[number // 2 :: 6]
        mine = mine if number % 2 else mine[::-1]
        batches = [mine[at : at + 4] for at in range(0, len(mine), 4)]
        return sum(store.append([Event("ann", e, 1, e) for e in batch]).new for batch in batches)

    with ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(send, range(12))) == len(ids)
    stored = store.history("ann", 1000)
    assert sorted(event.item_id for event in stored) == sorted(ids)
    assert [event.arrival for event in stored] == sorted(event.arrival for event in stored)


def test_batches_that_wait_for_each_other_are_both_stored(store: EventStore) -> None:
    """The same 500 ids, forwards and backwards at once: PostgreSQL finds the deadlock and undoes one."""
    for number in range(4):
        batch = [Event("ann", "tea", i, f"{number}-{i}") for i in range(500)]
        with ThreadPoolExecutor(2) as pool:
            counts = list(pool.map(store.append, [batch, batch[::-1]]))
        assert sum(count.new for count in counts) == 500
        assert sum(count.repeated for count in counts) == 500


def test_deleted_while_it_is_sent_again_it_is_stored_again(postgres_url: str) -> None:
    """The insert meets the event, the deletion comes, the comparison finds nothing."""
    store, other = EventStore.open(postgres_url), EventStore.open(postgres_url)
    event = Event("ann", "tea", 1, "e1")
    store.append([event])
    deleted: list[int] = []

    def before(connection, cursor, statement: str, *_: object) -> None:
        if "SELECT" in statement and not deleted:
            deleted.append(other.delete_user("ann"))

    sa.event.listen(store._engine, "before_cursor_execute", before)
    assert store.append([event]) == Appended(1, 0)
    assert deleted == [1]
    assert len(store.history("ann", 5)) == 1
    store.close()
    other.close()


@often
@given(st.lists(EVENTS, max_size=12), TIMES, st.integers(1, 4))
def test_retention_removes_the_older_and_nothing_else(
    store: EventStore, events: list, before: int, batch: int
) -> None:
    empty(store)
    store.append(events)
    kept = [event for event in events if event.time >= before]
    assert store.forget(before, batch=batch) == len(events) - len(kept)
    stored = [e for user in {e.user_id for e in events} for e in store.history(user, 100)]
    assert sorted(map(content, stored), key=repr) == sorted(map(content, kept), key=repr)


def test_a_deleted_user_is_gone_and_numbers_are_not_reused(store: EventStore) -> None:
    store.append([Event("bob", "tea", 1), Event("ann", "tea", 1, "e1"), Event("ann", "rice", 2)])
    last = store.history("ann", 1)[0].arrival
    assert store.delete_user("ann") == 2
    assert store.delete_user("ann") == 0
    assert store.history("ann", 5) == []
    assert [user.user_id for user in store.users()] == ["bob"]
    assert store.append([Event("ann", "oil", 1, "e1")]) == Appended(1, 0)  # its id was forgotten with it
    assert store.history("ann", 1)[0].arrival > last


def plan(store: EventStore, query: sa.Executable) -> str:
    """How the database would answer, over 4,000 events of 40 users."""
    store.append([Event(f"u{i % 40:02}", "tea", i) for i in range(4000)])
    words = "EXPLAIN QUERY PLAN"
    with store._engine.connect() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("ANALYZE ensuite_events"))
            words = "EXPLAIN"
        text = query.compile(store._engine, compile_kwargs={"literal_binds": True})  # type: ignore[attr-defined]
        return "\n".join(str(row) for row in connection.exec_driver_sql(f"{words} {text}"))


def test_a_history_is_read_from_its_index(store: EventStore) -> None:
    """One range of the index for each user, newest first, without a sort."""
    found = plan(store, last_of_each(["u01", "u02"], 5))
    if "ensuite_events USING INDEX" in found:  # SQLite
        assert found.count("SEARCH ensuite_events USING INDEX ix_ensuite_events_user (user_id=?)") == 2, found
        assert "SCAN ensuite_events" not in found, found
        assert "TEMP B-TREE" not in found, found
    else:
        assert found.count("Index Scan Backward using ix_ensuite_events_user") == 2, found
        assert "Seq Scan" not in found, found
        assert "Sort" not in found, found


def test_users_are_read_from_the_index(store: EventStore) -> None:
    """In its order, so that the first few need the first few users' entries only."""
    found = plan(store, first_users("u0", 5))
    assert "ix_ensuite_events_user" in found, found
    assert "Seq Scan" not in found, found
    assert "Sort" not in found, found
    assert "TEMP B-TREE" not in found, found
