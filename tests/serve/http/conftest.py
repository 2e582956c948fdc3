"""Runs that serve, a service on each test's own store, and calls to it without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serve.http.calling import Caller

from ensuite.data.dataset import Dataset
from ensuite.serve.service import Service
from ensuite.serve.store import EventStore
from ensuite.training.loop import train

SMALL = {
    "model": {"dim": 8, "blocks": 1, "max_length": 12},
    "training": {"epochs": 1, "batch_size": 64},
}


@pytest.fixture(scope="session")
def runs(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on the cycle of 20 items (ids 10, 20, ..., 200), and none of popularity."""
    folder = tmp_path_factory.mktemp("runs")
    train("markov", cycle, folder / "markov")
    for seed in (1, 2):
        train("sasrec", cycle, folder / f"sasrec-{seed}", recipe=SMALL, seed=seed)
    train("hstu", cycle, folder / "hstu", recipe=SMALL)
    return folder


@pytest.fixture(scope="session")
def popular(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A popularity run on the cycle."""
    return train("popularity", cycle, tmp_path_factory.mktemp("popular") / "popularity").path


Start = Callable[..., Caller]


@pytest.fixture
def start(runs: Path, popular: Path, tmp_path: Path) -> Iterator[Start]:
    """Start a service: ``start("markov", require_keys=True)``."""
    opened: list[Any] = []

    def begin(run: str | Path = "markov", *, fallback: Path | None = popular, **options: Any) -> Caller:
        names = ("history", "timeout")
        told = {name: options.pop(name) for name in names if name in options}
        store = EventStore.open(tmp_path / "events.sqlite")
        service = Service(runs / run, store, fallback=fallback, **told)
        runner = asyncio.Runner()
        opened.extend([service, store, runner])
        return Caller(service, runner, **options)

    yield begin
    for one in opened:
        one.close()
