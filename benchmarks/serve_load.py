"""Load on real service processes over loopback: latency at a given rate, and whether events are lost or
doubled, requests fail, or memory grows.

    ensuite train sasrec --data data/ml-1m --recipe recipes/sasrec/ml-1m.yaml --out runs/ml-1m/sasrec
    python benchmarks/serve_load.py recommend --run runs/ml-1m/sasrec --rate 50 --seconds 60
    python benchmarks/serve_load.py mixed --run runs/ml-1m/sasrec --rate 100 --seconds 600 --warm-up 60 \\
        --events 0.5 --processes 2 --store postgresql+psycopg://postgres@127.0.0.1/load

Each call replaces the row of its name in results/serve_load.csv. The store is filled first: every user gets a
history. A recommendation is for one user, read from the store; an append is one event of a user.

The schedule is open: request n is due at n / rate seconds, whatever became of those before, and its latency
counts from that moment, so that a server that stalls is not spared the requests that a waiting client would
not have sent. (Locust's users wait for their answers; its latencies leave those requests out.) The senders
are threads with plain HTTP connections that stay open, which cost the two cores little beside the servers. A
request whose connection fails is an error, and is not sent again.
"""

from __future__ import annotations

import csv
import http.client
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from threading import Lock, Thread
from typing import Annotated, Any

import numpy as np
import polars as pl
import sqlalchemy as sa
import tyro

from ensuite.serve.store import Event, EventStore

PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


@dataclass
class Options:
    """What is asked, how often, of what."""

    name: Annotated[str, tyro.conf.Positional]
    """The row of the table."""
    run: Path
    """The run that serves."""
    rate: float = 50.0
    """Requests a second, over all processes."""
    seconds: float = 60.0
    """How long, after the warm-up."""
    warm_up: float = 10.0
    """Seconds of the same load before, which are not counted (their events are)."""
    events: float = 0.0
    """Share of the requests that append an event; the others ask for recommendations."""
    processes: int = 1
    """Service processes, asked in turn."""
    engine: str = "auto"
    """What computes, as for `ensuite serve`."""
    store: str | None = None
    """An empty database; default: a SQLite file in a temporary folder."""
    users: int = 500
    """Users in the store."""
    history: int = 200
    """Events of each user before the load begins."""
    connections: int = 16
    """Connections to each process: requests under way at most."""
    out: Path = Path(__file__).parents[1] / "results" / "serve_load.csv"
    """The table."""


@dataclass
class Seen:
    """What the senders saw."""

    recommend: list[float] = field(default_factory=list)
    """Seconds from when each request was due to the end of its answer."""
    append: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    fallbacks: int = 0
    sent: set[str] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    lock: Lock = field(default_factory=Lock)


