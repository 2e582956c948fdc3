"""Items added while serving, and API keys."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from ensuite.errors import EnsuiteError
from ensuite.serve.store import EventStore, Item


def test_items_are_added_and_replaced(store: EventStore) -> None:
    assert store.items() == []
    assert store.items_version() == 0
    tea = Item("tea", "Tea", {"origin": "Assam", "price": 2.5}, ["coffee"])
    assert store.put_items([tea, Item("rice")]) == 1
    assert store.items() == [Item("rice"), tea]
    assert store.put_items([Item("rice", "Rice"), Item("rice", "Brown rice")]) == 2
    assert store.items() == [Item("rice", "Brown rice"), tea]
    assert store.items_version() == 2


def test_an_item_that_cannot_be_kept_is_refused_and_none_stored(store: EventStore) -> None:
    with pytest.raises(EnsuiteError, match="attributes of item b: JSON cannot hold it"):
        store.put_items([Item("a"), Item("b", attributes={"x": float("inf")})])
    with pytest.raises(EnsuiteError, match="title of item b: 513 characters"):
        store.put_items([Item("a"), Item("b", "x" * 513)])
    assert store.items() == []
    assert store.items_version() == 0


def test_every_version_is_given_once(store: EventStore) -> None:
    """Two writers of one item, in either order: no version is missed by a reader that polls it."""
    pairs = [[Item("a", "1"), Item("b", "1")], [Item("b", "2"), Item("a", "2")]]
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda number: store.put_items(pairs[number % 2]), range(20)))
    assert sorted(versions) == list(range(1, 21))
    assert len({item.title for item in store.items()}) == 1


def test_a_key_opens_until_it_is_revoked(store: EventStore) -> None:
    secret = store.add_key("shop", frozenset({"read", "write"}))
    other = store.add_key("page", frozenset({"read"}))
    key = store.check_key(secret)
    assert key is not None
    assert (key.name, key.scopes, key.revoked) == ("shop", {"read", "write"}, None)
    assert len(secret) == len("ens_") + 43  # 256 bits
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), "\0", "\ud800", "é", "x" * 10_000):
        assert store.check_key(wrong) is None
    store.revoke_key("shop")
    assert store.check_key(secret) is None
    assert store.check_key(other) is not None
    kept = store.keys()
    assert [(key.name, key.revoked is None) for key in kept] == [("page", True), ("shop", False)]


def test_the_secret_is_nowhere_in_the_database(store: EventStore) -> None:
    secret = store.add_key("shop", frozenset({"read"}))
    with store._engine.connect() as connection:
        kept = str(connection.execute(sa.text("SELECT * FROM ensuite_keys")).all())
    assert "shop" in kept
    assert secret not in kept
    assert secret.removeprefix("ens_") not in kept


def test_names_are_given_once_and_scopes_are_known(store: EventStore) -> None:
    store.add_key("shop", frozenset({"read"}))
    store.revoke_key("shop")
    with pytest.raises(EnsuiteError, match="key 'shop': there is, or was, a key of this name"):
        store.add_key("shop", frozenset({"read"}))
    with pytest.raises(EnsuiteError, match="there is no valid key of this name"):
        store.revoke_key("shop")
    with pytest.raises(EnsuiteError, match="there is no valid key of this name"):
        store.revoke_key("nobody")
    with pytest.raises(EnsuiteError, match="unknown scope 'wrte'; did you mean 'write'"):
        store.add_key("other", frozenset({"wrte"}))
    with pytest.raises(EnsuiteError, match="a key needs a scope"):
        store.add_key("other", frozenset())
    assert len(store.keys()) == 1
