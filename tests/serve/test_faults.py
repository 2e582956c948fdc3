"""Faults, for real: servers started by the command line, killed, stopped, and robbed of disk and database."""

from __future__ import annotations

import re
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from threading import Barrier, Thread
from threading import Event as Flag

import pytest
import sqlalchemy as sa

from ensuite.data.dataset import Dataset
from ensuite.training.loop import train

httpx = pytest.importorskip("httpx")

CLIENTS = 4
ASK = {"user_id": "u0", "k": 3, "exclude": "none"}
Acknowledged = dict[str, str]
"""Item of every event that a server said it has, by event id."""


class Server:
    """`ensuite serve` in a process of its own, on a free port."""

    def __init__(self, run: Path, store: str, log: Path):
        command = ["-m", "ensuite", "serve", str(run), "--port", "0", "--store", store]
        with log.open("w") as file:  # a pipe that nobody reads would stop the server when it is full
            self.process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=file)
        while (found := re.search(r"listens +(\S+)", log.read_text())) is None:
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.05)
        self.url = found[1]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def end(self, how: signal.Signals) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(how)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def run(cycle: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Markov run with a popularity run beside it, whose list is the fallback."""
    runs = tmp_path_factory.mktemp("runs")
    train("popularity", cycle, runs / "popularity")
    train("markov", cycle, runs / "markov")
    return runs / "markov"


@pytest.fixture
def start(run: Path, tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    """Start servers; what still runs at the end is killed."""
    servers: list[Server] = []

    def start(store: str) -> Server:
        servers.append(Server(run, store, tmp_path / f"server-{len(servers)}.log"))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


class Client(Thread):
    """Appends events one after the other until it is told to stop, and notes what came of each."""

    def __init__(self, url: str, number: int):
        super().__init__()
        self.url, self.number = url, number
        self.stop = Flag()
        self.acknowledged: Acknowledged = {}
        self.failed: list[str] = []
        self.statuses: set[int] = set()

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            for step in count():
                if self.stop.is_set():
                    return
                name = f"{self.number}-{step}"
                try:
                    answer = client.post("/v1/events", json={"events": [event(name)]})
                except httpx.TransportError:
                    self.failed.append(name)
                    time.sleep(0.01)
                    continue
                self.statuses.add(answer.status_code)
                if answer.status_code == 200:
                    self.acknowledged[name] = event(name)["item_id"]
                else:
                    self.failed.append(name)


def event(name: str) -> dict[str, str]:
    number, step = name.split("-")
    return {"user_id": f"u{number}", "item_id": str(10 * (int(step) % 20 + 1)), "event_id": name}


@contextmanager
def sending(url: str) -> Iterator[list[Client]]:
    """Clients that send until the block ends, in whatever way."""
    clients = [Client(url, number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.stop.set()
        for client in clients:
            client.join()


def wait_for_more(clients: list[Client]) -> None:
    """Return when each client has got another ten events through."""
    goals = [len(client.acknowledged) + 10 for client in clients]
    end = time.monotonic() + 60
    while any(len(client.acknowledged) < goal for client, goal in zip(clients, goals)):
        assert time.monotonic() < end, "no event got through"
        time.sleep(0.02)


def sums(clients: list[Client]) -> tuple[Acknowledged, list[str]]:
    acknowledged = {name: item for client in clients for name, item in client.acknowledged.items()}
    return acknowledged, [name for client in clients for name in client.failed]


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
    server = start(store_url)
    with sending(server.url) as clients:
        wait_for_more(clients)
        server.end(signal.SIGKILL)
        while not all(client.failed for client in clients):
            time.sleep(0.02)
    acknowledged, failed = sums(clients)
    check_stored(store_url, acknowledged, failed)

    again = start(store_url)  # the clients send again whatever they are not sure of
    with again.client() as client:
        for name in [*failed, *list(acknowledged)[-5:]]:
            assert client.post("/v1/events", json={"events": [event(name)]}).status_code == 200
            acknowledged[name] = event(name)["item_id"]
        assert client.post("/v1/recommend", json=ASK).json()["fallback"] is None
    check_stored(store_url, acknowledged, [])
    assert again.end(signal.SIGTERM) == 0


def test_without_its_database_it_answers_from_the_fallback_and_recovers_by_itself(
    start: Callable[[str], Server], postgres, postgres_url: str
) -> None:
    server = start(postgres_url)
    with sending(server.url) as clients, server.client() as client:
        wait_for_more(clients)
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
        refused = client.post("/v1/events", json={"events": [event("9-0")]})
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
        wait_for_more(clients)
    acknowledged, failed = sums(clients)
    assert set().union(*(client.statuses for client in clients)) == {200, 503}
    check_stored(postgres_url, acknowledged, failed)
    assert server.end(signal.SIGTERM) == 0


def test_on_a_full_disk_it_refuses_events_and_lives(start: Callable[[str], Server], tmp_path: Path) -> None:
    """A limit on the size of the server's files stands for the full disk: the same writes fail."""
    path = tmp_path / "events.sqlite"
    server = start(f"sqlite:///{path}")
    acknowledged: Acknowledged = {}

    def send(step: int) -> int:
        sent = event(f"0-{step}")
        status = client.post(
            "/v1/events", json={"events": [sent | {"context": {"text": "x" * 2000}}]}
        ).status_code
        if status == 200:
            acknowledged[sent["event_id"]] = sent["item_id"]
        return status

    with server.client() as client:
        assert send(0) == 200
        unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (300_000, unlimited[1]))
        statuses = [send(step) for step in range(1, 201)]
        assert set(statuses) == {200, 503}
        assert statuses[-1] == 503
        answer = client.post("/v1/recommend", json=ASK)
        assert answer.json()["fallback"] is None  # what is stored can still be read
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert send(201) == 200
    check_stored(f"sqlite:///{path}", acknowledged, [f"0-{step}" for step in range(201)])
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert server.end(signal.SIGTERM) == 0


def test_asked_to_stop_it_answers_what_is_under_way(start: Callable[[str], Server], tmp_path: Path) -> None:
    """Appends wait for a lock that this test holds; SIGTERM comes; the lock is given back."""
    path = tmp_path / "events.sqlite"
    server = start(f"sqlite:///{path}")
    connected = Barrier(CLIENTS + 1)

    def send(number: int) -> int:
        with server.client() as client:
            client.get("/healthz")
            connected.wait(60)
            return client.post("/v1/events", json={"events": [event(f"0-{number}")]}).status_code

    with ThreadPoolExecutor(CLIENTS) as pool, closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        sent = [pool.submit(send, number) for number in range(CLIENTS)]
        connected.wait(60)
        time.sleep(1)  # until the server has read them; it waits 5 seconds for the lock
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        with pytest.raises(httpx.ConnectError), server.client() as client:
            client.get("/healthz")  # nothing new is taken
        holder.execute("ROLLBACK")
        assert [future.result() for future in sent] == [200] * CLIENTS
    assert server.process.wait(60) == 0
    check_stored(f"sqlite:///{path}", {f"0-{n}": event(f"0-{n}")["item_id"] for n in range(CLIENTS)}, [])