class Server:
    """`ensuite serve` in a process of its own."""

    def __init__(self, run: Path, engine: str, store: str, log: Path):
        self.log = log
        command = [sys.executable, "-m", "ensuite", "serve", str(run), "--engine", engine, "--port", "0"]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, env=os.environ | {"ENSUITE_STORE": store}
            )
        while (found := re.search(r"listens +http://([\d.]+):(\d+)", log.read_text())) is None:
            if self.process.poll() is not None:
                raise SystemExit(f"the service did not start:\n{log.read_text()}")
            time.sleep(0.05)
        self.host, self.port = found[1], int(found[2])

    def memory(self) -> float:
        """Resident memory, MiB."""
        return int(self._read("statm").split()[1]) * PAGE / 2**20

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = self._read("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def _read(self, name: str) -> str:
        return Path(f"/proc/{self.process.pid}/{name}").read_text()


class Senders:
    """Threads that send the requests of a schedule to the servers in turn."""

    def __init__(self, options: Options, servers: list[Server], items: list[str]):
        self.options, self.servers, self.items = options, servers, items
        self.seen = Seen()
        self._numbers = count()
        self._random = np.random.default_rng(1)
        total = int(options.rate * (options.warm_up + options.seconds))
        self._user = self._random.integers(options.users, size=total)
        self._item = self._random.integers(len(items), size=total)
        self._append = self._random.random(total) < options.events
        self._began = time.perf_counter()
        self._threads = [Thread(target=self._send) for _ in range(options.connections * len(servers))]

    def start(self) -> None:
        self._began = time.perf_counter()
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        connections = [http.client.HTTPConnection(s.host, s.port, timeout=30) for s in self.servers]
        while True:
            with self.seen.lock:
                number = next(self._numbers)
            if number >= len(self._user):
                break
            due = self._began + number / self.options.rate
            time.sleep(max(0.0, due - time.perf_counter()))
            self._send_one(connections[number % len(connections)], number, due)
        for connection in connections:
            connection.close()

    def _send_one(self, connection: http.client.HTTPConnection, number: int, due: float) -> None:
        user, append = f"u{self._user[number]}", bool(self._append[number])
        body: dict[str, Any] = {"user_id": user, "k": 10}
        if append:
            event = {"user_id": user, "item_id": self.items[self._item[number]], "event_id": f"load-{number}"}
            body = {"events": [event]}
            with self.seen.lock:
                self.seen.sent.add(f"load-{number}")
        try:
            path = "/v1/events" if append else "/v1/recommend"
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            problem = None if response.status == 200 else f"{response.status} {answer}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            problem = repr(error)
        took = time.perf_counter() - due
        with self.seen.lock:
            if problem is not None:
                self.seen.errors.append(problem)
                return
            if append:
                self.seen.acknowledged.add(f"load-{number}")
            else:
                self.seen.fallbacks += answer["fallback"] is not None
            if number >= self.options.rate * self.options.warm_up:
                (self.seen.append if append else self.seen.recommend).append(took)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    items = pl.read_parquet(options.run / "items.parquet")["item_id"].cast(pl.String).to_list()
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or f"sqlite:///{folder}/events.sqlite"
        fill(store, options, items)
        with running(options, store, Path(folder)) as servers:
            senders = Senders(options, servers, items)
            senders.start()
            time.sleep(options.warm_up)
            before = [server.cpu() for server in servers]
            memory: list[list[float]] = [[] for _ in servers]
            end = time.perf_counter() + options.seconds
            while time.perf_counter() < end:
                for server, samples in zip(servers, memory):
                    samples.append(server.memory())
                time.sleep(1)
            spent = sum(server.cpu() - was for server, was in zip(servers, before))
            senders.join()
        row = report(options, senders.seen, memory, spent) | count_events(store, senders.seen)
    write(options.out, row)
    width = max(map(len, row))
    sys.stdout.write("".join(f"{key:<{width}}  {value}\n" for key, value in row.items()))
    for error, times in Counter(senders.seen.errors).most_common(5):
        sys.stdout.write(f"{times} times: {error}\n")


def fill(url: str, options: Options, items: list[str]) -> None:
    """Give every user a history: an event an hour, up to now."""
    store = EventStore.open(url, timeout=60)
    if store.users(limit=1):
        raise SystemExit(f"{store.name}: holds events already; name an empty database")
    random = np.random.default_rng(0)
    now, hour = time.time_ns() // 1000, 3_600_000_000
    for user in range(options.users):
        picked = random.choice(len(items), size=options.history, replace=False)
        times = range(now - options.history * hour, now, hour)
        store.append([Event(f"u{user}", items[item], at) for item, at in zip(picked, times)])
    store.close()


@contextmanager
def running(options: Options, store: str, folder: Path) -> Iterator[list[Server]]:
    """Service processes, ended at the end."""
    servers: list[Server] = []
    try:
        for number in range(options.processes):
            servers.append(Server(options.run, options.engine, store, folder / f"{number}.log"))
        yield servers
    finally:
        for server in servers:
            server.process.terminate()
            server.process.wait(60)


def report(options: Options, seen: Seen, memory: list[list[float]], cpu: float) -> dict[str, Any]:
    """What the senders and the processes' own numbers say."""
    sent = len(seen.recommend) + len(seen.append)
    row: dict[str, Any] = {
        "name": options.name,
        "store": "SQLite" if options.store is None else options.store.partition(":")[0].partition("+")[0],
        "processes": options.processes,
        "requests/s asked for": options.rate,
        "requests/s answered": round(sent / options.seconds, 1),
        "seconds": options.seconds,
        "share of appends": options.events,
    }
    for kind, took in (("recommend", seen.recommend), ("append", seen.append)):
        for share in (50, 99):
            value = round(1000 * float(np.percentile(took, share)), 2) if took else ""
            row[f"{kind} p{share} ms"] = value
    row["errors"] = len(seen.errors)
    row["fallbacks"] = seen.fallbacks
    row["cpu ms/request"] = round(1000 * cpu / max(1, sent), 2)
    # The first tenth against the last: the medians of each process, the one that grew most.
    tenth = max(1, len(memory[0]) // 10)
    ends = [(median(samples[:tenth]), median(samples[-tenth:])) for samples in memory]
    first, last = max(ends, key=lambda pair: pair[1] / pair[0])
    row["MiB at first"], row["MiB at last"] = round(first, 1), round(last, 1)
    row["memory growth %"] = round(100 * (last / first - 1), 2)
    row["cores"], row["python"] = os.cpu_count(), platform.python_version()
    return row


def count_events(url: str, seen: Seen) -> dict[str, Any]:
    """Compare what was acknowledged with what the database holds."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        query = "SELECT event_id FROM ensuite_events WHERE event_id IS NOT NULL"
        stored = [row[0] for row in connection.execute(sa.text(query))]
    engine.dispose()
    return {
        "events acknowledged": len(seen.acknowledged),
        "events stored": len(stored),
        "lost": len(seen.acknowledged - set(stored)),
        "doubled": len(stored) - len(set(stored)),
        "never sent": len(set(stored) - seen.sent),
    }


def write(path: Path, row: dict[str, Any]) -> None:
    """Put a row into the table, in the place of the one of its name."""
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    kept = [old for old in rows if old["name"] != row["name"]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows([*kept, row])


if __name__ == "__main__":
    main()
