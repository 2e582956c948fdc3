"""Faults, for real: servers started by the command line, killed, stopped, and robbed of disk and database."""

from __future__ import annotations

import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Event as Flag

import pytest
import sqlalchemy as sa

from ensuite.data.dataset import Dataset
from ensuite.serve.store import EventStore
from ensuite.training.loop import train

httpx = pytest.importorskip("httpx")

CLIENTS = 4
ASK = {"user_id": "u0", "k": 3, "exclude": "none"}
Acknowledged = dict[str, str]
"""Item of every event that a server said it has, by event id."""


class Server:
    """`ensuite serve` in a process of its own, on a free port."""

    def __init__(self, run: Path, store: str):
        command = ["-m", "ensuite", "serve", str(run), "--port", "0", "--store", store]
        self.process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.split()[:1] == ["listens"]:
                self.url = line.split()[1]
                return
        raise AssertionError(self.process.stderr and self.process.stderr.read())

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def end(self, how: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(how)
        return self.wait()

    def wait(self) -> int:
        status = self.process.wait(60)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        return status


@pytest.fixture(scope="module")
def run(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Markov run with a popularity run beside it, whose list is the fallback."""
    runs = tmp_path_factory.mktemp("runs")
    train("popularity", cycle, runs / "popularity")
    train("markov", cycle, runs / "markov")
    return runs / "markov"


@pytest.fixture
def start(run: Path) -> Iterator[Callable[[str], Server]]:
    """Start servers; what still runs at the end is killed."""
    servers: list[Server] = []

    def start(store: str) -> Server:
        servers.append(Server(run, store))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


def send_until(flag: Flag, url: str, number: int) -> tuple[Acknowledged, list[str], set[int]]:
    """Append events one after the other until ``flag``: what was acknowledged, what was tried in vain, and
    every status that came."""
    acknowledged: Acknowledged = {}
    failed: list[str] = []
    statuses: set[int] = set()
    with httpx.Client(base_url=url, timeout=30) as client:
        for step in count():
            if flag.is_set():
                break
            name, item = f"{number}-{step}", str(10 * (step % 20 + 1))
            event = {"user_id": f"u{number}", "item_id": item, "event_id": name}
            try:
                answer = client.post("/v1/events", json={"events": [event]})
            except httpx.TransportError:
                failed.append(name)
                time.sleep(0.01)
                continue
            statuses.add(answer.status_code)
            if answer.status_code == 200:
                assert answer.json() == {"new": 1, "repeated": 0, "unknown_items": []}
                acknowledged[name] = item
            else:
                failed.append(name)
    return acknowledged, failed, statuses


def check_stored(store: str, acknowledged: Acknowledged, tried: list[str]) -> None:
    """Every acknowledged event is in the database, none is there twice, and none that nobody sent."""
    engine = sa.create_engine(store)
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT event_id, item_id FROM ensuite_events")).all()
    engine.dispose()
    stored = dict(tuple(row) for row in rows)
    assert len(rows) == len(stored)
    assert {name: stored.get(name) for name in acknowledged} == acknowledged
    assert set(stored) <= set(acknowledged) | set(tried)


def test_killed_while_it_appends_it_has_every_event_that_it_acknowledged(
    start: Callable[[str], Server], store_url: str
) -> None:
    server, flag = start(store_url), Flag()
    with ThreadPoolExecutor(CLIENTS) as pool:
        sending = [pool.submit(send_until, flag, server.url, number) for number in range(CLIENTS)]
        time.sleep(1)
        server.end(signal.SIGKILL)
        flag.set()
        results = [future.result() for future in sending]
    acknowledged = {name: item for result in results for name, item in result[0].items()}
    failed = [name for result in results for name in result[1]]
    assert len(acknowledged) > 50
    assert failed  # it was killed under way
    check_stored(store_url, acknowledged, failed)

    again = start(store_url)  # the clients send again whatever they are not sure of
    with again.client() as client:
        for name in [*failed, *list(acknowledged)[-5:]]:
            item = acknowledged.get(name) or str(10 * (int(name.split("-")[1]) % 20 + 1))
            event = {"user_id": f"u{name[0]}", "item_id": item, "event_id": name}
            assert client.post("/v1/events", json={"events": [event]}).status_code == 200
            acknowledged[name] = item
        assert client.post("/v1/recommend", json=ASK).json()["fallback"] is None
    check_stored(store_url, acknowledged, [])
    assert again.end(signal.SIGTERM) == 0


def test_without_its_database_it_answers_from_the_fallback_and_recovers_by_itself(
    start: Callable[[str], Server], postgres, postgres_url: str
) -> None:
    server, flag = start(postgres_url), Flag()
    with ThreadPoolExecutor(CLIENTS) as pool, server.client() as client:
        sending = [pool.submit(send_until, flag, server.url, number) for number in range(CLIENTS)]
        time.sleep(0.5)
        assert client.post("/v1/recommend", json=ASK).json()["fallback"] is None

        postgres.stop(signal.SIGQUIT)
        for _ in range(5):
            answer = client.post("/v1/recommend", json=ASK)
            assert answer.status_code == 200
            assert answer.json()["fallback"] == "store unavailable"
            assert len(answer.json()["items"]) == 3
            time.sleep(0.1)
        given = client.post("/v1/recommend", json=ASK | {"history": [10, 20]}).json()
        assert (given["fallback"], given["ignored"]) == (None, ["user_id"])
        event = {"events": [{"user_id": "u9", "item_id": 10}]}
        refused = client.post("/v1/events", json=event)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_unavailable"
        assert refused.headers["Retry-After"]
        assert client.get("/v1/users/u0").status_code == 503
        assert client.delete("/v1/users/u0").status_code == 503
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").json()["store"] == "unavailable"

        postgres.start()
        assert client.post("/v1/recommend", json=ASK).json()["fallback"] is None
        assert client.get("/readyz").json()["store"] == "ok"
        time.sleep(0.5)
        flag.set()
        results = [future.result() for future in sending]
    acknowledged = {name: item for result in results for name, item in result[0].items()}
    failed = [name for result in results for name in result[1]]
    assert set().union(*(result[2] for result in results)) == {200, 503}
    assert failed
    check_stored(postgres_url, acknowledged, failed)
    assert server.end(signal.SIGTERM) == 0


def test_on_a_full_disk_it_refuses_events_and_lives(start: Callable[[str], Server], tmp_path: Path) -> None:
    """A limit on the size of the server's files stands for the full disk: the same writes fail."""
    path = tmp_path / "events.sqlite"
    server = start(f"sqlite:///{path}")
    acknowledged: Acknowledged = {}

    def send(name: str) -> int:
        events = [{"user_id": "ann", "item_id": 10, "event_id": name, "context": {"text": "x" * 2000}}]
        status = client.post("/v1/events", json={"events": events}).status_code
        if status == 200:
            acknowledged[name] = "10"
        return status

    with server.client() as client:
        assert send("first") == 200
        unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (300_000, unlimited[1]))
        statuses = [send(f"e{number}") for number in range(200)]
        assert set(statuses) == {200, 503}
        assert statuses[-1] == 503
        answer = client.post("/v1/recommend", json=ASK | {"user_id": "ann"})
        assert answer.json()["fallback"] is None  # what is stored can still be read
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert send("last") == 200
    check_stored(f"sqlite:///{path}", acknowledged, [f"e{number}" for number in range(200)])
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert server.end(signal.SIGTERM) == 0


def test_asked_to_stop_it_answers_what_is_under_way(start: Callable[[str], Server], tmp_path: Path) -> None:
    """Appends wait for a lock that this test holds; SIGTERM comes; the lock is given back."""
    path = tmp_path / "events.sqlite"
    server = start(f"sqlite:///{path}")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    def send(number: int) -> int:
        event = {"user_id": "ann", "item_id": 10, "event_id": f"e{number}"}
        with server.client() as client:
            return client.post("/v1/events", json={"events": [event]}).status_code

    with ThreadPoolExecutor(CLIENTS) as pool:
        sending = [pool.submit(send, number) for number in range(CLIENTS)]
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        with pytest.raises(httpx.ConnectError), server.client() as client:
            client.get("/healthz")  # nothing new is taken
        holder.execute("ROLLBACK")
        assert [future.result() for future in sending] == [200] * CLIENTS
    assert server.wait() == 0
    store = EventStore.open(path)
    assert len(store.history("ann", 10)) == CLIENTS
    store.close()
