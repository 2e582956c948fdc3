"""`ensuite store`: keys and upkeep, beside a service that uses the same file."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ensuite.serve.store import Event, EventStore

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EventStore:
    """The store that the commands find where none is named."""
    monkeypatch.delenv("ENSUITE_STORE", raising=False)
    return EventStore.open(tmp_path / "ensuite-events.sqlite")


def test_a_key_is_made_shown_once_and_revoked(ensuite: Cli, store: EventStore) -> None:
    secret = ensuite("store", "keys", "add", "shop", "--scope", "read", "write").stdout.strip()
    reader = ensuite("store", "keys", "add", "page").stdout.strip()
    key = store.check_key(secret)
    assert key is not None
    assert key.scopes == {"read", "write"}
    assert store.check_key(reader).scopes == {"read"}  # type: ignore[union-attr]
    ensuite("store", "keys", "revoke", "shop")
    assert store.check_key(secret) is None
    shown = ensuite("store", "keys", "list").stdout
    assert "shop" in shown
    assert secret not in shown
    listed = json.loads(ensuite("store", "keys", "list", "--json").stdout)
    assert [(key["name"], key["scopes"], key["revoked"] is None) for key in listed] == [
        ("page", ["read"], True),
        ("shop", ["read", "write"], False),
    ]
    done = ensuite("store", "keys", "add", "shop", check=False)
    assert done.returncode == 2
    assert "there is, or was, a key of this name" in done.stderr


def test_retention_by_age_and_by_day(ensuite: Cli, store: EventStore) -> None:
    now, day = time.time_ns() // 1000, 86_400_000_000
    store.append([Event("ann", str(age), now - age * day) for age in (0, 10, 89, 91, 1000)])
    assert ensuite("store", "forget", "--before", "90d").stdout == "2 events older than 90d, deleted\n"
    assert [event.item_id for event in store.history("ann", 9)] == ["89", "10", "0"]
    assert ensuite("store", "forget", "--before", "2001-01-01").stdout.startswith("0 events")
    assert ensuite("store", "forget", "--before", "2w").stdout.startswith("1 event older")
    for wrong in ("90", "d", "1700000000", "-5d", "yesterday", ""):
        done = ensuite("store", "forget", f"--before={wrong}", check=False)
        assert done.returncode == 2, wrong
        assert "give an age (90d, 12h, 2w) or ISO text" in done.stderr
    assert len(store.history("ann", 9)) == 2


def test_a_user_is_deleted_and_the_store_counted(ensuite: Cli, store: EventStore) -> None:
    store.append([Event("ann", "tea", 1), Event("ann", "rice", 2_000_000), Event("bob", "tea", 2**62)])
    held = json.loads(ensuite("store", "info", "--json").stdout)
    assert (held["events"], held["users"], held["first"]) == (3, 2, "1970-01-01 00:00:00+00:00")
    assert held["last"] == f"{2**62} us"  # beyond the year 9999
    assert ensuite("store", "delete-user", "ann").stdout == "2 events of user ann deleted\n"
    assert "events       1\n" in ensuite("store", "info").stdout


def test_another_store_by_flag_or_environment(
    ensuite: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensuite("store", "keys", "add", "shop", "--store", "one.sqlite")
    monkeypatch.setenv("ENSUITE_STORE", "sqlite:///one.sqlite")
    assert "one.sqlite" in ensuite("store", "info").stdout
    assert [path.name for path in tmp_path.iterdir()] == ["one.sqlite"]
    done = ensuite("store", "info", "--store", "typo.sqlite", check=False)
    assert done.returncode == 2
    assert "typo.sqlite: no such store" in done.stderr
    assert not (tmp_path / "typo.sqlite").exists()
