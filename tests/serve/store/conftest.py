"""An open store in each database."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ensuite.serve.store import EventStore


@pytest.fixture
def store(store_url: str) -> Iterator[EventStore]:
    store = EventStore.open(store_url)
    yield store
    store.close()
